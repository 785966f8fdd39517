"""Contracts for plug-in authors: what every initializer, trigger, selector and allocator must do, as plain checks.

Each check takes the plug-in, raises AssertionError with a reason where it breaks the contract, and needs no pytest:

    @pytest.mark.parametrize("check", growkit.testing.INITIALIZER_CONTRACT)
    def test_contract(check):
        check(MyInitializer())
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.graph import GrowthSite, find_sites
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.norms import slice_norm
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
        """The model, widened inside the context and as it was behind it."""
        edit = grow(self.model, [Growth(self.site, num_new, Extension(extended.values))])
        try:
            yield self.model
        finally:
            edit.undo()


def _mlp(activation: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), activation, nn.Linear(6, 4))


def _conv(*between: nn.Module) -> nn.Module:
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(2, 5, 3, stride=2, padding=1), *between, nn.Conv2d(5, 4, 3, padding=1), pool)


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


def _served(initializer: Initializer) -> Iterator[GrowthCase]:
    for name in GROWTH_CASES:
        case = growth_case(name)
        if initializer.refuses(case.site) is None:
            yield case


def keeps_the_function(initializer: Initializer) -> None:
    """Outputs stay, to 1e-5 of their size, in eval and train mode."""
    for case in _served(initializer):
        extended, inputs = case.extend(initializer), Inputs((case.inputs,))
        before = observe(case.model, inputs)
        with case.grown(extended) as model:
            change = function_change(before, observe(model, inputs))
        expect(change.worst <= 1e-5, f"{case.name}: the outputs must stay, they changed by {change}")


def silences_exactly_one_side(initializer: Initializer) -> None:
    """The side that `form` names is zero, the other one is not, for every unit."""
    for case in _served(initializer):
        extended = case.extend(initializer)
        fan_in, fan_out = _sides(case, extended)
        silent, loud = (fan_in, fan_out) if extended.form == "zero_fan_in" else (fan_out, fan_in)
        expect(extended.form in ("zero_fan_in", "zero_fan_out"), f"form must name the zero side, got {extended.form!r}")
        expect(bool((silent == 0).all()), f"{case.name}: {extended.form} must leave that side zero")
        expect(bool((loud > 0).all()), f"{case.name}: a unit that is zero on both sides never learns")
        expect(bool(extended.reason), f"{case.name}: the form must come with a reason")


def gives_slices_the_norm_of_its_settings(initializer: Any) -> None:
    """A unit's new slice is as long as `settings` say: relative to the mean of the existing ones, or absolute."""
    for norm in ("mean", "fixed"):
        settings = initializer.settings.model_copy(update={"norm": norm, "scale": 0.37})
        scaled = replace(initializer, settings=settings)
        for case in _served(scaled):
            chain = case.site.chain
            if chain is None:
                continue
            extended = case.extend(scaled)
            fan_in, fan_out = _sides(case, extended)
            made = extended.form == "zero_fan_out"
            weight = case.model.get_parameter(chain.producer if made else chain.consumer).detach()
            wanted = torch.full((NUM_NEW,), slice_norm(weight, 0 if made else 1, settings))
            expect(
                torch.allclose(fan_in if made else fan_out, wanted, rtol=1e-4),
                f"{case.name}: new slices must have norm {wanted[0]:.4g}, got {fan_in if made else fan_out}",
            )


def is_deterministic_under_its_generator(initializer: Initializer) -> None:
    """The same generator state gives the same units, and torch's global stream is neither read nor moved."""
    for case in _served(initializer):
        before = torch.get_rng_state()
        first = case.extend(initializer, seed=5)
        expect(torch.equal(before, torch.get_rng_state()), f"{case.name}: global random numbers were drawn")
        with isolated(99):
            second = case.extend(initializer, seed=5)
        expect(first.values.keys() == second.values.keys(), f"{case.name}: other tensors the second time")
        same = all(torch.equal(first.values[key], second.values[key]) for key in first.values)
        expect(same, f"{case.name}: other values the second time")


def lets_every_unit_learn(initializer: Initializer) -> None:
    """The zero side of every new unit has a finite gradient that is not zero."""
    for case in _served(initializer):
        extended = case.extend(initializer)
        with case.grown(extended) as model, isolated(1):
            model.train().zero_grad()
            F.cross_entropy(model(case.inputs), case.targets).backward()
            gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            fan_in, fan_out = _new_norms(case, {n: g.detach() for n, g in gradients.items()})
        learning = fan_in if extended.form == "zero_fan_in" else fan_out
        expect(bool(learning.isfinite().all()), f"{case.name}: gradients must be finite, got {learning}")
        expect(bool((learning > 0).all()), f"{case.name}: every new unit must learn, gradient norms are {learning}")


def leaves_the_model_alone(initializer: Initializer) -> None:
    """Measuring and extending change nothing: weights, buffers, gradients, modes."""
    for case in _served(initializer):
        case.model.train(False)
        F.cross_entropy(case.model(case.inputs), case.targets).backward()
        before = {n: t.clone() for n, t in case.model.state_dict().items()}
        gradients = {n: p.grad.clone() for n, p in case.model.named_parameters() if p.grad is not None}
        case.extend(initializer)
        after = case.model.state_dict()
        expect(all(torch.equal(before[n], after[n]) for n in before), f"{case.name}: weights or buffers changed")
        kept = {n: p.grad for n, p in case.model.named_parameters() if p.grad is not None}
        same = gradients.keys() == kept.keys() and all(torch.equal(gradients[n], kept[n]) for n in kept)
        expect(same, f"{case.name}: gradients changed")
        expect(not any(m.training for m in case.model.modules()), f"{case.name}: modes changed")


INITIALIZER_CONTRACT = (
    keeps_the_function,
    silences_exactly_one_side,
    gives_slices_the_norm_of_its_settings,
    is_deterministic_under_its_generator,
    lets_every_unit_learn,
    leaves_the_model_alone,
)
"""For `growkit.growth.base.Initializer`; refused sites are skipped. Its `settings` must be InitializerSettings."""


def _sides(case: GrowthCase, extended: Extended) -> tuple[Tensor, Tensor]:
    """Norms of the new units' fan-in (bias included) and fan-out, [K] each."""
    with case.grown(extended) as model:
        return _new_norms(case, {name: p.detach().clone() for name, p in model.named_parameters()})


def _new_norms(case: GrowthCase, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The same, of any tensors of the grown shapes."""
    squares = {"producer": torch.zeros(NUM_NEW), "consumer": torch.zeros(NUM_NEW)}
    for member in case.site.members:
        if member.role in squares and member.names[0] in tensors:
            slices = tensors[member.names[0]].movedim(member.dim, 0)[-NUM_NEW:]
            squares[member.role] += slices.flatten(1).square().sum(1) if slices.dim() > 1 else slices.square()
    return squares["producer"].sqrt(), squares["consumer"].sqrt()
