"""Small models with one site each, to try initializers on, and what their units are."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.graph import GrowthSite, find_sites
from growkit.growth.base import Extended, Initializer
from growkit.growth.rewriting import Rewriting
from growkit.growth.statistics import Measurement
from growkit.rng import isolated
from growkit.surgery import Extension, Growth, Inputs, grow

__all__ = [
    "GROWTH_CASES",
    "NUM_NEW",
    "GrowthCase",
    "Units",
    "gradients_of",
    "growth_case",
    "narrow_case",
    "new_norms",
    "sides_of",
    "unit_vectors",
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


def narrow_case() -> GrowthCase:
    """A site of width 2, the narrowest that means something."""
    with isolated(0):
        model, inputs = _mlp(nn.Tanh(), width=2), torch.randn(32, 5)
    return GrowthCase("width 2", model, find_sites(model, inputs)[0], inputs, torch.arange(32) % 4)


Units = tuple[Tensor, Tensor]
"""Fan-ins [units, D] and fan-outs [units, E]."""


def gradients_of(case: GrowthCase, model: nn.Module) -> dict[str, Tensor]:
    """Of the training loss, by parameter."""
    with isolated(1):
        model.train().zero_grad()
        F.cross_entropy(model(case.inputs), case.targets).backward()
    return {name: p.grad.detach() for name, p in model.named_parameters() if p.grad is not None}


def unit_vectors(case: GrowthCase, tensors: Mapping[str, Tensor]) -> Units:
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


def new_norms(case: GrowthCase, tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Norms of the new units' fan-in (bias included) and fan-out in tensors of the grown shapes, [K] each."""
    fan_in, fan_out = unit_vectors(case, tensors)
    return fan_in[-NUM_NEW:].norm(dim=1), fan_out[-NUM_NEW:].norm(dim=1)


def sides_of(case: GrowthCase, extended: Extended) -> tuple[Tensor, Tensor]:
    """The same of the new units themselves."""
    with case.grown(extended) as model:
        return new_norms(case, {name: p.detach().clone() for name, p in model.named_parameters()})
