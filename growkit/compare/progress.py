"""What the terminal shows while runs are made: a line for each that has ended, and a bar below them."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from growkit.compare.measure import Measure
from growkit.compare.runs import Outcome, Run
from growkit.report.console import human

__all__ = ["Progress"]


class Progress:
    """Counts runs and tells of them.

    Args:
        total: runs to come.
        say: takes each line; a bar is drawn beside it where standard output is a terminal.
    """

    def __init__(self, total: int, say: Callable[[str], None]):
        self.total, self.done, self.say = total, 0, say
        columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, console=Console(), transient=True)
        self._task = self._bar.add_task("runs", total=total)

    def __enter__(self) -> Progress:
        if self._bar.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar.console.is_terminal:  # else it would print an empty line
            self._bar.stop()

    def of(self, measure: Measure) -> Callable[[Run, Outcome, bool], None]:
        """Tells of runs by a measure."""

        def tell(run: Run, outcome: Outcome, stored: bool) -> None:
            if outcome.result is not None:
                self.done += 1
            self._bar.advance(self._task)
            self.say(f"{self.done:>4}/{self.total}  {run.label}: {_told(outcome, measure)}{' (stored)' * stored}")

        return tell


def _told(outcome: Outcome, measure: Measure) -> str:
    if outcome.result is None:
        return f"failed: {outcome.failure}"
    value, result = measure.of(outcome.result), outcome.result
    score = "no finite number" if value is None else f"{value:.4f}"
    return f"{measure.name} {score}, {human(result['train_flops'])}FLOPs of training, {result['cpu_seconds']:.1f} CPU-s"
