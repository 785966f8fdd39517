"""When to grow."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from growkit.config.policies import (
    AskingSettings,
    GainSettings,
    NeverSettings,
    PeriodicSettings,
    PlateauSettings,
    RankSettings,
    SpreadSettings,
)
from growkit.growth.base import Clock, History, Prospect, Prospects, Trigger, Why

__all__ = ["Gain", "Never", "Periodic", "Plateau", "Rank", "Spread", "build_plain_trigger", "slope_of", "too_late"]


@dataclass(frozen=True)
class Never(Trigger):
    """Train the seed as it is."""

    settings: NeverSettings = NeverSettings()

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        return None

    def asks(self, history: History) -> bool:
        return False

    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        return None

    def planned_steps(self, clock: Clock) -> Sequence[int]:
        return ()


class _Scheduled(Trigger):
    """What triggers share whose times are known in advance."""

    settings: Any

    @abstractmethod
    def planned_steps(self, clock: Clock) -> Sequence[int]: ...

    def asks(self, history: History) -> bool:
        return history.step in self.planned_steps(history.clock)

    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        steps = self.planned_steps(history.clock)
        if history.step not in steps:
            return None
        return Why(f"{self.settings.name}: time {steps.index(history.step) + 1} of {len(steps)}")


@dataclass(frozen=True)
class Periodic(_Scheduled):
    """Grow at fixed steps or epochs: the schedule of Evci et al. (ICLR 2022)."""

    settings: PeriodicSettings = PeriodicSettings()

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        return None  # a schedule that lies behind the end is warned of, as is one that is cut

    def planned_steps(self, clock: Clock) -> Sequence[int]:
        unit = 1 if self.settings.unit == "steps" else clock.steps_per_epoch
        start, every = self.settings.start * unit, self.settings.every * unit
        # growth after the last step would never be trained
        end = clock.total_steps if self.settings.events is None else start + every * self.settings.events
        return range(start, min(end, clock.total_steps), every)


@dataclass(frozen=True)
class Plateau(Trigger):
    """Grow when the loss has stopped falling.

    A line is fitted by least squares to the losses of the last `window` epochs, none of them begun before the last
    event or within its cool-down. With slope b, its standard error se and the mean loss m, the loss counts as falling
    where b + sigmas * se < -min_slope * m; otherwise it is time. A loss that rises is time too: see OverfitGuard.
    """

    settings: PlateauSettings = PlateauSettings()

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        if self.settings.loss == "validate" and not validates:
            return "loss: validate needs a validate split, which is empty; set data.split.validate, or loss: train"
        return too_late(clock, self.settings.window, "window")

    def asks(self, history: History) -> bool:
        left_out = self.settings.cooldown if history.events else 0
        return _epoch_closed(history) and len(history.epochs_since_growth()) >= self.settings.window + left_out

    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        if not self.asks(history):
            return None
        recent, split = history.epochs[-self.settings.window :], self.settings.loss
        losses = [one.train_loss if split == "train" else one.validate_loss for one in recent]
        known = [loss for loss in losses if loss is not None]
        if len(known) < len(losses):
            return None
        slope, error = slope_of(known)
        least = self.settings.min_slope * abs(fmean(known))
        if slope + self.settings.sigmas * error < -least:
            return None
        return Why(
            f"plateau: slope {slope:.3g} +- {error:.2g} of the {split} loss per epoch over {len(known)} epochs",
            {"slope": slope, "slope_standard_error": error},
        )

    def planned_steps(self, clock: Clock) -> None:
        return None


@dataclass(frozen=True)
class _Asking(Trigger):
    """What triggers share that measure what growth promises, every so many epochs."""

    settings: AskingSettings = AskingSettings()
    needs_prospects = True

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        return too_late(clock, self.settings.every, "every")

    def asks(self, history: History) -> bool:
        epochs = len(history.epochs_since_growth())
        return _epoch_closed(history) and epochs > 0 and epochs % self.settings.every == 0

    def planned_steps(self, clock: Clock) -> None:
        return None


@dataclass(frozen=True)
class Gain(_Asking):
    """Grow when the best site promises a faster fall of the loss per training FLOP than training on.

    A gradient step of rate r lowers the loss by r |g|^2 to first order, at a price proportional to the F forward FLOPs
    per sample. One more unit of a site, made with slices of norm n, adds n^2 s^2 to the squared gradient norm (s^2 the
    site's largest gain) and f FLOPs. The grown model's fall per FLOP, (|g|^2 + n^2 s^2) / (F + f), exceeds the present
    one's, |g|^2 / F, just where

        (n^2 s^2 / f) / (|g|^2 / F) > 1.

    Fires where the largest left side exceeds `ratio`, s^2 being less `sigmas` standard errors and above the noise.
    This assumes plain gradient descent with one rate for old and new weights, a first-order fall, the slope of 1 that
    prospects are measured at, and that the event itself costs nothing.
    """

    settings: GainSettings = GainSettings()

    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        if prospects is None or not self.asks(history):
            return None
        ratios = {name: self._ratio(one, prospects) for name, one in prospects.sites.items()}
        best = max(ratios, key=lambda name: ratios[name], default=None)
        if best is None or ratios[best] <= self.settings.ratio:
            return None
        return Why(
            f"gain: a unit of {best} promises {ratios[best]:.3g} times the fall of the loss per FLOP of training on",
            {"gain_ratio": ratios[best]},
        )

    def _ratio(self, site: Prospect, prospects: Prospects) -> float:
        if not site.above(1.0):
            return 0.0
        sure = max(0.0, site.largest - self.settings.sigmas * site.standard_error)
        promised = site.norm**2 * sure / max(1, site.flops_per_unit)
        present = prospects.gradient / max(1, prospects.flops)
        return promised / present if present > 0.0 else math.inf * promised if promised > 0.0 else 0.0


@dataclass(frozen=True)
class Rank(_Asking):
    """Grow when new units would find signal in many directions: the effective rank is saturated.

    The effective rank of a site's gradient matrix is the number of its gains above factor * noise. Fires where it is at
    least `share` of the number of gains at some site: the present units leave most directions of descent unserved.
    """

    settings: RankSettings = RankSettings()

    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        if prospects is None or not self.asks(history):
            return None
        sites = {name: one for name, one in prospects.sites.items() if one.gains and not one.is_place}
        shares = {name: one.above(self.settings.factor) / len(one.gains) for name, one in sites.items()}
        best = max(shares, key=lambda name: shares[name], default=None)
        if best is None or shares[best] < self.settings.share:
            return None
        above = sites[best].above(self.settings.factor)
        return Why(
            f"rank: {above} of {len(sites[best].gains)} singular values of {best} lie above its noise floor",
            {"rank_share": shares[best]},
        )


@dataclass(frozen=True)
class Spread(_Scheduled):
    """Grow at times spread evenly over the first part of the training, so that all units are trained to the end.

    The times are ends of epochs where there are enough of them, for what guards and measurements read.
    """

    settings: SpreadSettings = SpreadSettings()

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        if self.planned_steps(clock):
            return None
        return f"until: {self.settings.until:g} of {clock.total_steps} steps hold no time before the last; raise it"

    def planned_steps(self, clock: Clock) -> Sequence[int]:
        end, events = self.settings.until * clock.total_steps, self.settings.events
        unit = clock.steps_per_epoch if end >= events * clock.steps_per_epoch else 1
        last = (clock.total_steps - 1) // unit  # growth after the last step would never be trained
        steps = {min(round(number * end / events / unit), last) * unit for number in range(1, events + 1)}
        return sorted(step for step in steps if 0 < step < clock.total_steps)


def slope_of(values: Sequence[float]) -> tuple[float, float]:
    """Slope per place of the least-squares line through equally spaced values, and its standard error.

    Args:
        values: at least 3.
    """
    y, x = np.asarray(values, dtype=np.float64), np.arange(len(values), dtype=np.float64)
    x -= x.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    return slope, math.sqrt(float(residuals @ residuals) / (len(values) - 2) / float(x @ x))


def _epoch_closed(history: History) -> bool:
    """Whether an epoch has just ended, and another step follows."""
    return history.epoch_closed and history.step < history.clock.total_steps


def too_late(clock: Clock, epochs: int, setting: str) -> str | None:
    """Why a trigger that waits for so many epochs never fires; none after the last step counts."""
    if epochs * clock.steps_per_epoch < clock.total_steps:
        return None
    return (
        f"{setting}: {epochs} epochs must end before the last step for it to fire at all, and the training has "
        f"{clock.epochs}; lower it, or raise {clock.setting}"
    )


def build_plain_trigger(settings: object) -> Trigger:
    """The trigger that `growth.when` names, where it guards no other."""
    match settings:
        case NeverSettings():
            return Never(settings)
        case PeriodicSettings():
            return Periodic(settings)
        case SpreadSettings():
            return Spread(settings)
        case PlateauSettings():
            return Plateau(settings)
        case GainSettings():
            return Gain(settings)
        case RankSettings():
            return Rank(settings)
    raise AssertionError(f"no trigger for {type(settings).__name__}")
