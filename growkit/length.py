"""How long a run is: its optimizer steps, and the training FLOPs that they cost."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from growkit.config.train import SAMSettings, TrainSettings
from growkit.cost import BACKWARD_AND_FORWARD
from growkit.data import Data, num_batches
from growkit.errors import UserInputError
from growkit.growth.base import Clock
from growkit.growth.controller import GrowthController
from growkit.growth.plan import GrowthPlan

__all__ = ["Outlook", "Pace", "first_that"]


@dataclass(frozen=True)
class Pace:
    """What optimizer steps cost, whatever the model.

    Attributes:
        batch_size, steps_per_epoch: of the training.
        epoch: samples of an epoch; the last of its batches may be smaller.
        interval: of the steps, every so many make two passes; None where all make one.
    """

    batch_size: int
    steps_per_epoch: int
    epoch: int
    interval: int | None

    @classmethod
    def of(cls, data: Data, settings: TrainSettings) -> Pace:
        """That of training on `data` by `settings`."""
        steps = num_batches(data, "train", settings.batch_size, training=True)
        optimizer = settings.optimizer
        interval = optimizer.interval if isinstance(optimizer, SAMSettings) else None
        return cls(settings.batch_size, steps, min(len(data.train), steps * settings.batch_size), interval)

    def forwards(self, steps: int) -> int:
        """Forward passes of one sample that so many steps from the start cost, a backward pass counted as two."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        return BACKWARD_AND_FORWARD * (epochs * self.epoch + rest * self.batch_size + self._seen_twice(steps))

    @property
    def forwards_per_step(self) -> float:
        """The same of one step, on the mean."""
        period = self.steps_per_epoch * (self.interval or 1)
        return self.forwards(period) / period

    def _seen_twice(self, steps: int) -> int:
        """The samples of the steps that make a second pass."""
        if self.interval is None:
            return 0
        missing = self.steps_per_epoch * self.batch_size - self.epoch  # in the last batch of an epoch
        periods, rest = divmod(steps, self.steps_per_epoch * self.interval)
        short = periods * len(self._short) + sum(step < rest for step in self._short)
        return -(-steps // self.interval) * self.batch_size - short * missing

    @cached_property
    def _short(self) -> list[int]:
        """The steps that make a second pass on the last batch of an epoch, of a period of both."""
        every, period = self.interval or 1, self.steps_per_epoch * (self.interval or 1)
        return [step for step in range(0, period, every) if (step + 1) % self.steps_per_epoch == 0]


@dataclass(frozen=True)
class Outlook:
    """What a run of any length would do and cost, as far as that is known before it trains.

    Attributes:
        controller: of its growth, at the seed.
        pace: of its steps.
        limit: training FLOPs that end it; None where its steps do.
    """

    controller: GrowthController
    pace: Pace
    limit: int | None = None

    def clock(self, total_steps: int) -> Clock:
        """That of a run of so many steps."""
        return Clock(self.pace.steps_per_epoch, total_steps, self.pace.forwards_per_step, self.limit)

    def plan(self, total_steps: int) -> GrowthPlan | None:
        """The growth events; None where they depend on training."""
        return self.controller.plan(self.clock(total_steps))

    def flops(self, total_steps: int) -> int | None:
        """Training FLOPs; likewise."""
        plan = self.plan(total_steps)
        if plan is None:
            return None
        done, total = 0, 0
        for steps, widths in plan.stages(total_steps):
            forward = self.controller.costs.flops(widths)
            total += forward * (self.pace.forwards(done + steps) - self.pace.forwards(done))
            done += steps
        return total

    def steps_left(self, spent: int, flops: int) -> int:
        """Steps to the limit if nothing grows any more.

        Args:
            spent: training FLOPs so far.
            flops: forward, per sample, of the model as it is.
        """
        return max(0, math.ceil(((self.limit or 0) - spent) / (self.pace.forwards_per_step * flops)))

    def most_steps(self) -> int:
        """Those in which the seed would reach the limit; growth never makes a step cheaper.

        Raises:
            UserInputError: the seed has no FLOPs.
        """
        limit, seed = self.limit or 0, self.controller.counted.total
        if seed <= 0:
            raise UserInputError(
                f"train.flops needs a model whose FLOPs can be counted, got {seed} per sample; use train.steps"
            )
        return first_that(lambda steps: seed * self.pace.forwards(steps) >= limit)

    def steps_to_limit(self) -> int:
        """Those in which the plan reaches the limit; where there is none, the most there can be."""
        most, limit = self.most_steps(), self.limit or 0
        return most if self.plan(most) is None else first_that(lambda steps: (self.flops(steps) or 0) >= limit)


def first_that(holds: Callable[[int], bool]) -> int:
    """The least whole number from 1 on of which something holds that holds of all above it."""
    low, high = 0, 1
    while not holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
