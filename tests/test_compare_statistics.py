"""Means, deviations and intervals against slow truths in float64: quantiles by integration, coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from growkit.compare.statistics import Interval, deviation, interval, paired, verdict


def quantile(probability: float, degrees: int) -> float:
    """Student's t by the trapezoidal rule over its density, inverted by bisection."""
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))

    def below(x: float) -> float:
        grid = np.linspace(0.0, x, 200_001)
        density = scale * (1 + grid**2 / degrees) ** (-(degrees + 1) / 2)
        return 0.5 + float(np.trapezoid(density, grid))

    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if below(middle) >= probability else (middle, high)
    return high


@pytest.mark.parametrize("n", [2, 3, 5, 10, 30])
def test_the_interval_is_that_of_the_integrated_density(n: int):
    values = np.random.default_rng(n).normal(size=n)
    spread = math.sqrt(sum((value - values.sum() / n) ** 2 for value in values) / (n - 1))
    found = interval(list(values))
    assert found.n == n
    assert found.mean == pytest.approx(values.sum() / n, rel=1e-12)
    assert found.half == pytest.approx(quantile(0.975, n - 1) * spread / math.sqrt(n), rel=1e-6)


def test_quantiles_of_the_printed_tables():
    ten = [0.0] * 5 + [1.0] * 5  # nine degrees of freedom: 2.262
    assert interval(ten).half == pytest.approx(2.262 * deviation(ten) / math.sqrt(10), rel=1e-4)  # type: ignore[operator]
    assert interval([-1.0, 1.0]).half == pytest.approx(12.706, rel=1e-4)  # one degree, deviation sqrt(2)


def test_intervals_hold_the_true_mean_as_often_as_they_say():
    draws = np.random.default_rng(0).normal(3.0, 2.0, size=(4000, 4))
    holds = [abs(one.mean - 3.0) <= one.half for one in map(interval, draws.tolist()) if one.half is not None]
    assert len(holds) == 4000
    assert abs(sum(holds) / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0])
def test_a_verdict_is_that_of_the_paired_t_test(shift: float):
    rng = np.random.default_rng(7)
    first = rng.normal(size=6)
    second = first + rng.normal(shift, 0.6, size=6)
    test = ttest_rel(second, first)
    difference = interval(list(paired(dict(enumerate(second)), dict(enumerate(first))).values()))
    low, high = test.confidence_interval(0.95)
    assert (difference.mean - difference.half, difference.mean + difference.half) == pytest.approx((low, high))  # type: ignore[operator]
    assert difference.excludes_zero == (test.pvalue < 0.05)


def test_pairs_are_the_seeds_that_both_have():
    assert paired({3: 1.0, 0: 2.0, 5: 9.0}, {0: 1.5, 3: 0.0, 4: 7.0}) == {0: 0.5, 3: 1.0}


def test_one_value_has_neither_deviation_nor_interval():
    assert deviation([0.5]) is None
    assert interval([0.5]) == Interval(1, 0.5, None)
    assert verdict(interval([0.5]), True) == "one pair, no interval"


@pytest.mark.parametrize(
    ("values", "higher_is_better", "said"),
    [
        ([0.1, 0.11, 0.12], True, "better"),
        ([0.1, 0.11, 0.12], False, "worse"),
        ([-0.1, -0.11, -0.12], False, "better"),
        ([-0.1, 0.11, 0.12], True, "no difference shown"),
        ([0.0, 0.0, 0.0], True, "no difference shown"),  # equal on every seed
        ([0.1, 0.1, 0.1], True, "better"),  # unequal by the same on every seed
    ],
)
def test_better_is_said_where_the_interval_excludes_zero(values: list[float], higher_is_better: bool, said: str):
    assert verdict(interval(values), higher_is_better) == said
