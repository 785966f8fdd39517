"""When to grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growkit.config.growth import NeverSettings, PeriodicSettings
from growkit.growth.base import Clock, History, Trigger

__all__ = ["Never", "Periodic", "build_trigger"]


@dataclass(frozen=True)
class Never(Trigger):
    """Train the seed as it is."""

    settings: NeverSettings = NeverSettings()

    def due(self, history: History) -> bool:
        return False

    def planned_steps(self, clock: Clock) -> Sequence[int]:
        return ()


@dataclass(frozen=True)
class Periodic(Trigger):
    """Grow at fixed steps or epochs: the schedule of Evci et al. (ICLR 2022)."""

    settings: PeriodicSettings = PeriodicSettings()

    def due(self, history: History) -> bool:
        return history.step in self.planned_steps(history.clock)

    def planned_steps(self, clock: Clock) -> Sequence[int]:
        unit = 1 if self.settings.unit == "steps" else clock.steps_per_epoch
        start, every = self.settings.start * unit, self.settings.every * unit
        # growth after the last step would never be trained
        end = clock.total_steps if self.settings.events is None else start + every * self.settings.events
        return range(start, min(end, clock.total_steps), every)


def build_trigger(settings: NeverSettings | PeriodicSettings) -> Trigger:
    """The trigger that `growth.when` names."""
    return Never(settings) if isinstance(settings, NeverSettings) else Periodic(settings)
