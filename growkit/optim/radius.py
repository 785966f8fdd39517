"""Schedules of SAM's radius: what rho is multiplied by after so many steps."""

from __future__ import annotations

import math
from dataclasses import dataclass

from growkit.optim.checks import Range, check_ranges, check_whole

__all__ = ["Cosine", "Linear"]


@dataclass(frozen=True)
class Linear:
    """From 1 in a straight line to `final` after `total` steps."""

    total: int
    final: float = 0.0

    def __post_init__(self) -> None:
        check_whole(type(self).__name__, "total", self.total)
        check_ranges(type(self).__name__, {"final": self.final}, {"final": Range(0.0)})

    def __call__(self, step: int) -> float:
        return 1.0 - (1.0 - self.final) * min(step / self.total, 1.0)


class Cosine(Linear):
    """From 1 along half a cosine to `final` after `total` steps."""

    def __call__(self, step: int) -> float:
        share = 0.5 * (1.0 + math.cos(math.pi * min(step / self.total, 1.0)))
        return self.final + (1.0 - self.final) * share
