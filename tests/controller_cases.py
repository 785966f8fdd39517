"""Small models under a growth controller."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.growth import (
    FixedSettings,
    GrowthSettings,
    PeriodicSettings,
)
from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, GrowthWaits
from growkit.graph import GrowthSite, Sites, find_sites
from growkit.growth.base import Clock, Extended, History, Initializer
from growkit.growth.controller import GrowthController
from growkit.growth.event import GrowthEvent
from growkit.surgery import Inputs

FP32 = ComputePolicy("cpu", "fp32", False, "a test")

CLOCK = Clock(steps_per_epoch=5, total_steps=20)

EVERY_STEP = PeriodicSettings(start=1, every=1, unit="steps")


class Mixed(nn.Module):
    """A chain (`inner`), and a residual stream (`stem`) that is none."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(5, 4),
            nn.Linear(4, 6),
            nn.Linear(6, 4),
            nn.Linear(4, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.outer(torch.tanh(self.inner(x))))


class Chain(nn.Sequential):
    """Three hidden layers one after the other; neighbours share a weight."""

    def __init__(self) -> None:
        layers = [nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)]
        super().__init__(*layers)


class Fixed(nn.Sequential):
    """Nothing in it can grow."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 3))


@functools.cache
def traced(kind: type[nn.Module]) -> tuple[nn.Module, Sites]:
    torch.manual_seed(0)
    model = kind()
    return model, find_sites(model, torch.randn(4, 5))


@dataclass
class Run:
    """A controller and what it works on."""

    controller: GrowthController
    model: nn.Module
    optimizer: torch.optim.Optimizer
    inputs: Inputs
    targets: Tensor
    history: History

    def prepare(self) -> Run:
        self.controller.prepare(self.inputs)
        return self

    def grow(self, step: int = 1) -> GrowthEvent:
        self.history.step = step
        return self.controller.grow(self.optimizer, self.inputs, self.targets, self.history)

    def train(self) -> None:
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(*self.inputs.args), self.targets).backward()
        self.optimizer.step()


def start(kind: type[nn.Module] = Mixed, compute: ComputePolicy = FP32, **settings: Any) -> Run:
    model, sites = traced(kind)
    model = copy.deepcopy(model)
    for site in sites:
        site.resize(site.seed_width)
    torch.manual_seed(1)
    inputs, targets = torch.randn(12, 5), torch.arange(12) % 3
    given = {"when": EVERY_STEP, "how_many": FixedSettings(units=2)} | settings
    controller = GrowthController(
        model, sites, GrowthSettings(**given), F.cross_entropy, compute, torch.Generator().manual_seed(0)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Run(controller, model, optimizer, Inputs((inputs,)), targets, History(CLOCK))


@dataclass(frozen=True)
class Careless(Initializer):
    """Fills both sides at some sites: what is not verified goes wrong."""

    wrong: tuple[str, ...]
    name = "careless"

    def refuses(self, site: Any) -> str | None:
        return None

    def extend(self, site: Any, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        values = {}
        for edit in site.tensor_edits(num_new):
            shape = list(measurement.tensor(edit.names[0]).shape)
            for dim, index in enumerate(edit.index_maps):
                if index is not None and len(shape) > 1 and (dim == 0 or site.name in self.wrong):
                    values[edit.names[0], dim] = torch.randn(
                        [num_new if d == dim else size for d, size in enumerate(shape)], generator=generator
                    )
        return Extended(values, "zero_fan_out", "a test")


class Unwilling(Initializer):
    """Cannot serve some sites on this batch, and serves the others as another initializer does.

    Args:
        served: the other one.
        sites: names of those that it cannot serve.
        because: `GrowthWaits` where it may on a later batch.
    """

    name = "unwilling"

    def __init__(self, served: Initializer, sites: tuple[str, ...], because: type[GrowthRefused] = GrowthWaits):
        self.served, self.sites, self.because = served, sites, because

    def refuses(self, site: GrowthSite) -> str | None:
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        if site.name in self.sites:
            raise self.because("no gradient on this batch")
        return self.served.extend(site, num_new, measurement, generator)
