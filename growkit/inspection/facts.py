"""What is found in a model: its size, its growth sites, and the widths that may not grow, by reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from growkit.cost import count_params
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.surgery import Inputs, Verdict, verify_sites

__all__ = ["Facts", "RefusalGroup", "SiteFacts", "facts_of"]


@dataclass(frozen=True)
class SiteFacts:
    """One width that can grow.

    Attributes:
        name: of the site.
        width: units now.
        channels: size now of the dimension that the site is named after; other than the width where sites are joined,
            as where one unit is an attention head.
        producers: names of the tensors that make the units.
        consumers: names of the tensors that read them.
        pass_through: names of the tensors that act unit by unit.
        params_per_unit: parameters that one more unit adds.
        flops_per_unit: FLOPs per sample that one more unit adds.
        location: "file:line" where the units are made, or None.
        verified: whether widening a perturbed copy kept the function; None where nobody tried.
        by_copies: whether it grows by whole copies of its units only.
    """

    name: str
    width: int
    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    pass_through: tuple[str, ...]
    params_per_unit: int
    flops_per_unit: int
    location: str | None
    verified: bool | None = None
    channels: int | None = None
    by_copies: bool = False


@dataclass(frozen=True)
class RefusalGroup:
    """Widths that may not grow for the same reason.

    Attributes:
        reason: completes the sentence "this width ...".
        widths: name and size of each, once.
        locations: the places in the user's code that the reason points at, each once.
        tried: whether widening a copy showed it; else the trace did.
    """

    reason: str
    widths: tuple[tuple[str, int], ...]
    locations: tuple[str, ...]
    tried: bool = False


@dataclass(frozen=True)
class Facts:
    """What is found in a model.

    Attributes:
        target: what the user named.
        model: the type of the module.
        input_shapes: of the example, with its batch.
        params: number of parameters.
        flops: of the forward pass of one sample.
        reach: share of the parameters that are in tensors with a dimension that can grow, as far as verified if tried.
        path_specialised: True if the forward branches on values and the facts hold for the path of the example.
        unknown_ops: operations without a rule, with how often each occurs.
        sites: the widths that the trace lets grow, in the order of the forward pass; some may have failed when tried.
        refusals: the other widths, those that failed when tried first, and the most frequent reason first.
        worst_change: largest relative change of an output when all verified sites grew; None where none did.
        not_checked: what the trial left out because the model does not bear it.
    """

    target: str
    model: str
    input_shapes: tuple[tuple[int, ...], ...]
    params: int
    flops: int
    reach: float
    path_specialised: bool
    unknown_ops: dict[str, int]
    sites: tuple[SiteFacts, ...]
    refusals: tuple[RefusalGroup, ...]
    worst_change: float | None = None
    not_checked: tuple[str, ...] = ()

    @property
    def standing(self) -> tuple[SiteFacts, ...]:
        """The sites that did not fail when tried."""
        return tuple(site for site in self.sites if site.verified is not False)

    def to_json(self) -> dict[str, Any]:
        """The facts as JSON can hold them."""
        return asdict(self)


def facts_of(target: str, model: nn.Module, sites: Sites, *, verify: bool = False) -> Facts:
    """Collect the facts.

    Args:
        target: what to call the model.
        model: the module, left as it is.
        sites: what `growkit.graph.find_sites` found in it.
        verify: widen a perturbed copy at every site and compare the outputs.
    """
    verdict = _verdict(model, sites) if verify else None  # first: sites that can only grow together become one
    standing = list(verdict.sites if verdict else sites)
    verified = {site.name for site in standing}
    graph = sites.graph
    args, kwargs = graph.inputs
    return Facts(
        target=target,
        model=type(model).__name__,
        input_shapes=tuple(tuple(x.shape) for x in (*args, *kwargs.values()) if hasattr(x, "shape")),
        params=count_params(model),
        flops=graph.flops(),
        reach=_reach(model, standing),
        path_specialised=graph.path_specialised,
        unknown_ops=dict(graph.unknown_ops),
        sites=tuple(_site(site, site.name in verified if verdict else None) for site in sites),
        refusals=(*_grouped(verdict.refusals if verdict else (), tried=True), *_grouped(sites.refusals)),
        worst_change=verdict.worst if verdict and verdict.sites else None,
        not_checked=verdict.not_checked if verdict else (),
    )


def _verdict(model: nn.Module, sites: Sites) -> Verdict:
    """What widening all sites on a perturbed copy shows."""
    args, kwargs = sites.graph.inputs
    return verify_sites(model, list(sites), Inputs(args, kwargs))


def _site(site: GrowthSite, verified: bool | None) -> SiteFacts:
    return SiteFacts(
        name=site.name,
        width=site.width,
        producers=_names(site, "producer"),
        consumers=_names(site, "consumer"),
        pass_through=_names(site, "pass_through"),
        params_per_unit=site.params_per_unit,
        flops_per_unit=site.flops_per_unit,
        location=site.location,
        verified=verified,
        channels=site.channels,
        by_copies=site.by_copies,
    )


def _names(site: GrowthSite, role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(member.names[0] for member in site.members if member.role == role))


def _reach(model: nn.Module, sites: Iterable[GrowthSite]) -> float:
    moved = {member.names[0] for site in sites for member in site.members if member.kind == "parameter"}
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters(remove_duplicate=False)}
    total = count_params(model)
    return sum(sizes[name] for name in moved) / total if total else 0.0


def _grouped(refusals: Iterable[Refusal], *, tried: bool = False) -> tuple[RefusalGroup, ...]:
    groups: dict[str, list[Refusal]] = {}
    for refusal in refusals:
        groups.setdefault(refusal.reason, []).append(refusal)
    found = [
        RefusalGroup(
            reason,
            tuple(dict.fromkeys((one.name, one.width) for one in group)),
            tuple(dict.fromkeys(one.location for one in group if one.location)),
            tried,
        )
        for reason, group in groups.items()
    ]
    return tuple(sorted(found, key=lambda group: -len(group.widths)))
