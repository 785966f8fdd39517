"""Forwards that raise, return, read or write what a plain net does not."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """A plain net; subclasses spoil it."""

    def __init__(self, inputs: int = 6) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(inputs, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.tanh(self.a(x)))


class Raises(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("the cat ate it")


class RaisesOddly(Net):
    """An exception whose text is empty."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


class RaisesInEval(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise NotImplementedError("eval is not there yet")
        return super().forward(x)


class Returns(Net):
    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(super().forward(x))


@dataclass
class Answer:
    logits: Tensor
    label: str = "cat"


class Record(UserDict):
    """A mapping that is no dict, as tokenizers and libraries return."""


class Nested:
    """An object with tensors and other things in its attributes, one of them itself."""

    def __init__(self, y: Tensor) -> None:
        self.name, self.inner, self.all = "nested", Answer(y), [y, {"y": y}]
        self.itself = self


class OwnCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad[0]


class Cubed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(OwnCube.apply(self.a(x)))


class WritesIntoInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.0
        return super().forward(x)


class TakesPairs(Net):
    def forward(self, pairs: Any) -> Tensor:  # type: ignore[override]
        return super().forward(pairs[0][0] + pairs[1][0])


class Generates(Net):
    def forward(self, x: Tensor) -> Any:
        return (self.b(torch.tanh(self.a(x))) for _ in range(2))


class NotFinite(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


class NoOutput(Net):
    def forward(self, x: Tensor) -> None:
        self.b(self.a(x))


class PrintsAndReads(Net):
    """Reads its own source of randomness and the clock of its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)
