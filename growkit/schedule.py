"""Learning-rate schedules as pure functions of progress: nothing to save, nothing to grow."""

from __future__ import annotations

import math

from growkit.config.after_growth import AfterGrowthSettings
from growkit.config.train import ConstantSettings, CosineSettings, ScheduleSettings, StepSettings

__all__ = ["rate_factor", "rewarm_factor"]


def rate_factor(settings: ScheduleSettings, step: int, progress: float, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by for optimizer step number `step` (from 0).

    Warm-up rises linearly from 1/n to 1 over its n steps; the schedule itself runs over the whole run, of which
    `progress`, from 0 to 1, is done before the step.
    """
    warmup = settings.warmup_epochs * steps_per_epoch
    rise = min(1.0, (step + 1) / warmup) if warmup > 0 else 1.0
    return rise * _shape(settings, progress)


def rewarm_factor(settings: AfterGrowthSettings, since: int) -> float:
    """What the scheduled learning rate is multiplied by for the step before which `since` came after a growth event.

    Of n steps number i, from 0, has the factor f + (1 - f) (i + 1) / n: as in warm-up, none of them is lost at f = 0,
    and the last one has the full rate.
    """
    share = min(1.0, (since + 1) / settings.rewarm_steps) if settings.rewarm_steps else 1.0
    return settings.rewarm_from + (1.0 - settings.rewarm_from) * share


def _shape(settings: ScheduleSettings, progress: float) -> float:
    if isinstance(settings, CosineSettings):
        return settings.final + (1.0 - settings.final) * 0.5 * (1.0 + math.cos(math.pi * progress))
    if isinstance(settings, StepSettings):
        return settings.factor ** sum(progress >= milestone for milestone in settings.milestones)
    assert isinstance(settings, ConstantSettings), f"no shape for {type(settings).__name__}"
    return 1.0
