"""What growkit makes of one model: traced, sites found, sites verified, and how exactly they grow all together."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.bench.catalogue import Entry, build, example_of
from growkit.bench.progress import Progress, without_folders
from growkit.bench.streams import streams_of, verified_streams
from growkit.graph import GrowthSite, ModelGraph, Refusal, Sites, arguments_of, copy_of
from growkit.graph.dimensions import Atom
from growkit.graph.tracing import trace_both_modes
from growkit.surgery import (
    Extension,
    Growth,
    Inputs,
    Observation,
    Verdict,
    function_change,
    grow,
    lookup,
    observe,
    verify_sites,
)

__all__ = ["extension", "growth_error", "measure", "perturb", "reach", "verify"]

TOLERANCE = 1e-5
SHARE = 0.25  # new units per unit
SAMPLES = 8  # of the last check


def measure(entry: Entry, progress: Progress) -> None:
    """Fill `progress` with the facts of one model; whatever the model raises comes through."""
    with progress.stage("build"):
        model, example = build(entry)
        args, kwargs = arguments_of(example)
        inputs = Inputs(args, kwargs)
        progress.add(params=_numel(model), input=example_of(example))
    with progress.stage("trace"):
        train, evaluation = trace_both_modes(model, example)
    with progress.stage("analyse"):
        sites = Sites(ModelGraph(model, train, evaluation, inputs=(args, kwargs)))
        found = list(sites)  # joint sites will stand in the place of their parts
        streams = streams_of(sites.graph)
    progress.add(
        path_specialised=sites.graph.path_specialised,
        nodes=len(train.graph.nodes),
        found=len(found),
        reach_found=reach(model, found),
        unknown_ops=sites.graph.unknown_ops,
        graph_refusals=kinds(sites.refusals),
    )
    with progress.stage("verify"):
        verdict = verify(model, found, inputs)
    copied = [site for site in verdict.sites if site.by_copies]
    by_units = verified_streams(streams, [site for site in verdict.sites if not site.by_copies])
    progress.add(
        verified=verified_among(found, verdict.sites),
        verified_by_copies=verified_among(found, copied),
        streams=sorted(streams.values()),
        streams_verified=sorted(streams[one] for one in verified_streams(streams, verdict.sites)),
        streams_by_copies=sorted(streams[one] for one in verified_streams(streams, copied) if one not in by_units),
        reach_verified=reach(model, verdict.sites),
        trial_refusals=kinds(verdict.refusals),
        not_checked=list(verdict.not_checked),
        examples=examples(verdict.refusals),
    )
    with progress.stage("grow"):
        progress.add(**growth_error(model, verdict.sites, inputs))


def verify(model: nn.Module, sites: Sequence[GrowthSite], inputs: Inputs) -> Verdict:
    """The verification that a run makes before the first growth event."""
    return verify_sites(model, sites, inputs, tolerance=TOLERANCE)


def verified_among(found: Sequence[GrowthSite], verified: Sequence[GrowthSite]) -> int:
    """How many of the found sites grow, alone or together with others as one site."""
    growing = {atom for site in verified for atom in _atoms(site)}
    return sum(_atoms(site) <= growing for site in found)


def _atoms(site: GrowthSite) -> set[Atom]:
    return set(site.atoms)


def reach(model: nn.Module, sites: Sequence[GrowthSite]) -> float:
    """The share of parameters that lie in a tensor of which a site moves a dimension, 0..1."""
    moved = {member.names[0] for site in sites for member in site.members if member.kind == "parameter"}
    return sum(p.numel() for name, p in model.named_parameters() if name in moved) / max(1, _numel(model))


def _numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def kinds(refusals: Sequence[Refusal]) -> dict[str, int]:
    """How often each reason occurs, numbers and names in it left out; the most frequent first."""
    return dict(Counter(kind_of(refusal.reason) for refusal in refusals).most_common())


def kind_of(reason: str) -> str:
    """A reason without what differs from site to site."""
    text = re.sub(r"(same events as ).*?: ", r"\1others: ", without_folders(reason))
    text = re.sub(r"'[^']*'|\"[^\"]*\"", "'…'", text)
    text = re.sub(r"(?<![\w.])[A-Za-z_]\w*(\.\w+)*?\.(\d+\.[\w.]+|weight|bias)", "…", text)  # names of tensors, modules
    text = re.sub(r"(?<![A-Za-z_])\d[\d.]*(e[+-]?\d+)?", "#", text)
    return re.sub(r"#(, ?#)+", "#…", text)[:160]


def examples(refusals: Sequence[Refusal]) -> list[str]:
    """One refusal of each kind, in full."""
    first = {kind_of(refusal.reason): refusal for refusal in reversed(refusals)}
    return [
        without_folders(f"{one.name} (width {one.width}) {one.reason} ({one.location})")[:400]
        for one in reversed(first.values())
    ]


def growth_error(model: nn.Module, sites: Sequence[GrowthSite], inputs: Inputs) -> dict[str, Any]:
    """Widen all sites together on perturbed weights, in place, and compare the outputs; then the control.

    By a quarter; where a site grows by whole copies of its units only, by one.

    New units get a random fan-in of the size of the old and a zero fan-out, the control a random fan-out.

    Returns:
        `error_eval`, `error_train`: on a batch of other values than the example, and of SAMPLES where the model takes
        them, relative, in fp32; `error_exact`: where one of them is above the tolerance, the worse one in float64,
        which tells rounding from error; `control`: the change in eval mode with a random fan-out. Empty where there is
        no site.
    """
    if not sites:
        return {}
    perturb(model)
    batch = _other_batch(model, inputs)
    before = observe(model, batch)
    change = function_change(before, _grown(model, sites, batch, fan_out=False))
    found: dict[str, float | None] = {"error_eval": change.eval, "error_train": change.train}
    if change.worst > TOLERANCE:
        found["error_exact"] = _in_float64(model, sites, batch)
    return {**found, "control": function_change(before, _grown(model, sites, batch, fan_out=True)).eval}


def _in_float64(model: nn.Module, sites: Sequence[GrowthSite], batch: Inputs) -> float | None:
    """The worst change in float64; None where the forward insists on fp32."""
    try:
        twin, batch = copy_of(model).double(), batch.double()
        return function_change(observe(twin, batch), _grown(twin, sites, batch, fan_out=False)).worst
    except Exception:  # whatever a model's forward raises for float64
        return None


def _other_batch(model: nn.Module, inputs: Inputs) -> Inputs:
    """A batch of other values and another size than the example; of its size where the model is bound to that."""
    fresh = _fresh(inputs)
    try:
        observe(model, fresh)
    except Exception:  # whatever a model's forward raises for a size that it does not expect
        return inputs.moved()
    return fresh


def _fresh(inputs: Inputs) -> Inputs:
    """SAMPLES samples: Gaussian values of the example's mean and spread, its own where they are no floats."""
    generator = torch.Generator().manual_seed(3)

    def draw(x: Tensor) -> Tensor:
        if not x.dim() or len(x) != inputs.batch:
            return x
        if not x.is_floating_point():
            return x[torch.arange(SAMPLES) % len(x)]
        noise = torch.randn(SAMPLES, *x.shape[1:], generator=generator).to(x)
        return x.mean() + noise * (x.std() if x.numel() > 1 else 1.0)

    args, kwargs = pytree.tree_map_only(Tensor, draw, (inputs.args, inputs.kwargs or {}))
    return Inputs(args, kwargs)


def _grown(model: nn.Module, sites: Sequence[GrowthSite], batch: Inputs, *, fan_out: bool) -> Observation:
    """What the model computes once all sites have grown, one after the other; it is put back."""
    generator = torch.Generator().manual_seed(1)
    with ExitStack() as undo:
        for site in sites:
            num = site.grows_by if site.by_copies else max(1, int(SHARE * site.width))
            new = extension(model, site, num, generator, fan_out=fan_out)
            undo.callback(grow(model, [Growth(site, num, new)]).undo)
        return observe(model, batch)


def extension(
    model: nn.Module, site: GrowthSite, num_new: int, generator: torch.Generator, *, fan_out: bool
) -> Extension:
    """New slices of a site as random as the old ones are; the side that keeps it silent stays zero unless asked for."""
    values: dict[tuple[str, int], Tensor] = {}
    for edit in site.tensor_edits(num_new):
        tensor = lookup(model, edit.names[0], edit.kind).detach()
        silent = () if fan_out else edit.silent_dims
        for dim, index in enumerate(edit.index_maps):
            if index is None or edit.pass_through or dim in silent:
                continue
            shape = [*tensor.shape]
            shape[dim] = int((index < 0).sum())
            values[edit.names[0], dim] = torch.randn(shape, generator=generator).to(tensor) * _spread(tensor)
    return Extension(values)


def _spread(tensor: Tensor) -> float:
    return max(0.02, float(tensor.float().std())) if tensor.numel() > 1 else 0.02


@torch.no_grad()
def perturb(model: nn.Module) -> None:
    """Add noise to all weights and statistics in place, so that nothing is zero or one only because it was born so."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(parameter))
    for name, buffer in model.named_buffers():
        noise = torch.randn(buffer.shape, generator=generator).to(buffer.dtype) if buffer.is_floating_point() else None
        if noise is not None and name.endswith("running_mean"):
            buffer.add_(0.05 * noise)
        elif noise is not None and name.endswith("running_var"):
            buffer.mul_(1 + 0.2 * noise.tanh())
