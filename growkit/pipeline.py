"""READ FIRST: a run from settings to result. Train a stage, grow, train the next, until the run is done."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from growkit.assembly import Assembly, assemble
from growkit.checkpoint import Architecture, save_model
from growkit.config import Config
from growkit.cost import TrainingCost, count_flops, count_params
from growkit.data import Data, batches
from growkit.environment import describe_environment
from growkit.graph import Refusal
from growkit.growth.base import EpochRecord, History
from growkit.growth.event import GrowthEvent
from growkit.metrics import Evaluation
from growkit.report import ConsoleReport, JsonLines, MetricsTable, Observer, Reporter, RunFacts, RunFolder
from growkit.surgery import Inputs
from growkit.train import evaluate

__all__ = ["RESULT_VERSION", "RunResult", "Stage", "run"]

RESULT_VERSION = 1


@dataclass(frozen=True)
class Stage:
    """The training between two growth events: steps done before and after it, and the model it trained.

    widths: of sites. depths: blocks at places that may become deeper. flops: forward per sample.
    """

    number: int
    first_step: int
    last_step: int
    widths: dict[str, int]
    params: int
    flops: int
    depths: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResult:
    """What a run gives back.

    Attributes:
        model: the final model, in eval mode. folder: the run folder; None where none was written.
        result: what result.json holds. stages, history, events, refusals: how it came about.
    """

    model: nn.Module
    folder: Path | None
    result: dict[str, Any]
    stages: list[Stage]
    history: History
    events: list[GrowthEvent]
    refusals: list[Refusal]


def run(
    config: Config,
    *,
    model: nn.Module | None = None,
    data: Data | None = None,
    observers: Sequence[Observer] | None = None,
    writes: bool = True,
) -> RunResult:
    """Train and grow one model as `config` says.

    Args:
        config: the settings.
        model: a live seed module to grow in place of the one `config.model` names.
        data: likewise, in place of `config.data`.
        observers: who watches beside the run folder; None prints to the terminal.
        writes: whether to write a run folder under `config.run.root`.

    Raises:
        UserInputError: something the user gave does not fit; nothing has been written.
        GrowkitError: the run failed.
    """
    started = _Clock()
    parts = assemble(config, model=model, data=data, writes=writes)
    with _Progress.open(parts, observers, writes, started) as progress:
        while not parts.trainer.finished:
            progress.train_stage()
            if not parts.trainer.finished and parts.controller.due(progress.history):
                progress.grow()
        return progress.conclude()


# CPU-seconds of children that ended before this program began: a shell that hands its process on leaves its own behind
_INHERITED = sum(os.times()[2:4])


@dataclass(frozen=True)
class _Clock:
    """CPU-seconds of this process and its children, and wall seconds, since it was made."""

    cpu: float = field(default_factory=lambda: sum(os.times()[:4]))
    wall: float = field(default_factory=time.perf_counter)

    def cpu_seconds(self) -> float:
        return round(sum(os.times()[:4]) - self.cpu, 3)

    def wall_seconds(self) -> float:
        return round(time.perf_counter() - self.wall, 3)


@dataclass
class _Progress:
    """A run under way: the parts, the books, and who is told."""

    parts: Assembly
    report: Reporter
    folder: Path | None
    history: History
    started: _Clock
    stages: list[Stage] = field(default_factory=list)
    events: list[GrowthEvent] = field(default_factory=list)
    first_gradients: dict[str, float] = field(default_factory=dict)  # smallest seen per site
    validation: Evaluation | None = None

    @classmethod
    def open(cls, parts: Assembly, observers: Sequence[Observer] | None, writes: bool, started: _Clock) -> _Progress:
        watching = list(observers) if observers is not None else [ConsoleReport()]
        run_folder = None
        if writes:
            run_folder = RunFolder(parts.config.run.root, parts.config.run.name or "run")
            watching = [run_folder, *_recorders(run_folder.path, parts.config.run.tensorboard), *watching]
        folder = None if run_folder is None else run_folder.path
        progress = cls(parts, Reporter(watching), folder, History(parts.clock), started)
        progress._start()
        if run_folder is not None and run_folder.problem is not None:
            progress.report.warned(run_folder.problem)
        return progress

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            self.parts.trainer.close()
            if isinstance(error, KeyboardInterrupt):
                self.save_stage(len(self.stages))
                self.report.interrupted(self.parts.trainer.step)
            elif error is not None:
                self.report.failed(self.parts.trainer.step, f"{type(error).__name__}: {error}")
        finally:
            self.report.close()

    @property
    def cost(self) -> TrainingCost:
        """The ledger; the trainer books its steps."""
        return self.parts.trainer.cost

    def _start(self) -> None:
        parts = self.parts
        self._measure_model()
        self.report.started(
            RunFacts(
                config=parts.config,
                folder=None if self.folder is None else str(self.folder),
                environment={**describe_environment(), "compute": parts.compute.to_json()},
                data={
                    "name": parts.data.name,
                    "task": parts.data.task,
                    "splits": _sizes(parts.data),
                    "wrong_labels": parts.data.wrong_labels,
                    "fingerprint": parts.data.fingerprint(),
                    **({"reading": parts.data.reading} if parts.data.reading else {}),
                },
                model=type(parts.model).__name__ if parts.seed_settings is None else parts.config.model.name,
                widths=parts.widths,
                targets=parts.controller.targets,
                refusals=parts.controller.refusals,
                plan=parts.plan,
                depths=parts.depths,
                depth_targets=dict(parts.controller.depths.targets),
                place_refusals=parts.controller.depths.refusals,
                params=self.params,
                flops=self.flops,
                total_steps=parts.clock.total_steps,
                steps_per_epoch=parts.clock.steps_per_epoch,
            )
        )
        for message in parts.warnings:
            self.report.warned(message)

    def train_stage(self) -> None:
        """Train until growth is due or the steps are done."""
        first_step = self.parts.trainer.step
        self.parts.trainer.train_stage(stop=self._stop, on_step=self._after_step, on_epoch=self._after_epoch)
        self.stages.append(
            Stage(
                len(self.stages),
                first_step,
                self.parts.trainer.step,
                self.parts.widths,
                self.params,
                self.flops,
                self.parts.depths,
            )
        )
        self.save_stage(self.stages[-1].number)

    def grow(self) -> None:
        """One growth event on a fresh batch of training data."""
        parts = self.parts
        size = getattr(parts.config.growth.initializer, "batch_size", parts.config.train.batch_size)
        stream = parts.streams.generator("growth")
        inputs, targets = next(
            batches(
                parts.data, "train", size, order=stream, augmentation=stream, channels_last=parts.compute.channels_last
            )
        )
        edits = len(parts.controller.edits)
        event = parts.controller.grow(parts.trainer.optimizer, Inputs((inputs,)), targets, self.history)
        notes = parts.aftermath.follow(parts.controller.edits[edits:], event.step)
        self.cost.add("growth", event.flops_spent + parts.controller.take_measuring_flops())
        self.events.append(event)
        self._measure_model()
        self._look_ahead()
        self.report.growth(event, parts.widths, self.cost.training)
        for note in notes:
            self.report.warned(note)

    def save_stage(self, number: int) -> None:
        """Write the model as it is into `stages/`."""
        if self.folder is not None:
            save_model(self.folder / "stages" / f"{number:03d}", self.parts.model, self._architecture())

    def conclude(self) -> RunResult:
        """Evaluate on the test split, write the final model and the result."""
        parts = self.parts
        test = self._evaluate("test")
        parts.model.eval()
        if self.folder is not None:
            save_model(self.folder / "model", parts.model, self._architecture())
        result = {
            "version": RESULT_VERSION,
            "test": _scores(test),
            "validate": _scores(self.validation),
            "train": self._last_training(),
            "params": self.params,
            "flops": self.flops,
            "train_flops": self.cost.training,
            "other_flops": dict(self.cost.other),
            "planned_train_flops": parts.planned_flops,
            "cpu_seconds": self.started.cpu_seconds(),
            "process_cpu_seconds": round(sum(os.times()[:4]) - _INHERITED, 3),
            "wall_seconds": self.started.wall_seconds(),
            "steps": parts.trainer.step,
            "epochs": parts.trainer.epoch,
            "events": sum(event.undone is None for event in self.events),
            "seed": parts.config.seed,
            "control": parts.config.control,
            "widths": parts.widths,
            "depths": parts.depths,
            "largest_change": {
                mode: max((getattr(event.change, mode) for event in self.events), default=None)
                for mode in ("eval", "train")
            },
            "smallest_new_gradient": min(self.first_gradients.values(), default=None),
            "inputs": _inputs_of(parts.data),
            "wrong_labels": parts.data.wrong_labels,
            "outputs": {"mean": parts.data.target_mean.tolist(), "std": parts.data.target_std.tolist()},
            "compute": parts.compute.to_json(),
            "folder": None if self.folder is None else str(self.folder),
        }
        self.report.finished(result)
        return RunResult(
            parts.model, self.folder, result, self.stages, self.history, self.events, list(parts.controller.refusals)
        )

    def _stop(self, step: int) -> bool:
        controller = self.parts.controller
        if self.parts.trainer.finished:  # nothing that grew now would be trained
            return False
        due = controller.due(self.history)
        if flops := controller.take_measuring_flops():
            self.cost.add("growth", flops)
        for note in controller.take_notes():
            self.report.no_growth(step, note)
        return due

    def _after_step(self, step: int) -> None:
        self.history.step, self.history.wall_seconds = step, self.started.wall_seconds()
        if norms := self.parts.controller.new_gradients(step):
            self.report.new_units(step, norms)
            if step == self.history.growths[-1].step + 1:
                self.first_gradients |= {
                    site: min(norm, self.first_gradients.get(site, norm)) for site, norm in norms.items()
                }
        self.report.step(step)

    def _after_epoch(self, train: Evaluation) -> None:
        trainer = self.parts.trainer
        self.validation = self._evaluate("validate")
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
            cpu_seconds=self.started.cpu_seconds(),
            wall_seconds=self.started.wall_seconds(),
            train_metrics=train.metrics,
            validate_metrics={} if self.validation is None else self.validation.metrics,
            depths=self.parts.depths,
        )
        self.history.epochs.append(record)
        self.report.epoch(record, self.parts.widths)

    def _last_training(self) -> dict[str, float | None]:
        last = self.history.epochs[-1]
        return {"accuracy": last.train_accuracy, "loss": last.train_loss, **last.train_metrics}

    def _evaluate(self, split: str) -> Evaluation | None:
        parts = self.parts
        result = evaluate(parts.model, parts.data, split, parts.compute, loss=parts.config.train.loss)
        if result is not None:
            self.cost.add("evaluation", self.flops * result.samples)
        return result

    def _measure_model(self) -> None:
        self.params = count_params(self.parts.model)
        self.flops = count_flops(self.parts.model, self.parts.data.example(2)).total
        self.parts.trainer.flops_per_sample = self.flops

    def _look_ahead(self) -> None:
        """A run that its FLOPs end is shorter after an event; what was planned knows that already."""
        parts = self.parts
        if parts.clock.flops is None or parts.plan is not None:
            return
        left = parts.outlook.steps_left(self.cost.training, self.flops)
        self.history.clock = replace(parts.clock, total_steps=parts.trainer.step + left)

    def _architecture(self) -> Architecture:
        parts = self.parts
        return Architecture(
            seed=parts.seed_settings,
            seed_class=type(parts.model).__qualname__,
            input_shape=parts.data.input_shape,
            num_outputs=parts.data.num_outputs,
            channels_last=parts.compute.channels_last,
            edits=list(parts.controller.edits),
        )


def _recorders(folder: Path, tensorboard: bool) -> list[Observer]:
    recorders: list[Observer] = [JsonLines((folder / "events.jsonl").open("w")), MetricsTable(folder / "metrics.csv")]
    if tensorboard:
        from growkit.report.tensorboard import TensorBoard

        recorders.append(TensorBoard(folder / "tb"))
    return recorders


def _inputs_of(data: Data) -> dict[str, Any]:
    """What the model expects: the shape, and by what stored numbers are normalised before it sees them."""
    moments = {"mean": data.mean.tolist(), "std": data.std.tolist(), "moments_from": data.moments_from}
    return {"shape": list(data.input_shape), **moments}


def _sizes(data: Data) -> dict[str, int]:
    return {name: len(split) for name, split in data.splits.items()}


def _scores(evaluation: Evaluation | None) -> dict[str, float | None] | None:
    if evaluation is None:
        return None
    return {"accuracy": evaluation.accuracy, "loss": evaluation.loss, **evaluation.metrics}
