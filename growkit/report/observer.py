"""What can be watched of a run, and who watches: observers never touch the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from growkit.config import Config
from growkit.graph import Refusal
from growkit.growth.base import EpochRecord
from growkit.growth.controller import GrowthEvent
from growkit.growth.plan import GrowthPlan

__all__ = ["Observer", "Reporter", "RunFacts"]


@dataclass(frozen=True)
class RunFacts:
    """What is known before the first step.

    Attributes:
        folder: where the run is written; None where nothing is. model: the seed's name, or the live module's class.
        environment: versions, machine, device and precision.
        widths: per site at the start. targets: per site at the end. params, flops: of the model at the start.
        plan: events to come, None where the trigger depends on training. total_steps, steps_per_epoch: the clock.
    """

    config: Config
    folder: str | None
    environment: Mapping[str, Any]
    data: Mapping[str, Any]
    model: str
    widths: Mapping[str, int]
    targets: Mapping[str, int]
    refusals: Sequence[Refusal]
    plan: GrowthPlan | None
    params: int
    flops: int
    total_steps: int
    steps_per_epoch: int


class Observer:
    """Base of all observers: each method is one thing that happens, and does nothing here."""

    def started(self, facts: RunFacts) -> None:
        """The run is about to train."""

    def step(self, step: int) -> None:
        """An optimizer step is done."""

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        """An epoch is done and evaluated."""

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        """The model has grown; `train_flops` are spent so far."""

    def new_units(self, step: int, gradient_norms: Mapping[str, float]) -> None:
        """The first backward pass after a growth event: gradient norm of each site's new entries."""

    def warned(self, message: str) -> None:
        """Something was skipped or cannot be done, and the run goes on."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """The run is over; `result` is what result.json holds."""

    def interrupted(self, step: int) -> None:
        """The user stopped the run after `step` steps."""

    def close(self) -> None:
        """Nothing more will come."""


class Reporter(Observer):
    """Passes everything on to several observers; a context manager that closes them."""

    def __init__(self, observers: Sequence[Observer]):
        self._observers = list(observers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def started(self, facts: RunFacts) -> None:
        for observer in self._observers:
            observer.started(facts)

    def step(self, step: int) -> None:
        for observer in self._observers:
            observer.step(step)

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        for observer in self._observers:
            observer.epoch(record, widths)

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        for observer in self._observers:
            observer.growth(event, widths, train_flops)

    def new_units(self, step: int, gradient_norms: Mapping[str, float]) -> None:
        for observer in self._observers:
            observer.new_units(step, gradient_norms)

    def warned(self, message: str) -> None:
        for observer in self._observers:
            observer.warned(message)

    def finished(self, result: Mapping[str, Any]) -> None:
        for observer in self._observers:
            observer.finished(result)

    def interrupted(self, step: int) -> None:
        for observer in self._observers:
            observer.interrupted(step)

    def close(self) -> None:
        with ExitStack() as stack:  # each is closed even if another fails
            for observer in reversed(self._observers):
                stack.callback(observer.close)
