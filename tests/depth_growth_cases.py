"""Residual models under a growth controller that inserts blocks."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from controller_cases import CLOCK, EVERY_STEP, FP32, Run
from torch import Tensor, nn

from growkit.config.growth import DepthSettings, FixedSettings, GrowthSettings, RandomSettings
from growkit.graph import find_sites
from growkit.growth.base import History
from growkit.growth.controller import GrowthController
from growkit.surgery import Inputs


class Block(nn.Module):
    """x + outer(tanh(inner(x)))."""

    def __init__(self, width: int = 4, hidden: int = 6) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(x)))


class Tower(nn.Module):
    """Two residual blocks in a list, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(5, 4), nn.ModuleList([Block(), Block()]), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


@functools.cache
def seed() -> Tower:
    torch.manual_seed(0)
    return Tower()


def start(mode: str = "depth", target: Any = 3.0, make_optimizer: Any = None, **settings: Any) -> Run:
    """A prepared run over a `Tower`; hidden widths grow in mode "both"."""
    model = copy.deepcopy(seed())
    torch.manual_seed(1)
    inputs, targets = torch.randn(12, 5), torch.arange(12) % 3
    widths: dict[str, Any] = {
        "how_many": FixedSettings(units=2),
        "sites": ("blocks.*",),
        "initializer": RandomSettings(),
        "target": 2.0,
    }
    depth = DepthSettings(target=target, blocks_per_event=settings.pop("blocks", 1))
    given = {"when": EVERY_STEP, "depth": depth} | (widths if mode == "both" else {}) | settings
    controller = GrowthController(
        model,
        find_sites(model, inputs),
        GrowthSettings(mode=mode, **given),  # type: ignore[arg-type]
        F.cross_entropy,
        FP32,
        torch.Generator().manual_seed(0),
    )
    make = make_optimizer or (lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9))
    return Run(controller, model, make(model), Inputs((inputs,)), targets, History(CLOCK)).prepare()
