"""A model in training and the books that are kept of it: history, costs and scores, and who is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from growkit.cost import TrainingCost, count_flops, count_params
from growkit.evaluation import SampleScores, evaluate, evaluate_samples
from growkit.growth.aftermath import Aftermath
from growkit.growth.base import EpochRecord, History
from growkit.length import Outlook
from growkit.metrics import Evaluation
from growkit.report import Observer
from growkit.surgery import Record
from growkit.train import Trainer

__all__ = ["Books", "Stopwatch"]


@dataclass(frozen=True)
class Stopwatch:
    """CPU-seconds of this process and its children, and wall seconds, since it was made."""

    cpu: float = field(default_factory=lambda: sum(os.times()[:4]))
    wall: float = field(default_factory=time.perf_counter)

    def cpu_seconds(self) -> float:
        """Of this process and its children."""
        return round(sum(os.times()[:4]) - self.cpu, 3)

    def wall_seconds(self) -> float:
        """On the clock."""
        return round(time.perf_counter() - self.wall, 3)


def none_watched(step: int) -> Mapping[str, float]:
    """No new units after any optimizer step."""
    return {}


@dataclass
class Books:
    """What is noted while one model trains.

    Attributes:
        trainer: of the model; it keeps the ledger. history: of the run so far. report: who is told.
        watch: started with the run.
        aftermath: what becomes of optimizer and learning rate after an event.
        outlook: how long the run still is after an event; None where events do not change that, or a plan knows it.
        new_units: gives gradient norms of new units by site after an optimizer step; empty where none are watched.
        widths, depths, params: of the model as it is.
        first_gradients: the smallest such norm in a first step after an event so far, by site.
        validation: the last evaluation on the validate split.
        notes: what the user should know of the last event.
    """

    trainer: Trainer
    history: History
    report: Observer
    watch: Stopwatch
    aftermath: Aftermath
    outlook: Outlook | None = None
    new_units: Callable[[int], Mapping[str, float]] = none_watched
    widths: dict[str, int] = field(default_factory=dict)
    depths: dict[str, int] = field(default_factory=dict)
    params: int = 0
    first_gradients: dict[str, float] = field(default_factory=dict)
    validation: Evaluation | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def cost(self) -> TrainingCost:
        """The ledger; the trainer books its steps."""
        return self.trainer.cost

    @property
    def flops(self) -> int:
        """Forward, per sample, of the model as it is."""
        return self.trainer.flops_per_sample

    def measure_model(self, widths: dict[str, int], depths: dict[str, int]) -> None:
        """Take down the size of the model, which has these widths and depths now."""
        self.widths, self.depths = widths, depths
        self.params = count_params(self.trainer.model)
        self.trainer.flops_per_sample = count_flops(self.trainer.model, self.trainer.data.example(2)).total

    def follow(self, records: Sequence[Record], step: int) -> None:
        """After an event, when the model has been measured: see to the optimizer, and look ahead.

        Args:
            records: of its edits; none where it was undone.
            step: after how many optimizer steps it came.
        """
        self.notes = self.aftermath.follow(records, step)
        if self.outlook is not None:  # a run that its FLOPs end is shorter now
            left = self.outlook.steps_left(self.cost.training, self.flops)
            self.history.clock = replace(self.history.clock, total_steps=self.trainer.step + left)

    def train(self, stop: Callable[[int], bool]) -> None:
        """Train until `stop(step)` says so or the run's steps are done."""
        self.trainer.train_stage(stop=stop, on_step=self._after_step, on_epoch=self._after_epoch)

    def evaluate(self, split: str) -> Evaluation | None:
        """Of the model as it is; None where the split is empty."""
        on = self.trainer
        result = evaluate(on.model, on.data, split, on.compute, loss=on.settings.loss)
        if result is not None:
            self.cost.add("evaluation", self.flops * result.samples)
        return result

    def evaluate_samples(self, split: str, kind: str = "evaluation") -> SampleScores | None:
        """Likewise, sample by sample; `kind` is what the cost is noted as."""
        on = self.trainer
        result = evaluate_samples(on.model, on.data, split, on.compute, on.settings.loss)
        if result is not None:
            self.cost.add(kind, self.flops * result.evaluation.samples)
        return result

    def fork(self, report: Observer) -> Books:
        """Books of a twin of the model, which goes on from here on its own until it rejoins; `report` is told of it."""
        trainer = self.trainer.fork()
        aftermath = self.aftermath.fork(trainer.model, trainer.optimizer)
        trainer.damping = aftermath.rate
        return replace(
            self,
            trainer=trainer,
            history=self.history.fork(),
            report=report,
            aftermath=aftermath,
            new_units=none_watched,
            notes=[],
            first_gradients=dict(self.first_gradients),
        )

    def rejoin(self, fork: Books) -> None:
        """Go on, in place, from where a fork has come to, the model having its old structure again."""
        self.trainer.rejoin(fork.trainer)
        self.aftermath.rejoin(fork.aftermath)
        self.history, self.validation = fork.history, fork.validation
        self.widths, self.depths, self.params = fork.widths, fork.depths, fork.params
        self.first_gradients, self.notes = fork.first_gradients, fork.notes

    def _after_step(self, step: int) -> None:
        self.history.step, self.history.wall_seconds = step, self.watch.wall_seconds()
        if norms := self.new_units(step):
            self.report.new_units(step, norms)
            if step == self.history.growths[-1].step + 1:
                self.first_gradients |= {
                    site: min(norm, self.first_gradients.get(site, norm)) for site, norm in norms.items()
                }
        self.report.step(step)

    def _after_epoch(self, train: Evaluation) -> None:
        trainer = self.trainer
        self.validation = self.evaluate("validate")
        record = EpochRecord(
            step=trainer.step,
            epoch=trainer.epoch,
            learning_rate=trainer.learning_rate,
            train_loss=train.loss,
            train_accuracy=train.accuracy,
            validate_loss=None if self.validation is None else self.validation.loss,
            validate_accuracy=None if self.validation is None else self.validation.accuracy,
            params=self.params,
            flops=self.flops,
            train_flops=self.cost.training,
            cpu_seconds=self.watch.cpu_seconds(),
            wall_seconds=self.watch.wall_seconds(),
            train_metrics=train.metrics,
            validate_metrics={} if self.validation is None else self.validation.metrics,
            depths=self.depths,
        )
        self.history.epochs.append(record)
        self.report.epoch(record, self.widths)
