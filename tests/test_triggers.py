"""When to grow: each trigger on histories made by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from growkit.config.policies import (
    GainSettings,
    OverfitGuardSettings,
    PeriodicSettings,
    PlateauSettings,
    RankSettings,
)
from growkit.growth.base import Clock, GrowthRecord, History, Prospect, Prospects
from growkit.growth.guards import build_trigger
from growkit.growth.when import slope_of
from growkit.testing import history_at

GROWN = {"a": (4, 6)}


def fires(settings: Any, history: History, prospects: Prospects | None = None) -> bool:
    return build_trigger(settings).due(history, prospects) is not None


# the slope


def test_the_slope_is_that_of_numpys_least_squares() -> None:
    values = np.random.default_rng(0).normal(size=9)
    fit, covariance = np.polyfit(np.arange(9), values, 1, cov=True)
    slope, error = slope_of(values.tolist())
    assert slope == pytest.approx(fit[0]) and error == pytest.approx(math.sqrt(covariance[0, 0]))


# plateau


def noisy(seed: int, fall: float) -> Callable[[int], float]:
    """A loss of 1 with noise of 0.05 that falls by `fall` an epoch."""
    noise = np.random.default_rng(seed).normal(scale=0.05, size=100)
    return lambda epoch: 1.0 - fall * epoch + float(noise[epoch])


def share_of_seeds(settings: PlateauSettings, fall: float) -> float:
    return sum(fires(settings, history_at(63, loss=noisy(seed, fall))) for seed in range(200)) / 200


def test_a_loss_of_noise_alone_is_a_plateau_and_a_steep_one_is_none() -> None:
    settings = PlateauSettings(window=8, min_slope=0.0)
    # a flat loss is taken for a fall where Student's t with 6 degrees of freedom lies below -2: 4.6 %
    assert share_of_seeds(settings, fall=0.0) == pytest.approx(0.954, abs=0.05)
    assert share_of_seeds(settings, fall=0.05) < 0.02


@pytest.mark.parametrize(
    ("loss", "expected"),
    [
        (lambda epoch: 1.0, True),
        (lambda epoch: 2.0 + epoch, True),
        (lambda epoch: 2.0 - 0.005 * epoch, True),
        (lambda epoch: 2.0 - 0.05 * epoch, False),
        (lambda epoch: 0.9**epoch, False),
    ],
    ids=["flat", "rising", "slower than min_slope", "falling", "exponential"],
)
def test_without_noise_the_least_slope_decides(loss: Callable[[int], float], expected: bool) -> None:
    assert fires(PlateauSettings(window=5), history_at(63, loss=loss)) is expected


def test_a_plateau_needs_its_window_and_only_the_end_of_an_epoch_closes_it() -> None:
    trigger = build_trigger(PlateauSettings(window=4))
    assert [step for step in range(71) if trigger.due(history_at(step))] == [28, 35, 42, 49, 56, 63]


@pytest.mark.parametrize(("step", "first"), [(14, 42), (17, 49)], ids=["between epochs", "within an epoch"])
def test_the_window_begins_anew_after_an_event_and_its_cooldown(step: int, first: int) -> None:
    """Cool-down 1 and window 3, counted from the first epoch that began after the event."""
    trigger = build_trigger(PlateauSettings(window=3, cooldown=1))
    growths = [GrowthRecord(step, GROWN)]
    assert next(s for s in range(step + 1, 71) if trigger.due(history_at(s, growths=growths))) == first


def test_a_plateau_says_its_slope_with_its_error() -> None:
    why = build_trigger(PlateauSettings(loss="train", window=3)).due(history_at(21, loss=lambda epoch: epoch**2 / 10))
    assert why is not None
    assert why.reason == "plateau: slope 0.4 +- 0.058 of the train loss per epoch over 3 epochs"
    assert why.scores == pytest.approx({"slope": 0.4, "slope_standard_error": 0.1 / math.sqrt(3)})


def test_the_split_that_is_asked_for_decides() -> None:
    history = history_at(63, loss=lambda epoch: 2.0 - 0.1 * epoch)
    history.epochs = [replace(record, validate_loss=1.0) for record in history.epochs]
    assert fires(PlateauSettings(), history) and not fires(PlateauSettings(loss="train"), history)


# the overfit guard


def diverging(gap: float) -> History:
    history = history_at(21)
    history.epochs = [replace(record, train_loss=1.0 - gap) for record in history.epochs]
    return history


def test_the_guard_lets_growth_through_while_the_gap_is_small() -> None:
    settings = OverfitGuardSettings(gap=0.3, base=PeriodicSettings(start=3, every=1))
    why = build_trigger(settings).due(diverging(0.2))
    assert why is not None and why.reason == "periodic: time 1 of 7; overfit_guard: gap 0.2"
    assert why.scores["gap"] == pytest.approx(0.2)
    assert not fires(settings, diverging(0.4))
    assert fires(settings, diverging(-0.4))  # dropout and augmentation make training the harder task


def test_the_guard_keeps_a_measurement_from_being_made() -> None:
    trigger = build_trigger(OverfitGuardSettings(gap=0.3, base=GainSettings()))
    assert trigger.needs_prospects and trigger.asks(diverging(0.2)) and not trigger.asks(diverging(0.4))


# gain


def prospects(gain: float = 1.0, noise: float = 0.0, error: float = 0.0, **changes: float) -> Prospects:
    """A unit of b at slices of norm 2 promises 4 * gain for 10 FLOPs; training on gives 2 for 100."""
    b = Prospect((gain, gain / 2), noise, error, params_per_unit=5, flops_per_unit=10, norm=2.0)
    a = replace(b, gains=(gain / 100,))
    return replace(Prospects({"a": a, "b": b}, gradient=2.0, samples=8, flops=100), **changes)


def test_gain_compares_the_fall_of_the_loss_per_flop() -> None:
    """The grown model's squared gradient per FLOP, (2 + 4) / 110, against the present one's, 2 / 100."""
    why = build_trigger(GainSettings()).due(history_at(7), prospects())
    assert why is not None and why.scores == {"gain_ratio": pytest.approx((4 / 10) / (2 / 100))}
    assert why.reason == "gain: a unit of b promises 20 times the fall of the loss per FLOP of training on"


@pytest.mark.parametrize("gain", [0.02, 0.04, 0.049, 0.051, 0.06, 0.2])
def test_gain_fires_just_where_growth_makes_a_training_flop_worth_more(gain: float) -> None:
    present, grown = 2 / 100, (2 + 4 * gain) / (100 + 10)
    assert fires(GainSettings(), history_at(7), prospects(gain)) is (grown > present)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        (GainSettings(ratio=21.0), prospects()),
        (GainSettings(), prospects(noise=1.5)),
        (GainSettings(sigmas=3.0), prospects(error=0.33)),
        (GainSettings(), prospects(sites={})),
        (GainSettings(), prospects(gradient=1e3)),
    ],
    ids=["ratio", "noise", "error", "no sites", "steep already"],
)
def test_gain_does_not_fire(settings: GainSettings, seen: Prospects) -> None:
    assert not fires(settings, history_at(7), seen)


def test_a_stuck_network_grows_whatever_training_would_give() -> None:
    assert fires(GainSettings(), history_at(7), prospects(gradient=0.0))


def test_asking_comes_every_so_many_epochs_since_the_last_event() -> None:
    trigger = build_trigger(GainSettings(every=2))
    assert [step for step in range(71) if trigger.asks(history_at(step))] == [14, 28, 42, 56]
    growths = [GrowthRecord(21, GROWN)]
    assert [step for step in range(22, 71) if trigger.asks(history_at(step, growths=growths))] == [35, 49, 63]


# rank


def test_rank_fires_where_enough_singular_values_are_above_the_noise() -> None:
    site = Prospect((8.0, 4.0, 2.0, 1.0), 1.5, 0.0, 1, 1, 1.0)
    seen = Prospects({"a": replace(site, noise=3.0), "b": site}, 1.0, 8, 100)
    why = build_trigger(RankSettings(share=0.75)).due(history_at(7), seen)
    assert why is not None and why.scores == {"rank_share": 0.75}
    assert why.reason == "rank: 3 of 4 singular values of b lie above its noise floor"
    assert not fires(RankSettings(share=0.75, factor=2.0), history_at(7), seen)
    assert not fires(RankSettings(share=0.8), history_at(7), seen)


# what could never fire


@pytest.mark.parametrize(
    ("settings", "clock", "validates", "reason"),
    [
        (PlateauSettings(), Clock(7, 70), False, "loss: validate needs a validate split, which is empty"),
        (PlateauSettings(loss="train"), Clock(7, 70), False, None),
        (PlateauSettings(window=9), Clock(7, 70), True, None),
        (PlateauSettings(window=10), Clock(7, 70), True, "window: 10 epochs must end before the last step .* has 10;"),
        (GainSettings(every=3), Clock(7, 21), True, "every: 3 epochs must end before the last step"),
        (RankSettings(every=2), Clock(7, 15), True, None),
        (OverfitGuardSettings(), Clock(7, 70), False, "overfit_guard needs a validate split"),
        (OverfitGuardSettings(window=4, base=PlateauSettings(window=10)), Clock(7, 70), True, "window: 10 epochs"),
        (OverfitGuardSettings(base=PeriodicSettings(start=1, every=1, events=2)), Clock(7, 70), True, "base never"),
        (OverfitGuardSettings(base=PeriodicSettings(start=1, every=1, events=3)), Clock(7, 70), True, None),
    ],
    ids=repr,
)
def test_a_trigger_that_could_never_fire_says_so(
    settings: Any, clock: Clock, validates: bool, reason: str | None
) -> None:
    found = build_trigger(settings).refuses(clock, validates)
    if reason is None:
        assert found is None
    else:
        assert found is not None and re.match(reason, found)
