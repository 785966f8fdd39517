"""One operation or idiom per entry, between a layer `a` that makes units and a layer `b` that reads them.

What each entry expects: the width of every site, or the reason for a width that must be refused or that grows by whole
copies only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class ByCopies(str):
    """Why a width cannot grow unit by unit; whole copies of all its units are exact."""


Expected = dict[str, int | str]
Factory = Callable[[], Any]


@dataclass(frozen=True)
class Case:
    """A module, an example, and what is expected of its widths."""

    make: Factory
    example: Callable[[], Tensor]
    expected: Expected

    @property
    def accepts(self) -> bool:
        """Whether a site is expected."""
        return any(isinstance(width, int | ByCopies) for width in self.expected.values())


class Net(nn.Module):
    """`b(idiom(self, a(x)))`, with a second maker `c` if the idiom takes two operands."""

    def __init__(self, maker: Factory, example: Tensor, idiom: Callable, parts: dict[str, Factory], operands: int):
        super().__init__()
        self.idiom, self.makers = idiom, ("a", "c")[:operands]
        for name in self.makers:
            setattr(self, name, maker())
        for name, make in parts.items():
            setattr(self, name, make())
        out = idiom(self, *(getattr(self, name)(example) for name in self.makers))
        conv = {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}.get(out.dim())
        spatial = isinstance(self.a, nn.modules.conv._ConvNd) and out.dim() == example.dim()
        self.b = conv(out.shape[1], 4, 1) if spatial and conv else nn.Linear(out.shape[-1], 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.idiom(self, *(getattr(self, name)(x) for name in self.makers)))


def kind(maker: Factory, *shape: int, operands: int = 1) -> Callable[..., Case]:
    """A family of cases: what makes the units, and the shape of an example."""

    def case(idiom: Callable, expected: Expected | str | int, **parts: Factory) -> Case:
        def example() -> Tensor:
            return torch.randn(*shape)

        expect = expected if isinstance(expected, dict) else {"a": expected}
        return Case(lambda: Net(maker, example(), idiom, parts, operands), example, expect)

    return case


def net(make: Factory, example: Callable[[], Tensor], expected: Expected) -> Case:
    return Case(make, example, expected)


def weight(*shape: int) -> Factory:
    return lambda: nn.Parameter(torch.randn(*shape))


vector = kind(lambda: nn.Linear(6, 8), 4, 6)
pair = kind(lambda: nn.Linear(6, 8), 4, 6, operands=2)
tokens = kind(lambda: nn.Linear(6, 8), 4, 5, 6)
tokens2 = kind(lambda: nn.Linear(6, 8), 4, 5, 6, operands=2)
series = kind(lambda: nn.Conv1d(3, 8, 3, padding=1), 4, 3, 12)
image = kind(lambda: nn.Conv2d(3, 8, 3, padding=1), 4, 3, 6, 6)
images = kind(lambda: nn.Conv2d(3, 8, 3, padding=1), 4, 3, 6, 6, operands=2)
volume = kind(lambda: nn.Conv3d(2, 8, 3, padding=1), 4, 2, 4, 4, 4)
