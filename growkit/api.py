"""The Python door: grow a live module on data held in memory, in one call."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growkit.config import Config, config_from_overrides, load_config
from growkit.config.data import MemorySettings
from growkit.config.growth import RandomSettings, ZeroSettings
from growkit.config.models import LiveModelSettings
from growkit.data import data_from_user, with_transforms
from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.graph import GrowthSite, Sites, check_model, check_values, outside_inference_mode, refuse_wrappers
from growkit.growth.base import History
from growkit.growth.event import GrowthEvent
from growkit.growth.initializers import build_initializer
from growkit.growth.statistics import Measurement
from growkit.pipeline import Stage, run
from growkit.report import Observer
from growkit.surgery import Edit, Extension, Growth, Inputs, Optimizers, Verdict, untouched
from growkit.surgery import grow as operate
from growkit.surgery import verify_sites as try_out
from growkit.surgery.guard import Watched, check_optimizer, example_for, taken_back, watch
from growkit.surgery.transaction import inside_of, refuse_stale

__all__ = ["Grown", "grow", "verify_sites", "widen"]


@dataclass(frozen=True)
class Grown:
    """A grown model and how it came about.

    Attributes:
        model: the module that was given, grown in place and trained, in eval mode: plain torch, nothing wrapped.
        result: scores, sizes and costs, as in result.json. stages: the training between growth events.
        events: every growth event. history: epochs and growths. refusals: "name: reason" of widths that may not grow.
        folder: the run folder, None where none was asked for.
    """

    model: nn.Module
    result: Mapping[str, Any]
    stages: Sequence[Stage]
    events: Sequence[GrowthEvent]
    history: History
    refusals: Sequence[str]
    folder: Path | None


def grow(
    model: nn.Module,
    train: Any,
    validate: Any = None,
    test: Any = None,
    *,
    budget: Mapping[str, float] | None = None,
    config: Config | Mapping[str, Any] | str | Path | None = None,
    root: str | Path | None = None,
    observers: Sequence[Observer] | None = None,
) -> Grown:
    """Train `model` and grow it on the way, in place.

    Args:
        model: any module that maps a batch of inputs to [B, classes] logits or [B, K] values.
        train: (inputs, targets) of tensors or arrays, a torch Dataset or a DataLoader; integer targets mean
            classification. What is not given below is split off it, by the shares in `data.split`.
        validate: likewise, used as it is; steers growth.
        test: likewise; read once, at the end.
        budget: what no event may exceed, such as {"params": ..., "latency_ms": ...}: the keys of `growth.budget`.
        config: settings as {"train.epochs": 20, "data.split.validate": 0.2, "data.augment.flip": True}, a YAML file or
            a Config, of which `model` and the source of the data are replaced by what is given here.
        root: folder under which a run folder is written; None writes nothing.
        observers: who watches; None prints to the terminal, () is silent.

    Raises:
        UserInputError: something does not fit; the model is as it was.

    Example:
        >>> import torch, growkit
        >>> x, y = torch.randn(200, 4), torch.randint(0, 2, (200,))
        >>> seed = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 2))
        >>> grown = growkit.grow(seed, (x, y), config={"train.epochs": 3, "growth.when.start": 1}, observers=())
        >>> grown.model[0].out_features > 3
        True
    """
    check_model(model)
    settings = _settings(config, budget, root, type(model).__qualname__)
    memory = settings.data
    assert isinstance(memory, MemorySettings)
    data = data_from_user(
        train,
        validate,
        test,
        split=memory.split,
        split_seed=memory.split_seed,
        augment=memory.augment,
        limit=memory.limit,
        train_share=memory.train_share,
        label_noise=memory.label_noise,
        name=memory.name,
    )
    data = with_transforms(data, memory)
    outcome = run(settings, model=model, data=data, observers=observers, writes=root is not None)
    return Grown(
        model=outcome.model,
        result=outcome.result,
        stages=outcome.stages,
        events=outcome.events,
        history=outcome.history,
        refusals=[f"{refusal.name}: {refusal.reason}" for refusal in outcome.refusals],
        folder=outcome.folder,
    )


def _settings(
    config: Config | Mapping[str, Any] | str | Path | None,
    budget: Mapping[str, float] | None,
    root: str | Path | None,
    model_type: str,
) -> Config:
    """What was asked for, with data and model recorded as handed over."""
    handed: dict[str, dict[str, Any]] = {"data": {"name": "memory"}, "model": {"name": "live", "type": model_type}}
    if config is not None and not isinstance(config, Mapping | Config | str | Path):
        raise UserInputError(f"config must be a mapping, a Config or a file's path, got {type(config).__name__}")
    limits = {} if budget is None else {"growth.budget": dict(budget)}  # policy: auto needs it from the start
    if config is None or isinstance(config, Mapping):
        _refuse_what_is_handed_over(config or {})
        settings = config_from_overrides(config, base=config_from_overrides({**handed, **limits}))
    else:
        settings = config if isinstance(config, Config) else load_config(config, settings=limits)
    if not isinstance(settings.data, MemorySettings):
        kept = {*MemorySettings.model_fields} - {"name"}
        if not getattr(settings.data, "transforms", ()):
            kept -= {"workers"}  # they would have no work
        shared = settings.data.model_dump(include=kept, exclude_unset=True, by_alias=True)
        handed["data"] |= shared
        settings = settings.model_copy(update={"data": MemorySettings.model_validate(handed["data"])})
    settings = settings.model_copy(update={"model": LiveModelSettings(type=model_type)})
    extra: dict[str, Any] = {**limits, **({} if root is None else {"run.root": str(root)})}
    return config_from_overrides(extra, base=settings) if extra else settings


def _refuse_what_is_handed_over(settings: Mapping[str, Any]) -> None:
    """The model and the source of the data are arguments; a setting for them would be ignored."""
    source = settings.get("data")
    named = isinstance(source, str) or (isinstance(source, Mapping) and source.get("name", "memory") != "memory")
    given = [key for key in settings if key.split(".")[0] == "model"] + ["data.name"] * (
        named or "data.name" in settings
    )
    if given:
        raise UserInputError(f"growkit.grow takes the model and the data as arguments; leave {given[0]} out of config")


@outside_inference_mode()
def widen(
    model: nn.Module,
    site: GrowthSite,
    num_new: int,
    *,
    optimizer: Optimizers = None,
    initializer: str = "zero",
    seed: int = 0,
    example: Tensor | tuple | dict | None = None,
    copies: Sequence[nn.Module] = (),
) -> Edit:
    """Widen one site of `model` in place; gradients and `optimizer`'s state grow along. `.undo()` takes it back.

    The outputs, those of `copies` too, are compared before and after, in eval and in train mode without dropout; where
    they differ by more than 1e-5 of their size (more in half precision), everything is put back.

    Args:
        model: the module the site was found in.
        site: from `growkit.find_sites(model, example)`.
        num_new: units to add.
        optimizer: the optimizer that trains the model, if there is one yet, or a list of several. One that is left out
            keeps state of the old sizes, and torch's fused optimizers check no sizes: a step with it may write past the
            end of memory.
        initializer: "zero" or "random": Gaussian fan-in and zero fan-out, which keeps any function; they differ in the
            length of the fan-in, as in `growth.initializer`.
        seed: of the Gaussian directions.
        example: a batch to compare the outputs on, as for `find_sites`; None takes the one the site was found with.
        copies: averages of the model's weights (torch's `AveragedModel`, or copies of your own) that grow along.

    Raises:
        UserInputError: `model` is no module or `site` no site, the optimizer is none of the model's, or the initializer
            needs data.
        GrowthRefused: the model is wrapped, the site is of another model, or num_new is not a whole number >= 1, or
            no multiple of `site.grows_by`.
        ModelError: the model or a copy has no values, does not run on the example, or its outputs are not finite.
        SurgeryError: the wider model or copy fails or computes something else; all are as they were before the call.
    """
    _check_sites(model, [site])
    _check_own(model, site)
    known = {"zero": ZeroSettings(), "random": RandomSettings(form="zero_fan_out")}
    settings = known.get(initializer) if isinstance(initializer, str) else None
    if settings is None:
        raise UserInputError(
            f"widen's initializer must be 'zero' or 'random', got {initializer!r}; "
            "those that need data, such as gradmax, run in growkit.grow"
        )
    _check_numbers(site, num_new, seed)
    num_new = int(num_new)  # numpy has whole numbers of its own
    check_optimizer(model, optimizer)
    inputs = example_for(model, site.graph.inputs, example)
    site = _tried(model, site, inputs)
    watched = [watch(model, inputs), *_watched(copies, site, example)]
    nothing = Measurement(model, _no_loss, Inputs(), torch.empty(0), (site,))
    what, advice = f"widening {site.name!r} by {num_new}", f"look for its width {site.width} in the forward"
    with taken_back(what, site.location, f"{advice}, or compare on another batch with example=") as edits:
        extended = build_initializer(settings).extend(site, num_new, nothing, torch.Generator().manual_seed(seed))
        edits.append(
            operate(model, [Growth(site, num_new, Extension(extended.values))], optimizer=optimizer, copies=copies)
        )
        for one in watched:
            one.compare(edits[0])
    return edits[0]


@outside_inference_mode()
def verify_sites(
    model: nn.Module, sites: Sites | Sequence[GrowthSite], *, example: Tensor | tuple | dict | None = None
) -> Verdict:
    """Try sites out on a perturbed copy of `model`, and join those that can only grow together.

    Hooks run on the copy as well. What the model keeps in plain attributes is as before, also where a hook or a method
    of the copy reaches into the model itself; what they write to anywhere else stays written.

    Args:
        model: the module the sites were found in; it stays as it is.
        sites: from `growkit.find_sites(model, example)`.
        example: a batch to compare the outputs on; None takes the one the sites were found with.

    Returns:
        `.sites` that may grow (joint ones take the place of their parts), `.refusals` of the others with the reason,
        `.worst`, the largest change of an output relative to the largest output when all grew together, `.control`,
        that change when the same edit was wrong on purpose, and `.path_specialised`, True where the forward branches on
        values and the sites are proved for the path of the example only; `.not_checked` names what the model does not
        bear, such as another batch size, and was therefore left out.

    Raises:
        UserInputError: `model` is no module, or `sites` are no sites.
        GrowthRefused: the model is wrapped, or a site is of another model.
        ModelError: the model has no values, does not run on the example, or gives outputs that are not finite.

    Example:
        >>> import growkit
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
        >>> verdict = growkit.verify_sites(model, growkit.find_sites(model, torch.randn(3, 4)))
        >>> [site.name for site in verdict.sites], verdict.worst < 1e-5 < verdict.control
        (['0'], True)
    """
    candidates: list[Any] = list(sites) if isinstance(sites, Iterable) and not isinstance(sites, str) else [sites]
    _check_sites(model, candidates)
    if not candidates:
        return try_out(model, [], Inputs())
    with untouched(model):
        return try_out(model, candidates, example_for(model, candidates[0].graph.inputs, example))


def _check_sites(model: Any, sites: Sequence[Any]) -> None:
    check_model(model)
    check_values(model)
    for site in sites:
        if isinstance(site, Verdict | Sites):
            those = "its .sites" if isinstance(site, Verdict) else "sites, such as sites[0]"
            raise UserInputError(f"a site must be a GrowthSite, got a {type(site).__name__}; pass {those}")
        if not isinstance(site, GrowthSite):
            item = f"[{site!r}]" if isinstance(site, str | int) else ""
            raise UserInputError(
                f"a site must come from growkit.find_sites(model, example){item}, got "
                f"{type(site).__name__} {site!r:.80}"
            )
    refuse_stale(model, sites)


def _check_own(model: nn.Module, site: GrowthSite) -> None:
    if not site.graph.is_of(model):
        raise GrowthRefused(
            f"a site must be found in the model itself, but {site.name!r} was found in another one, or in the one that "
            "this is a copy of; call find_sites(model, example)"
        )


def _check_numbers(site: GrowthSite, num_new: Any, seed: Any) -> None:
    if isinstance(num_new, bool) or not isinstance(num_new, Integral) or int(num_new) < 1:
        raise GrowthRefused(f"{site.name} must grow by a whole number of units >= 1, got {num_new!r}")
    if int(num_new) > (most := sys.maxsize // 8 // max(1, site.params_per_unit)):
        raise GrowthRefused(f"{site.name} must grow by units that memory can address, at most {most}, got {num_new}")
    site.grown(int(num_new))
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise UserInputError(f"seed must be a whole number, got {seed!r}")


def _tried(model: nn.Module, site: GrowthSite, inputs: Inputs) -> GrowthSite:
    """The site after a trial on a perturbed copy, which is made once.

    Raises:
        SurgeryError: the trial shows that the function would change, or that the model fails at another width.
    """
    if site.settled:
        return site
    with untouched(model):
        verdict = try_out(model, [site], inputs)
    if verdict.sites:
        return verdict.sites[0]
    place = f" ({site.location})" if site.location else ""
    raise SurgeryError(
        f"{site.name!r}{place} cannot be widened: {verdict.refusals[0].reason}; look for its width {site.width} in the "
        "forward. Sites that can only grow together are found by growkit.verify_sites(model, sites)"
    )


def _watched(copies: Sequence[nn.Module], site: GrowthSite, example: Tensor | tuple | dict | None) -> Iterator[Watched]:
    """What the copies compute before the edit."""
    if not isinstance(copies, Sequence):
        raise UserInputError(f"copies must be a list of modules, got {type(copies).__name__}")
    for number, copy in enumerate(copies):
        inside = inside_of(copy)
        refuse_wrappers(inside)
        check_values(inside)
        refuse_stale(inside, [site], name := f"copies[{number}]")
        yield watch(inside, example_for(inside, site.graph.inputs, example), name)


def _no_loss(outputs: Any, targets: Tensor) -> Tensor:
    raise AssertionError("an initializer without data asked for a loss")
