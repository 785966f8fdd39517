"""The terminal: a bar, a line per epoch, a box per growth event, six lines at the end; plain lines in a pipe."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.text import Text

from growkit.growth.base import EpochRecord, Nothing
from growkit.growth.event import GrowthEvent, describe_refusals
from growkit.report.observer import Observer, RunFacts

__all__ = ["ConsoleReport", "human", "shortened", "summary_lines"]

MOST_REFUSALS = 8
LONGEST_WARNING = 600


def human(count: float) -> str:
    """A count to three digits, with a unit: 1234567 -> '1.23M'."""
    rounded = float(f"{count:.3g}")  # first, or 999999 would be 1e+03k
    for size, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(rounded) >= size:
            return f"{rounded / size:.3g}{unit}"
    return f"{rounded:.0f}"


def shortened(message: str) -> str:
    """A message for a terminal; a long list in it is cut, and said to stand elsewhere."""
    if len(message) <= LONGEST_WARNING:
        return message
    return f"{message[:LONGEST_WARNING]}... ({len(message) - LONGEST_WARNING:,} more letters; events.jsonl has all)"


class _Terminal(Console):
    """rich's console ends the process when its pipe is closed; a run goes on without it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("its pipe was closed")


class ConsoleReport(Observer):
    """Prints a run for a person.

    Args:
        console: rich's; tests pass one that records.
    """

    only_shows = True

    def __init__(self, console: Console | None = None):
        self._console = console or _Terminal(highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._facts: RunFacts | None = None

    def started(self, facts: RunFacts) -> None:
        self._facts = facts
        self._print(f"data      {facts.data['name']}: " + _split_line(facts.data))
        if "reading" in facts.data:
            self._print(f"reading   {facts.data['reading']}")
        self._print(f"model     {facts.model}: {facts.params:,} parameters, {human(facts.flops)}FLOPs per sample")
        compute = facts.environment["compute"]
        self._print(f"compute   {compute['device']}, {compute['precision']} ({compute['reason']})")
        if facts.config.train.flops is not None:
            self._print(f"training  {human(facts.config.train.flops)}FLOPs{_steps_of_flops(facts)}")
        self._print(f"growth    {_growth_line(facts)}")
        for line in _refusal_lines(facts):
            self._print(line)
        if facts.folder:
            self._print(f"folder    {facts.folder}")
        if self._console.is_terminal:
            self._progress = Progress(
                TextColumn("epoch {task.fields[epoch]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("steps"),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            self._progress.start()
            self._task = self._progress.add_task("train", total=facts.steps_per_epoch, epoch=1)

    def step(self, step: int) -> None:
        if self._progress is not None and self._task is not None and self._facts is not None:
            epoch, done = divmod(step - 1, self._facts.steps_per_epoch)
            left = self._facts.total_steps - epoch * self._facts.steps_per_epoch  # the last epoch may be a part of one
            total = min(self._facts.steps_per_epoch, left) if left > 0 else self._facts.steps_per_epoch
            self._progress.update(self._task, completed=done + 1, total=total, epoch=epoch + 1)

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        parts = [f"epoch {record.epoch:>3}", f"loss {record.train_loss:.4f}"]
        if record.train_accuracy is not None:
            parts.append(f"acc {record.train_accuracy:6.2%}")
        parts += _metrics(record.train_metrics)
        if record.validate_loss is not None:
            parts.append(f"validate {record.validate_loss:.4f}")
        if record.validate_accuracy is not None:
            parts.append(f"{record.validate_accuracy:6.2%}")
        parts += _metrics(record.validate_metrics)
        parts += [
            f"lr {record.learning_rate:.4g}",
            f"{human(record.params)} params",
            f"{human(record.train_flops)}FLOPs spent",
        ]
        self._print("  ".join(parts))

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        lines = list(dict.fromkeys(decision.reason for decision in event.decisions))
        lines += [
            f"{g.site}: {g.old_width} -> {g.new_width}   {g.initializer}, {g.form}"
            + ("" if g.preserves else ", changes the function by design")
            + _notes(g.reason, g.facts)
            for g in event.grown
        ]
        lines += [
            f"{g.place}: {g.old_depth} -> {g.new_depth} blocks   {g.kind}, {g.params:,} parameters, "
            f"now {', '.join(g.modules)}"
            for g in event.deepened
        ]
        lines += [f"{r.name}: given up, {r.reason}" for r in event.refused]
        lines += [f"{r.name}: waits, {r.reason}" for r in event.waiting]
        lines.append(
            f"parameters {event.params_before:,} -> {event.params_after:,}   "
            f"loss {event.loss_before:.6f} -> {event.loss_after:.6f}   "
            f"change {event.change.eval:.1e} eval, {event.change.train:.1e} train"
        )
        if event.trial is not None:
            lines.append(f"{event.trial}: {'undone' if event.undone else 'kept'}")
        if event.latency_ms is not None:
            lines.append(f"latency {event.latency_ms:.3g} ms")
        title = f"growth at step {event.step}" + (f" undone: {event.undone}" if event.undone else "")
        if self._console.is_terminal:
            self._console.print(Panel(Text("\n".join(lines)), title=title, box=box.ROUNDED, expand=False))
        else:
            self._print(f"+-- {title}")
            for line in lines:
                self._print(f"| {line}")

    def no_growth(self, step: int, note: Nothing) -> None:
        self._print(f"{'growth ended' if note.ends else 'no growth'} at step {step}: {shortened(note.reason)}")

    def warned(self, message: str) -> None:
        self._print(f"warning: {shortened(message)}")

    def finished(self, result: Mapping[str, Any]) -> None:
        self.close()
        for line in summary_lines(result):
            self._print(line)

    def interrupted(self, step: int) -> None:
        self.close()
        self._print(f"interrupted after step {step}; what was logged is kept")

    def failed(self, step: int, message: str) -> None:
        self.close()  # the command line prints the message

    def close(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)  # a line stays one line, whatever the console's width


def _notes(reason: str, facts: Mapping[str, Any]) -> str:
    beyond = facts.get("random_beyond_rank")
    return (f"; {beyond} units beyond the gradient's rank are random" if beyond else "") + (
        f" ({reason})" if reason not in ("asked for", "its only form") else ""
    )


def _split_line(data: Mapping[str, Any]) -> str:
    wrong = data.get("wrong_labels") or {}
    return ", ".join(
        f"{name} {size}" + (f" ({wrong[name]} labels wrong)" if wrong.get(name) else "")
        for name, size in data["splits"].items()
    )


def _metrics(values: Mapping[str, float]) -> list[str]:
    return [f"{name.replace('_', '-')} {value:.4g}" for name, value in values.items()]


def _steps_of_flops(facts: RunFacts) -> str:
    """How many steps are known to come of the FLOPs that end a run."""
    return f", {facts.total_steps} steps by the plan" if facts.plan else f", at most {facts.total_steps} steps"


def _growth_line(facts: RunFacts) -> str:
    if facts.config.control != "none":
        return (
            f"none: control {facts.config.control}, {facts.total_steps} steps for the training FLOPs of the growth plan"
        )
    if facts.config.growth.when.name == "never":
        return "never"
    mode, room = facts.config.growth.mode, []
    if mode != "depth":
        room.append(f"{len(facts.widths)} sites")
    if mode != "width":
        room.append(f"{len(facts.depths)} places")
    if facts.plan is not None:
        room.append(f"{len(facts.plan.events)} events" + ("" if facts.plan.reaches_target else ", target not reached"))
    else:
        room.append(f"when {facts.config.growth.when.name}")
    if facts.config.growth.trial is not None:
        room.append("every event on trial")
    return f"{'depth' if mode == 'depth' else facts.config.growth.initializer.name}, " + ", ".join(room)


def _refusal_lines(facts: RunFacts) -> list[str]:
    """Widths that stay, each with its reason; a long list is cut, and says so."""
    told = describe_refusals(facts.refusals).splitlines()
    told += [f"{r.name or 'the model'} (depth): {r.reason}" for r in facts.place_refusals]
    every = list(dict.fromkeys(f"stays     {line.strip()}" for line in told))
    more = len(every) - MOST_REFUSALS
    return every[:MOST_REFUSALS] + ([f"stays     {more} more; --dry-run lists all"] if more > 0 else [])


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The end of a run in six lines, and one more where there is a ladder to choose from."""
    scores = []
    for split in ("test", "validate"):
        if result[split] is not None:
            accuracy = result[split]["accuracy"]
            others = {name: value for name, value in result[split].items() if name not in ("accuracy", "loss")}
            scores.append(
                f"{split} "
                + (f"{accuracy:.2%} " if accuracy is not None else "")
                + "".join(f"{metric} " for metric in _metrics(others))
                + f"(loss {result[split]['loss']:.4f})"
            )
    folder = result["folder"]
    return [
        "result    " + (", ".join(scores) or "no test or validate split"),
        f"model     {result['params']:,} parameters, {human(result['flops'])}FLOPs per sample, "
        f"after {result['events']} growth events",
        *_ladder_line(result),
        f"cost      {human(result['train_flops'])}FLOPs of training, "
        f"{human(sum(result['other_flops'].values()))}FLOPs of growth and evaluation",
        f"time      {result['cpu_seconds']:.1f} CPU-seconds, "
        f"{result['process_cpu_seconds']:.1f} with the program's start; {result['wall_seconds']:.1f} s",
        f"files     {folder}" if folder else "files     none written",
        f"next      {_next_step(folder)}",
    ]


def _ladder_line(result: Mapping[str, Any]) -> list[str]:
    ladder = result["ladder"]
    if ladder is None:
        return ["ladder    not judged, for there is no validate split"] if result["events"] else []
    if ladder["stages"] == 1:
        return []
    metric, best, smallest = ladder["metric"], ladder["best"], ladder["smallest"]
    form = ".2%" if metric == "accuracy" else ".4g"
    return [
        f"ladder    {ladder['stages']} stages; the smallest within one standard error ({ladder['within']:{form}}) "
        f"of the best validate {metric} ({best[metric]:{form}}) is stage {smallest['stage']}: "
        f"{smallest[metric]:{form}}, {smallest['params']:,} parameters, {human(smallest['flops'])}FLOPs per sample"
    ]


def _next_step(folder: str | None) -> str:
    if folder is None:
        return "pass root= to keep a run folder"
    if Path(folder, "tb").is_dir():
        return f"tensorboard --logdir {folder}/tb"
    return f"growkit.load({folder!r}) in Python gives the model"
