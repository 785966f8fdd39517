"""SAM and AdaBound as the field's ports have them, faults included: what a test of a trap must fail on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def not_naive(ours: Any, naive: Any, *raises: type[BaseException]) -> pytest.MarkDecorator:
    """The test runs with `make` as ours, and must fail with the naive form: by an assertion, or as `raises` say."""
    fails = pytest.mark.xfail(strict=True, raises=raises or AssertionError)
    return pytest.mark.parametrize(
        "make", [pytest.param(ours, id="growkit"), pytest.param(naive, id="naive", marks=fails)]
    )


class NaiveSAM(torch.optim.Optimizer):
    """Moves by adding and restores by subtracting, wherever there is a gradient at the moment."""

    def __init__(self, params: Iterable[Any], base: Any, *, rho: float = 0.05, adaptive: bool = False, **settings: Any):
        super().__init__(params, {"rho": rho, "adaptive": adaptive, "lr": settings["lr"]})
        known = {key: settings[key] for key in ("lr", "momentum", "weight_decay") if key in settings}
        self.base = base([one for group in self.param_groups for one in group["params"]], **known)

    @torch.no_grad()
    def first_step(self, *, zero_grad: bool = True) -> None:
        places = [(one, group) for group in self.param_groups for one in group["params"] if one.grad is not None]
        sizes = [one.abs() if group["adaptive"] else torch.ones_like(one) for one, group in places]
        pulls = [size * one.grad for size, (one, _) in zip(sizes, places, strict=True)]
        length = torch.stack([pull.norm() for pull in pulls]).norm()
        for size, pull, (one, group) in zip(sizes, pulls, places, strict=True):
            self.state[one]["move"] = group["rho"] * size * pull / length
            one.add_(self.state[one]["move"])
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, *, scaler: Any = None, zero_grad: bool = True) -> None:
        self.restore()
        self.base.step()
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def restore(self) -> None:
        for one in (one for group in self.param_groups for one in group["params"] if one.grad is not None):
            if "move" in self.state[one]:
                one.sub_(self.state[one]["move"])

    def step(self, closure: Callable[[], Tensor], scaler: Any = None) -> Tensor:  # type: ignore[override]
        closure()
        if any(one.grad is not None for group in self.param_groups for one in group["params"]):
            self.first_step()
        loss = closure()
        self.second_step()
        return loss


def naive_sam(model: nn.Module, base: Any = torch.optim.SGD, **settings: Any) -> NaiveSAM:
    settings = {"lr": 0.1, "momentum": 0.9, **settings} if base is torch.optim.SGD else {"lr": 0.01, **settings}
    return NaiveSAM(model.parameters(), base, **settings)


class NaiveAdaBound(torch.optim.Optimizer):
    """The rates that the bounds belong to in a list beside the groups, one step count for all of a group."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3, eps: float = 1e-8, **settings: Any):
        super().__init__(params, {"lr": lr, "eps": eps, "count": 0})
        self.base_lrs = [group["lr"] for group in self.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, base_lr in zip(self.param_groups, self.base_lrs, strict=False):
            group["count"] += 1
            t, final = group["count"], 0.1 * group["lr"] / base_lr
            rate = group["lr"] * math.sqrt(1 - math.pow(0.999, t)) / (1 - math.pow(0.9, t))
            for one in (one for one in group["params"] if one.grad is not None):
                state = self.state[one]
                mean = state.setdefault("exp_avg", torch.zeros_like(one)).lerp_(one.grad, 0.1)
                square = state.setdefault("exp_avg_sq", torch.zeros_like(one)).lerp_(one.grad**2, 0.001)
                sizes = rate / (square.sqrt() + group["eps"])
                one.sub_(sizes.clamp(final * (1 - 1 / (1e-3 * t + 1)), final * (1 + 1 / (1e-3 * t))) * mean)
