"""Contracts for plug-in authors: what every initializer, trigger, selector and allocator must do, as plain checks.

Each check takes the plug-in, raises AssertionError with a reason where it breaks the contract, and needs no pytest:

    @pytest.mark.parametrize("check", growkit.testing.INITIALIZER_CONTRACT)
    def test_contract(check):
        check(MyInitializer())
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.growth import NormSettings
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite, find_sites
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.norms import slice_norm
from growkit.growth.rewriting import Rewriting
from growkit.growth.statistics import Measurement
from growkit.rng import isolated
from growkit.surgery import Extension, Growth, Inputs, function_change, grow, observe
from growkit.testing_policies import (
    ALLOCATOR_CONTRACT,
    SELECTOR_CONTRACT,
    TRIGGER_CONTRACT,
    expect,
    history_at,
    prospects_of,
    site_states,
)

__all__ = [
    "ALLOCATOR_CONTRACT",
    "GROWTH_CASES",
    "INITIALIZER_CONTRACT",
    "SELECTOR_CONTRACT",
    "TRIGGER_CONTRACT",
    "GrowthCase",
    "growth_case",
    "history_at",
    "prospects_of",
    "site_states",
]

NUM_NEW = 3


@dataclass(frozen=True)
class GrowthCase:
    """A small model with one site and a batch, to try initializers on.

    Attributes:
        name: one of GROWTH_CASES.
        model: may be changed.
        site: the one to grow; its width is shared with every other copy of the case.
        inputs: [B, ...].
        targets: class numbers [B].
    """

    name: str
    model: nn.Module
    site: GrowthSite
    inputs: Tensor
    targets: Tensor

    def measurement(self) -> Measurement:
        """Facts of the batch."""
        return Measurement(self.model, F.cross_entropy, Inputs((self.inputs,)), self.targets, (self.site,))

    def extend(self, initializer: Initializer, num_new: int = NUM_NEW, seed: int = 0) -> Extended:
        """What `initializer` answers."""
        return initializer.extend(self.site, num_new, self.measurement(), torch.Generator().manual_seed(seed))

    @contextmanager
    def grown(self, extended: Extended, num_new: int = NUM_NEW) -> Iterator[nn.Module]:
        """The model, rewritten and widened inside the context and as it was behind it."""
        rewriting = Rewriting()
        try:
            rewriting.write(self.model, {self.site.name: extended.rewrites})
            edit = grow(self.model, [Growth(self.site, num_new, Extension(extended.values))])
            try:
                yield self.model
            finally:
                edit.undo()
        finally:
            rewriting.undo()


def _mlp(activation: nn.Module, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(5, width), activation, nn.Linear(width, 4))


def _conv(*between: nn.Module, stride: int = 2) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(2, 5, 3, stride=stride, padding=1), *between, nn.Conv2d(5, 4, 3, padding=1), pool)


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Linear(5, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(x + torch.tanh(self.inner(x)))


def _zero(model: nn.Module, layer: int) -> nn.Module:
    nn.init.zeros_(model.get_parameter(f"{layer}.weight"))
    return model


GROWTH_CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "tanh": (lambda: _mlp(nn.Tanh()), (5,)),
    "torch's relu": (lambda: _mlp(nn.ReLU()), (5,)),
    "relu in place": (lambda: _mlp(nn.ReLU(inplace=True)), (5,)),
    "sigmoid": (lambda: _mlp(nn.Sigmoid()), (5,)),
    "conv": (lambda: _conv(nn.GELU()), (2, 7, 6)),
    "conv, batch norm": (lambda: _conv(nn.BatchNorm2d(5), nn.ReLU()), (2, 7, 6)),
    "conv, stride 1": (lambda: _conv(nn.SiLU(), stride=1), (2, 5, 6)),
    "gelu": (lambda: _mlp(nn.GELU()), (5,)),
    "silu": (lambda: _mlp(nn.SiLU()), (5,)),
    "selu": (lambda: _mlp(nn.SELU()), (5,)),
    "softplus": (lambda: _mlp(nn.Softplus()), (5,)),
    "batch norm": (lambda: _mlp(nn.Sequential(nn.BatchNorm1d(6), nn.Tanh())), (5,)),
    "dropout": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 4)), (5,)),
    "zero consumer": (lambda: _zero(_mlp(nn.Tanh()), 2), (5,)),
    "zero producer": (lambda: _zero(_mlp(nn.Tanh()), 0), (5,)),
    "residual stream": (_Residual, (5,)),
}
"""Models by what is special about them; each has its site at the first layer."""


@functools.cache
def _traced(name: str) -> tuple[nn.Module, GrowthSite, Tensor]:
    make, shape = GROWTH_CASES[name]
    with isolated(0):
        model, inputs = make(), torch.randn(32, *shape)
        return model, find_sites(model, inputs)[0], inputs


def growth_case(name: str) -> GrowthCase:
    """A fresh copy of the case `name`; traces are made once."""
    model, site, inputs = _traced(name)
    targets = torch.arange(len(inputs)) % 4
    return GrowthCase(name, copy.deepcopy(model), site, inputs, targets)


@functools.lru_cache(maxsize=2)
def _answers(initializer: Initializer) -> dict[str, Extended]:
    """By case, what an initializer answers; it may refuse a site, or what the batch shows."""
    answers = {}
    for name in GROWTH_CASES:
        case = growth_case(name)
        if initializer.refuses(case.site) is None:
            with suppress(GrowthRefused):
                answers[name] = case.extend(initializer)
    return answers


def _served(initializer: Initializer) -> Iterator[tuple[GrowthCase, Extended]]:
    """The cases that an initializer serves, each afresh, with its answers."""
    for name, extended in _answers(initializer).items():
        yield growth_case(name), extended


def serves_or_says_why_not(initializer: Initializer) -> None:
    """More than half of the cases are served, and one unit more at width 2 too; a refusal gives a reason."""
    served = {case.name for case, _ in _served(initializer)}
    expect(2 * len(served) > len(GROWTH_CASES), f"only {sorted(served)} of {len(GROWTH_CASES)} cases are served")
    for name in GROWTH_CASES.keys() - served:
        case = growth_case(name)
        reason = initializer.refuses(case.site)
        if reason is None:
            with suppress(GrowthRefused):
                case.extend(initializer)
                raise AssertionError(f"{name}: refused once and served once")
        else:
            expect(bool(reason), f"{name}: a refusal must come with a reason")
    with isolated(0):
        model, inputs = _mlp(nn.Tanh(), width=2), torch.randn(32, 5)
    narrow = GrowthCase("width 2", model, find_sites(model, inputs)[0], inputs, torch.arange(32) % 4)
    with narrow.grown(narrow.extend(initializer, 1), 1) as model:
        expect(bool(model(inputs).isfinite().all()), "width 2: outputs are not finite")


def keeps_the_function(initializer: Initializer) -> None:
    """Outputs stay, to 1e-5 of their size, in eval and train mode; where they are to change, with silent units."""
    for case, extended in _served(initializer):
        inputs = Inputs((case.inputs,))
        kept = extended if initializer.preserves else extended.silenced(case.site, NUM_NEW)
        before = observe(case.model, inputs)
        with case.grown(kept) as model:
            change = function_change(before, observe(model, inputs))
        expect(change.worst <= 1e-5, f"{case.name}: the outputs must stay, they changed by {change}")
        if not initializer.preserves:
            with case.grown(extended) as model:
                change = function_change(before, observe(model, inputs))
            expect(0.0 < change.worst < float("inf"), f"{case.name}: a change by design must be one, got {change}")


def is_what_its_form_says(initializer: Initializer) -> None:
    """New units are what `form` says: see `Extended`."""
    for case, extended in _served(initializer):
        check = _FORMS.get(extended.form)
        expect(check is not None, f"{case.name}: form must be one of {', '.join(_FORMS)}, got {extended.form!r}")
        expect(bool(extended.reason), f"{case.name}: the form must come with a reason")
        before = _unit_vectors(case, dict(case.model.named_parameters()))
        with case.grown(extended) as model:
            after = _unit_vectors(case, {name: p.detach().clone() for name, p in model.named_parameters()})
        assert check is not None
        wrong = check(before, after)
        expect(wrong is None, f"{case.name}: {extended.form} must {wrong}")


def gives_slices_the_norm_of_its_settings(initializer: Any) -> None:
    """A unit's new slice is as long as `settings` say: relative to the mean of the existing ones, or absolute.

    Where `settings` have a scale. One zero side: the other one has that norm. Both sides: one is twice as long for
    twice the scale.
    """
    if not isinstance(initializer.settings, NormSettings):
        return
    for norm in ("mean", "fixed"):
        single, double = (
            {case.name: (case, extended) for case, extended in _served(replace(initializer, settings=settings))}
            for scale in (0.37, 0.74)
            for settings in [initializer.settings.model_copy(update={"norm": norm, "scale": scale})]
        )
        for case, extended in single.values():
            norms, longer = _sides(case, extended), _sides(case, double[case.name][1])
            ratios = [after / before for before, after in zip(norms, longer, strict=True) if bool((before > 0).all())]
            expect(
                any(torch.allclose(ratio, torch.full_like(ratio, 2.0), rtol=1e-4) for ratio in ratios),
                f"{case.name}: twice the scale must give slices of twice the norm on a side, got {ratios}",
            )
            chain, made = case.site.chain, extended.form == "zero_fan_out"
            if chain is None or extended.form not in ("zero_fan_in", "zero_fan_out"):
                continue
            weight = case.model.get_parameter(chain.producer if made else chain.consumer).detach()
            settings = initializer.settings.model_copy(update={"norm": norm, "scale": 0.37})
            wanted = torch.full((NUM_NEW,), slice_norm(weight, 0 if made else 1, settings))
            got = norms[0] if made else norms[1]
            expect(
                torch.allclose(got, wanted, rtol=1e-4),
                f"{case.name}: new slices must have norm {wanted[0]:.4g}, got {got}",
            )


def is_deterministic_under_its_generator(initializer: Initializer) -> None:
    """The same generator state gives the same units, and torch's global stream is neither read nor moved."""
    before = torch.get_rng_state()
    _answers.cache_clear()
    first = _answers(initializer)
    expect(torch.equal(before, torch.get_rng_state()), "global random numbers were drawn")
    _answers.cache_clear()
    with isolated(99):
        second = _answers(initializer)
    expect(first.keys() == second.keys(), "other cases were served the second time")
    for name, extended in first.items():
        expect(_same(extended.values, second[name].values), f"{name}: other slices the second time")
        expect(_same(extended.rewrites, second[name].rewrites), f"{name}: other rewrites the second time")


def _same(one: Mapping[Any, Tensor], other: Mapping[Any, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def lets_every_unit_learn(initializer: Initializer) -> None:
    """A side of every new unit that may be zero has a finite gradient that is not zero; of other units, either side."""
    for case, extended in _served(initializer):
        with case.grown(extended) as model:
            fan_in, fan_out = _new_norms(case, _gradients(case, model))
        learning = {"zero_fan_in": fan_in, "zero_fan_out": fan_out}.get(extended.form, torch.maximum(fan_in, fan_out))
        expect(bool(learning.isfinite().all()), f"{case.name}: gradients must be finite, got {learning}")
        expect(bool((learning > 0).all()), f"{case.name}: every new unit must learn, gradient norms are {learning}")


def wakes_every_unit_with_the_first_step(initializer: Initializer) -> None:
    """After one step of SGD every new unit is made and read, is no other unit's twin, and goes on learning."""
    for case, extended in _served(initializer):
        with case.grown(extended) as model:
            gradients = _gradients(case, model)
            parameters = dict(model.named_parameters())
            kept = {name: parameter.detach().clone() for name, parameter in parameters.items()}
            for name, gradient in gradients.items():
                parameters[name].data.sub_(gradient, alpha=0.1)
            fan_in, fan_out = _unit_vectors(case, {name: p.detach().clone() for name, p in parameters.items()})
            again = torch.maximum(*_new_norms(case, _gradients(case, model)))
            for name, parameter in parameters.items():
                parameter.data.copy_(kept[name])
        for side, vectors in (("fan-in", fan_in), ("fan-out", fan_out)):
            silent = (vectors[-NUM_NEW:] == 0).all(1)
            expect(not bool(silent.any()), f"{case.name}: after a step the {side} of a new unit is still zero")
        apart = torch.cdist(whole := torch.cat([fan_in, fan_out], 1), whole)[-NUM_NEW:]
        apart[torch.arange(NUM_NEW), torch.arange(len(whole))[-NUM_NEW:]] = float("inf")
        expect(bool((apart > 1e-6).all()), f"{case.name}: after a step a new unit is the twin of another one")
        expect(bool((again > 0).all()), f"{case.name}: after a step the gradients of new units are {again}")


def leaves_the_model_alone(initializer: Initializer) -> None:
    """Measuring and extending change nothing: weights, buffers, gradients, modes, widths."""
    for name in GROWTH_CASES:
        case = growth_case(name)
        if initializer.refuses(case.site) is not None:
            continue
        case.model.train(False)
        F.cross_entropy(case.model(case.inputs), case.targets).backward()
        before = {n: t.clone() for n, t in case.model.state_dict().items()}
        gradients = {n: p.grad.clone() for n, p in case.model.named_parameters() if p.grad is not None}
        width = case.site.width
        with suppress(GrowthRefused):
            case.extend(initializer)
        after = case.model.state_dict()
        expect(all(torch.equal(before[n], after[n]) for n in before), f"{case.name}: weights or buffers changed")
        kept = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
        same = gradients.keys() == kept.keys() and all(torch.equal(gradients[n], kept[n]) for n in kept)
        expect(same, f"{case.name}: gradients changed")
        expect(not any(m.training for m in case.model.modules()), f"{case.name}: modes changed")
        expect(case.site.width == width, f"{case.name}: the site has another width")


INITIALIZER_CONTRACT = (
    serves_or_says_why_not,
    keeps_the_function,
    is_what_its_form_says,
    gives_slices_the_norm_of_its_settings,
    is_deterministic_under_its_generator,
    lets_every_unit_learn,
    wakes_every_unit_with_the_first_step,
    leaves_the_model_alone,
)
"""For `growkit.growth.base.Initializer`, a frozen dataclass with a field `settings`; refused sites are skipped."""

_Units = tuple[Tensor, Tensor]  # fan-ins [units, D] and fan-outs [units, E]


def _zero_fan_in(before: _Units, after: _Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:] for side in after)
    return None if not fan_in.any() and bool(fan_out.any(1).all()) else "leave the fan-in zero and no fan-out"


def _zero_fan_out(before: _Units, after: _Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:] for side in after)
    return None if not fan_out.any() and bool(fan_in.any(1).all()) else "leave the fan-out zero and no fan-in"


def _paired(before: _Units, after: _Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:] for side in after)
    pairs = NUM_NEW // 2
    equal = torch.equal(fan_in[0 : 2 * pairs : 2], fan_in[1 : 2 * pairs : 2])
    opposite = torch.equal(fan_out[0 : 2 * pairs : 2], -fan_out[1 : 2 * pairs : 2])
    alive = bool(fan_in.any(1).all()) and bool(fan_out[: 2 * pairs].any(1).all())
    lonely = not fan_out[2 * pairs :].any()
    whole = equal and opposite and alive and lonely
    return None if whole else "give pairs equal fan-ins and opposite fan-outs, and the last of an odd number zero"


def _copied(before: _Units, after: _Units) -> str | None:
    (old_in, old_out), (fan_in, fan_out) = before, after
    apart = torch.cdist(fan_in, old_in)
    origins = apart[len(old_in) :].argmin(1)
    total = fan_out[: len(old_in)].index_add(0, origins, fan_out[len(old_in) :])
    equal = bool((apart[len(old_in) :].gather(1, origins[:, None]) == 0).all())
    exact = equal and torch.allclose(total, old_out, atol=1e-6)
    return None if exact else "copy fan-ins of old units and share out their fan-outs"


def _split(before: _Units, after: _Units) -> str | None:
    (old_in, old_out), (fan_in, fan_out) = before, after
    width = len(old_in)
    for number in range(width, len(fan_in)):
        mean = (fan_in[:width] + fan_in[number]) / 2
        same_in, same_out = (mean - old_in).norm(dim=1), (fan_out[:width] + fan_out[number] - old_out).norm(dim=1)
        moved = (fan_in[:width] - fan_in[number]).norm(dim=1) > 0
        if not bool(((same_in < 1e-5) & (same_out < 1e-5) & moved).any()):
            return "put a new unit opposite an old one, the old fan-in between them, the old fan-out shared"
    return None


def _both(before: _Units, after: _Units) -> str | None:
    fan_in, fan_out = (side[-NUM_NEW:].any(1) for side in after)
    return None if bool(fan_in.all()) and bool(fan_out.any()) else "leave no fan-in zero, nor all fan-outs"


_FORMS = {
    "zero_fan_in": _zero_fan_in,
    "zero_fan_out": _zero_fan_out,
    "paired": _paired,
    "copied": _copied,
    "split": _split,
    "both": _both,
}


def _gradients(case: GrowthCase, model: nn.Module) -> dict[str, Tensor]:
    """Of the training loss, by parameter."""
    with isolated(1):
        model.train().zero_grad()
        F.cross_entropy(model(case.inputs), case.targets).backward()
    return {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}


def _unit_vectors(case: GrowthCase, tensors: Mapping[str, Tensor]) -> _Units:
    """The fan-in of every unit, biases included, and its fan-out, each as one vector; of old units only, both ways."""
    sides: dict[str, list[Tensor]] = {"producer": [], "consumer": []}
    for member in case.site.members:
        if member.role in sides and member.names[0] in tensors:
            tensor = tensors[member.names[0]].detach()
            for other in case.site.members:
                if other.names == member.names and other.dim != member.dim:
                    tensor = tensor.narrow(other.dim, 0, case.site.seed_width)
            slices = tensor.movedim(member.dim, 0)
            sides[member.role].append(slices.reshape(len(slices), -1))
    return torch.cat(sides["producer"], 1), torch.cat(sides["consumer"], 1)


def _new_norms(case: GrowthCase, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Norms of the new units' fan-in (bias included) and fan-out in tensors of the grown shapes, [K] each."""
    fan_in, fan_out = _unit_vectors(case, tensors)
    return fan_in[-NUM_NEW:].norm(dim=1), fan_out[-NUM_NEW:].norm(dim=1)


def _sides(case: GrowthCase, extended: Extended) -> tuple[Tensor, Tensor]:
    """The same of the new units themselves."""
    with case.grown(extended) as model:
        return _new_norms(case, {name: p.detach().clone() for name, p in model.named_parameters()})
