"""What can be watched of a run, and who watches: observers never touch the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from growkit.config import Config
from growkit.errors import TrainingError
from growkit.graph import PlaceRefusal, Refusal
from growkit.growth.base import EpochRecord, Nothing
from growkit.growth.event import GrowthEvent
from growkit.growth.plan import GrowthPlan
from growkit.ladder import Stage

__all__ = ["Delayed", "Observer", "Reporter", "RunFacts"]


@dataclass(frozen=True)
class RunFacts:
    """What is known before the first step.

    Attributes:
        folder: where the run is written; None where nothing is. model: the seed's name, or the live module's class.
        environment: versions, machine, device and precision.
        widths: per site at the start. targets: per site at the end. params, flops: of the model at the start.
        depths, depth_targets: per place that may become deeper, its blocks at the start and at most.
        place_refusals: the modules that nothing may follow, in runs that grow in depth.
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
    depths: Mapping[str, int] = field(default_factory=dict)
    depth_targets: Mapping[str, int] = field(default_factory=dict)
    place_refusals: Sequence[PlaceRefusal] = ()


class Observer:
    """Base of all observers: each method is one thing that happens, and does nothing here.

    only_shows: whether nothing is lost if the observer fails, because it keeps nothing.
    problem: what it could not do, without harm, once the run has started.
    """

    only_shows: bool = False
    problem: str | None = None

    def started(self, facts: RunFacts) -> None:
        """The run is about to train."""

    def step(self, step: int) -> None:
        """An optimizer step is done."""

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        """An epoch is done and evaluated."""

    def stage(self, stage: Stage) -> None:
        """A train stage is done, and the model that it left is evaluated."""

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        """The model has grown, or has been put back (`event.undone`); `train_flops` are spent so far."""

    def no_growth(self, step: int, note: Nothing) -> None:
        """It was time to grow and nothing grew, or some sites were passed over; `note.ends`: nothing ever will."""

    def new_units(self, step: int, gradient_norms: Mapping[str, float]) -> None:
        """Step `step` is 1, 2, 4, ... 128 steps after a growth event: gradient norm of each site's new entries."""

    def warned(self, message: str) -> None:
        """Something was skipped or cannot be done, and the run goes on."""

    def finished(self, result: Mapping[str, Any]) -> None:
        """The run is over; `result` is what result.json holds."""

    def interrupted(self, step: int) -> None:
        """The user stopped the run after `step` steps."""

    def failed(self, step: int, message: str) -> None:
        """The run ended after `step` steps, for the reason in `message`."""

    def close(self) -> None:
        """Nothing more will come."""


class Reporter(Observer):
    """Passes everything on to several observers; a context manager that closes them.

    An observer that only shows (`only_shows`) may fail, as when the pipe it prints to is closed: it is dropped, the
    others are told, and the run goes on. Any other failure to write ends the run.
    """

    def __init__(self, observers: Sequence[Observer]):
        self._observers = list(observers)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _tell(self, what: str, *facts: Any) -> None:
        for observer in list(self._observers):
            try:
                getattr(observer, what)(*facts)
            except OSError as error:
                if not observer.only_shows:
                    raise TrainingError(f"the run folder must stay writable, but {error}") from error
                self._observers.remove(observer)
                self.warned(f"{type(observer).__name__} cannot print any more ({error}); the run goes on")

    def started(self, facts: RunFacts) -> None:
        self._tell("started", facts)

    def step(self, step: int) -> None:
        self._tell("step", step)

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        self._tell("epoch", record, widths)

    def stage(self, stage: Stage) -> None:
        self._tell("stage", stage)

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        self._tell("growth", event, widths, train_flops)

    def no_growth(self, step: int, note: Nothing) -> None:
        self._tell("no_growth", step, note)

    def new_units(self, step: int, gradient_norms: Mapping[str, float]) -> None:
        self._tell("new_units", step, gradient_norms)

    def warned(self, message: str) -> None:
        self._tell("warned", message)

    def finished(self, result: Mapping[str, Any]) -> None:
        self._tell("finished", result)

    def interrupted(self, step: int) -> None:
        self._tell("interrupted", step)

    def failed(self, step: int, message: str) -> None:
        self._tell("failed", step, message)

    def close(self) -> None:
        with ExitStack() as stack:  # each is closed even if another fails
            for observer in reversed(self._observers):
                stack.callback(observer.close)


class Delayed(Reporter):
    """Keeps what it is told until it is known whether that is to be passed on."""

    def __init__(self) -> None:
        super().__init__(())
        self._told: list[tuple[str, tuple[Any, ...]]] = []

    def _tell(self, what: str, *facts: Any) -> None:
        self._told.append((what, facts))

    def pass_on(self, observer: Observer) -> None:
        """Tell another observer all of it, in order, once."""
        told, self._told = self._told, []
        for what, facts in told:
            getattr(observer, what)(*facts)
