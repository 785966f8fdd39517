"""A small net, a batch, and SAM around them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from growkit.optim import SAM

Closure = Callable[[], Tensor]


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(12, 2)
    )


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 4, 4, generator=generator), torch.arange(6) % 2


def closure_of(model: nn.Module, x: Tensor, y: Tensor) -> Closure:
    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def sam(model: nn.Module, base: Any = torch.optim.SGD, **settings: Any) -> SAM:
    settings = {"lr": 0.1, "momentum": 0.9, **settings} if base is torch.optim.SGD else {"lr": 0.01, **settings}
    return SAM(model.parameters(), base, model=model, **settings)


def train(optimizer: torch.optim.Optimizer, model: nn.Module, steps: int, first: int = 0) -> None:
    for t in range(first, first + steps):
        torch.manual_seed(t)
        optimizer.step(closure_of(model, *batch(t)))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def alone(
    weight: nn.Parameter, loss: Callable[[Tensor], Tensor], kind: Any = SAM, **settings: Any
) -> tuple[Any, Closure]:
    """SAM, or what is made like it, on one weight tensor and a loss of it."""
    holder = nn.Module()
    holder.weight = weight
    optimizer = kind([weight], torch.optim.SGD, model=holder, **settings)

    def closure() -> Tensor:
        value = loss(weight)
        value.backward()
        return value

    return optimizer, closure
