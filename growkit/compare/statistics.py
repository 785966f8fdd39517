"""Means, deviations and paired differences with their t-intervals (Student, 1908). Plain numbers in, plain numbers out.

Runs of one seed are a pair: they share data order, initial weights and growth streams, so what a seed does to both
arms drops out of their difference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

__all__ = ["LEVEL", "Interval", "deviation", "interval", "paired", "verdict"]

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean and its t-interval.

    Attributes:
        n: values it is of.
        mean: their mean.
        half: half the interval's width; None for one value, which has no interval.
    """

    n: int
    mean: float
    half: float | None

    @property
    def excludes_zero(self) -> bool:
        """Whether all of the interval lies on one side of 0; False where there is no interval."""
        return self.half is not None and abs(self.mean) > self.half


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample (n - 1); None for fewer than two values."""
    return stdev(values) if len(values) > 1 else None


def interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean with the interval mean ± t s / sqrt(n), t the quantile of Student's t with n - 1 degrees of freedom.

    Args:
        values: at least one, all finite.
        level: how often such intervals hold the true mean, in 0..1.
    """
    spread = deviation(values)
    half = None if spread is None else _quantile(0.5 + level / 2, len(values) - 1) * spread / math.sqrt(len(values))
    return Interval(len(values), fmean(values), half)


def paired(ours: Mapping[int, float], theirs: Mapping[int, float]) -> dict[int, float]:
    """Ours minus theirs for each seed that both have."""
    return {seed: ours[seed] - theirs[seed] for seed in sorted(set(ours) & set(theirs))}


def verdict(difference: Interval, higher_is_better: bool) -> str:
    """What an interval allows to be said: "better" or "worse" where it excludes 0, else "no difference shown"."""
    if difference.half is None:
        return "one pair, no interval"
    if not difference.excludes_zero:
        return "no difference shown"
    return "better" if (difference.mean > 0) == higher_is_better else "worse"


def _quantile(probability: float, degrees: int) -> float:
    from scipy.stats import t as student

    return float(student.ppf(probability, degrees))
