"""The numbers of one step of AdaBound."""

from __future__ import annotations

import math
from typing import NamedTuple

__all__ = ["Rates"]


class Rates(NamedTuple):
    """The numbers of one step.

    Attributes:
        step: of the adaptive phase, bias-corrected.
        lower, upper: the bounds of a step size.
        beta1, beta2: of the moving means.
        eps: added to the root of the mean square.
        scale: of the clipped step size.
        decay: times the weights, added to the gradient.
        shrinkage: the share of the weights that is taken off beside the step.
        maximize: whether the gradient is turned round.
    """

    step: float
    lower: float
    upper: float
    beta1: float
    beta2: float
    eps: float
    scale: float
    decay: float
    shrinkage: float
    maximize: bool

    @property
    def least_root(self) -> float:
        """The root of the mean square at and below which a step size is `upper`: that is what is clipped here."""
        return self.step / self.upper if self.upper else math.inf

    @property
    def largest_root(self) -> float:
        """The root at and above which a step size is `lower`."""
        return self.step / self.lower if self.lower else math.inf
