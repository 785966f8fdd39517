"""Triggers that let another one grow only while a condition holds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from growkit.config.policies import OverfitGuardSettings, ProgressGuardSettings
from growkit.growth.base import Clock, History, Prospects, Trigger, Why
from growkit.growth.when import build_plain_trigger, too_late

__all__ = ["OverfitGuard", "ProgressGuard", "build_trigger"]


@dataclass(frozen=True)
class _Guard(Trigger):
    """What guards share: the base says when, the condition whether."""

    base: Trigger
    settings: Any

    @property
    def needs_prospects(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride] - that of what it guards
        return self.base.needs_prospects

    @abstractmethod
    def condition(self, history: History) -> Why | None:
        """Why growth is allowed; None where it is not."""

    def asks(self, history: History) -> bool:
        return self.base.asks(history) and self.condition(history) is not None

    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        why, allowed = self.base.due(history, prospects), self.condition(history)
        if why is None or allowed is None:
            return None
        return Why(f"{why.reason}; {allowed.reason}", {**why.scores, **allowed.scores})

    def planned_steps(self, clock: Clock) -> Sequence[int] | None:
        return None

    def opportunities(self, clock: Clock) -> Sequence[int] | None:
        return self.base.opportunities(clock)


@dataclass(frozen=True)
class OverfitGuard(_Guard):
    """Lets another trigger grow only while the network does not overfit.

    The gap is (v - t) / v, with v and t the mean validate and train losses of the last `window` epochs: the share of
    the validate loss that fitting the training data better would not remove. Growth that waits for a small gap is the
    idea of FRAGrow (AAAI 2024), which lengthens the time between events with the gap of the accuracies. Train losses
    are those of training: of augmented batches, with dropout, during the epoch.
    """

    settings: OverfitGuardSettings = OverfitGuardSettings()

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        if not validates:
            return "overfit_guard needs a validate split, which is empty; set data.split.validate"
        planned = self.base.planned_steps(clock)
        if planned is not None and not [
            step for step in planned if step >= self.settings.window * clock.steps_per_epoch
        ]:
            return (
                f"base never fires after the first {self.settings.window} epochs, and before them overfit_guard does "
                f"not; raise {clock.setting} or base.events, or lower window or base.start"
            )
        return too_late(clock, self.settings.window, "window") or self.base.refuses(clock, validates)

    def condition(self, history: History) -> Why | None:
        recent = history.epochs[-self.settings.window :]
        losses = [record.validate_loss for record in recent if record.validate_loss is not None]
        if len(losses) < self.settings.window:
            return None
        validate, train = fmean(losses), fmean(record.train_loss for record in recent)
        gap = (validate - train) / validate if validate > 0.0 else 0.0
        return Why(f"overfit_guard: gap {gap:.2g}", {"gap": gap}) if gap <= self.settings.gap else None


@dataclass(frozen=True)
class ProgressGuard(_Guard):
    """Lets another trigger grow only while what was learnt since the last event carries over to the validate split.

    With v the lowest validate loss of the epochs since the last event, and b the lowest before it (in the first stage
    the loss of the first epoch), growth is allowed where v < (1 - least) b: a network that no longer gets better on
    data it is not trained on gains nothing from more units, however well those would fit the training data. Where no
    epoch has ended since the last event, nothing speaks against the next.
    """

    settings: ProgressGuardSettings = ProgressGuardSettings()

    def refuses(self, clock: Clock, validates: bool) -> str | None:
        if not validates:
            return "progress_guard needs a validate split, which is empty; set data.split.validate"
        times = self.base.opportunities(clock)
        silent = f"base never fires within the training; raise {clock.setting}, or lower base.start"
        return self.base.refuses(clock, validates) or (silent if times is not None and not times else None)

    def condition(self, history: History) -> Why | None:
        losses = [record.validate_loss for record in history.epochs if record.validate_loss is not None]
        stage = len(history.epochs_since_growth())
        if not stage or len(losses) < len(history.epochs):
            return Why(f"progress_guard: no epoch {'since the last event' if history.events else 'yet'}")
        if not history.events:
            stage -= 1  # the first epoch is what the others are held against
        if not stage:
            return Why("progress_guard: the first epoch")
        before = min(losses[:-stage])
        now = min(losses[-stage:])
        if now >= (1.0 - self.settings.least) * before:
            return None
        return Why(f"progress_guard: validate loss {before:.4g} -> {now:.4g}", {"progress": 1.0 - now / before})


def build_trigger(settings: object) -> Trigger:
    """The trigger that `growth.when` names."""
    match settings:
        case OverfitGuardSettings():
            return OverfitGuard(build_trigger(settings.base), settings)
        case ProgressGuardSettings():
            return ProgressGuard(build_trigger(settings.base), settings)
    return build_plain_trigger(settings)
