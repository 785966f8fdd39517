"""READ FIRST: a run from settings to result. Train a stage, grow, train the next, until the run is done."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from growkit.assembly import Assembly, assemble
from growkit.books import Books, Stopwatch
from growkit.checkpoint import Architecture, save_model
from growkit.config import Config
from growkit.cost import LATENCY_CALLS
from growkit.data import Data, batches
from growkit.environment import describe_environment
from growkit.graph import Refusal
from growkit.growth.base import History
from growkit.growth.event import GrowthEvent
from growkit.ladder import Ladder, Stage
from growkit.metrics import Evaluation
from growkit.report import (
    ConsoleReport,
    Delayed,
    JsonLines,
    LadderTable,
    MetricsTable,
    Observer,
    Reporter,
    RunFacts,
    RunFolder,
)
from growkit.surgery import Inputs
from growkit.trial import Trial

__all__ = ["RESULT_VERSION", "RunResult", "Stage", "run"]

RESULT_VERSION = 1


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
    started = Stopwatch()
    parts = assemble(config, model=model, data=data, writes=writes)
    with _Progress.open(parts, observers, writes, started) as progress:
        progress.train_stage()
        while not parts.trainer.finished and parts.controller.due(progress.history):
            progress.grow()
            progress.train_stage()
        return progress.conclude()


# CPU-seconds of children that ended before this program began: a shell that hands its process on leaves its own behind
_INHERITED = sum(os.times()[2:4])


@dataclass
class _Progress:
    """A run under way: the parts, the books, the ladder of its stages, and who is told."""

    parts: Assembly
    books: Books
    report: Reporter
    folder: Path | None
    stages: list[Stage] = field(default_factory=list)
    events: list[GrowthEvent] = field(default_factory=list)

    @classmethod
    def open(cls, parts: Assembly, observers: Sequence[Observer] | None, writes: bool, started: Stopwatch) -> _Progress:
        watching = list(observers) if observers is not None else [ConsoleReport()]
        run_folder, recorders = None, list[Observer]()
        if writes:
            run_folder = RunFolder(parts.config.run.root, parts.config.run.name or "run")
            recorders = [run_folder, *_recorders(run_folder.path, parts.config.run.tensorboard)]
            watching = [*recorders, *watching]
        folder, report = None if run_folder is None else run_folder.path, Reporter(watching)
        books = Books(
            parts.trainer,
            History(parts.clock),
            report,
            started,
            parts.aftermath,
            outlook=None if parts.clock.flops is None or parts.plan is not None else parts.outlook,
            new_units=parts.controller.new_gradients,
        )
        books.measure_model(parts.widths, parts.depths)
        progress = cls(parts, books, report, folder)
        progress._start()
        for recorder in recorders:
            if recorder.problem is not None:
                report.warned(recorder.problem)
        return progress

    @property
    def history(self) -> History:
        """What growth policies may read."""
        return self.books.history

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

    def _start(self) -> None:
        parts, books = self.parts, self.books
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
                widths=books.widths,
                targets=parts.controller.targets,
                refusals=parts.controller.refusals,
                plan=parts.plan,
                depths=books.depths,
                depth_targets=dict(parts.controller.depths.targets),
                place_refusals=parts.controller.depths.refusals,
                params=books.params,
                flops=books.flops,
                total_steps=parts.clock.total_steps,
                steps_per_epoch=parts.clock.steps_per_epoch,
            )
        )
        for message in parts.warnings:
            self.report.warned(message)

    def train_stage(self) -> None:
        """Train until growth is due or the steps are done, and enter the model that this leaves in the ladder."""
        trainer, first_step = self.parts.trainer, self.stages[-1].last_step if self.stages else 0
        begun_on_trial = trainer.step > first_step  # growth may be due as soon as a trial is over
        if not (begun_on_trial and self._stop(trainer.step)):
            self.books.train(self._stop)
        stage = self._stage(first_step)
        self.stages.append(stage)
        self.save_stage(stage.number)
        self.report.stage(stage)

    def grow(self) -> None:
        """One growth event; with `growth.trial` it stands, or is undone, by what the next steps show."""
        trial, train_flops = self.parts.config.growth.trial, self.books.cost.training
        if trial is None:
            event, told = self._event(), Delayed()
        else:
            on_trial = Trial(self.books, self.parts.controller, trial)
            event, told = on_trial.run(self._event), on_trial.told
        self.books.cost.add("growth", event.flops_spent + self.parts.controller.take_measuring_flops())
        self.events.append(event)
        self.report.growth(event, self.books.widths, train_flops)
        for note in self.books.notes:
            self.report.warned(note)
        told.pass_on(self.report)

    def _event(self) -> GrowthEvent:
        """A growth event on a fresh batch of training data."""
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
        self.books.measure_model(parts.widths, parts.depths)
        self.books.follow(parts.controller.edits[edits:], event.step)
        return event

    def save_stage(self, number: int) -> None:
        """Write the model as it is into `stages/`."""
        if self.folder is not None:
            save_model(self.folder / "stages" / f"{number:03d}", self.parts.model, self._architecture())

    def conclude(self) -> RunResult:
        """Evaluate on the test split, write the final model and the result."""
        parts, books = self.parts, self.books
        test = self.books.evaluate("test")
        parts.model.eval()
        if self.folder is not None:
            save_model(self.folder / "model", parts.model, self._architecture())
        result = {
            "version": RESULT_VERSION,
            "test": _scores(test),
            "validate": _scores(books.validation),
            "train": self._last_training(),
            "params": books.params,
            "flops": books.flops,
            "train_flops": books.cost.training,
            "other_flops": dict(books.cost.other),
            "planned_train_flops": parts.planned_flops,
            "cpu_seconds": books.watch.cpu_seconds(),
            "process_cpu_seconds": round(sum(os.times()[:4]) - _INHERITED, 3),
            "wall_seconds": books.watch.wall_seconds(),
            "steps": parts.trainer.step,
            "epochs": parts.trainer.epoch,
            "events": sum(event.undone is None for event in self.events),
            "seed": parts.config.seed,
            "control": parts.config.control,
            "widths": books.widths,
            "depths": books.depths,
            "ladder": Ladder(self.stages).summary(),
            "largest_change": {
                mode: max((getattr(event.change, mode) for event in self.events), default=None)
                for mode in ("eval", "train")
            },
            "smallest_new_gradient": min(books.first_gradients.values(), default=None),
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
            self.books.cost.add("growth", flops)
        for note in controller.take_notes():
            self.report.no_growth(step, note)
        return due

    def _stage(self, first_step: int) -> Stage:
        """The stage that ends here: what its model costs, and how it does on the validate split."""
        parts, books, batch = self.parts, self.books, self.parts.config.growth.budget.latency_batch
        scores = books.evaluate_samples("validate")
        books.cost.add("evaluation", LATENCY_CALLS * batch * books.flops)
        return Stage(
            number=len(self.stages),
            first_step=first_step,
            last_step=parts.trainer.step,
            widths=books.widths,
            params=books.params,
            flops=books.flops,
            train_flops=books.cost.training,
            latency_ms=parts.controller.latency_ms(Inputs((parts.data.example(batch),))),
            latency_batch=batch,
            validate=None if scores is None else _scores(scores.evaluation),
            standard_error=None if scores is None else scores.standard_error,
            depths=books.depths,
        )

    def _last_training(self) -> dict[str, float | None]:
        last = self.history.epochs[-1]
        return {"accuracy": last.train_accuracy, "loss": last.train_loss, **last.train_metrics}

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
    recorders: list[Observer] = [
        JsonLines((folder / "events.jsonl").open("w")),
        MetricsTable(folder / "metrics.csv"),
        LadderTable(folder),
    ]
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
