"""A model in training and the books that are kept of it: history, costs and scores, and who is told."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from growkit.cost import TrainingCost, count_flops, count_params
from growkit.evaluation import SampleScores, evaluate, evaluate_samples
from growkit.growth.base import EpochRecord, History
from growkit.metrics import Evaluation
from growkit.report import Observer
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


@dataclass
class Books:
    """What is noted while one model trains.

    Attributes:
        trainer: of the model. history, cost: of the run so far. report: who is told.
        watch: started with the run.
        new_units: gives the gradient norm of new units by site, once after they came.
        widths, params, flops: of the model as it is.
        first_gradients: the smallest such norm so far, by site.
        validation: the last evaluation on the validate split.
    """

    trainer: Trainer
    history: History
    report: Observer
    watch: Stopwatch
    new_units: Callable[[], Mapping[str, float]] = dict
    cost: TrainingCost = field(default_factory=TrainingCost)
    widths: dict[str, int] = field(default_factory=dict)
    params: int = 0
    flops: int = 0
    first_gradients: dict[str, float] = field(default_factory=dict)
    validation: Evaluation | None = None

    def measure_model(self, widths: dict[str, int]) -> None:
        """Take down the size of the model, which has these widths now."""
        self.widths = widths
        self.params = count_params(self.trainer.model)
        self.flops = count_flops(self.trainer.model, self.trainer.data.example(2)).total

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
        return replace(
            self,
            trainer=self.trainer.fork(),
            history=self.history.fork(),
            report=report,
            new_units=dict,
            cost=TrainingCost(**self.cost.to_json()),
            first_gradients=dict(self.first_gradients),
        )

    def rejoin(self, fork: Books) -> None:
        """Go on, in place, from where a fork has come to, the model having its old structure again."""
        self.trainer.rejoin(fork.trainer)
        self.history, self.cost, self.validation = fork.history, fork.cost, fork.validation
        self.widths, self.params, self.flops = fork.widths, fork.params, fork.flops
        self.first_gradients = fork.first_gradients

    def _after_step(self, step: int) -> None:
        self.history.step, self.history.wall_seconds = step, self.watch.wall_seconds()
        self.cost.add_steps(self.flops, self.trainer.last_batch_size, self.trainer.last_passes)
        if norms := self.new_units():
            self.report.new_units(step, norms)
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
        )
        self.history.epochs.append(record)
        self.report.epoch(record, self.widths)
