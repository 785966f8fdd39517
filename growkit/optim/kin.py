"""The kin of SAM: ASAM, and adversarial model perturbation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from growkit.errors import UserInputError
from growkit.optim.checks import Range, check_ranges
from growkit.optim.sam import SAM, Adaptive

__all__ = ["AMP", "ASAM"]


class ASAM(SAM):
    """SAM that follows every rescaling of the weights which keeps the function; see there for the arguments."""

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer] | torch.optim.Optimizer = torch.optim.SGD,
        *,
        rho: float = 0.5,
        adaptive: Adaptive = True,
        eta: float = 0.01,
        **settings: Any,
    ):
        super().__init__(params, base, rho=rho, adaptive=adaptive, eta=eta, **settings)


class AMP(SAM):
    """Adversarial model perturbation (Zheng, Zhang and Mao, CVPR 2021), with one inner step.

    The weights move by `inner_lr` times their gradient, at most by rho: w + min(inner_lr, rho / |g|) g. Where the loss
    is flat they stay nearly where they are, which SAM's do not; see there for the other arguments.
    """

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer] | torch.optim.Optimizer = torch.optim.SGD,
        *,
        rho: float = 0.5,
        inner_lr: float = 1.0,
        **settings: Any,
    ):
        check_ranges(type(self).__name__, {"inner_lr": inner_lr}, {"inner_lr": Range(0.0, open_below=True)})
        taken = sorted({"adaptive", "norm", "second_order", "eta", "by"} & {*settings})
        if taken:
            raise UserInputError(f"AMP moves along the gradient itself, so it takes no {', '.join(taken)}")
        super().__init__(params, base, rho=rho, **settings)
        self.neighbourhood.inner_lr = inner_lr

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings out of their ranges, before a group is added."""
        super().check_group(group)
        if group["adaptive"]:
            raise UserInputError("AMP moves along the gradient itself, so it takes no adaptive")
