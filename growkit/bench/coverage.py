"""On how many models does growth work? Each model in a process of its own, every outcome a row, then the summary."""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from growkit.bench.catalogue import Entry, entries_of
from growkit.bench.ledger import Ledger, Row
from growkit.bench.processes import Ending, run_bounded
from growkit.bench.progress import DONE
from growkit.bench.summary import models_table, readme, summarise
from growkit.environment import describe_environment
from growkit.errors import UserInputError

__all__ = ["CoverageSettings", "run_coverage"]

SUMMARY_VERSION = 1


@dataclass(frozen=True)
class CoverageSettings:
    """What to measure and how.

    Attributes:
        models: "torchvision", "timm" or a file with one model a line.
        out: folder of rows and summaries.
        limit_seconds: wall time of one model in one tool.
        limit_gib: memory of one model in one tool.
        jobs: models at a time.
        only: glob over names; the others are left as they are.
        peer: measure torch-pruning as well.
        retry_failed: measure models again that failed.
    """

    models: str
    out: Path
    limit_seconds: float = 120
    limit_gib: float = 16
    jobs: int = 1
    only: str = "*"
    peer: bool = True
    retry_failed: bool = False

    @property
    def name(self) -> str:
        """The set's name in file names."""
        return self.models if self.models in ("torchvision", "timm") else Path(self.models).stem


@dataclass(frozen=True)
class _Task:
    tool: str
    entry: Entry
    ledger: Ledger
    path: Path  # where the worker leaves its row


def run_coverage(settings: CoverageSettings, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure the models that have no valid row yet, then write the summary of all that have one.

    Args:
        settings: what to measure.
        say: takes each line of the account.

    Returns:
        The summary, as in OUT/NAME.json; beside it stand OUT/NAME.jsonl (rows), OUT/NAME.md and OUT/README.md.

    Raises:
        UserInputError: the set cannot be read, `only` fits no model, a package that it needs is missing, or
            `out` cannot be a folder.
    """
    _need(settings)
    entries = entries_of(settings.models, settings.out)
    chosen = [entry for entry in entries if fnmatch(entry.spec, settings.only) or fnmatch(_bare(entry), settings.only)]
    if not chosen:
        raise UserInputError(f"--only must fit at least one of the {len(entries)} models, got {settings.only!r}")
    ledgers = {"growkit": Ledger(settings.out / f"{settings.name}.jsonl", "growkit")}
    if settings.peer:
        ledgers["torch-pruning"] = Ledger(settings.out / f"{settings.name}.torch-pruning.jsonl", "torch-pruning")
    for tool, ledger in ledgers.items():
        _measure(tool, _pending(tool, ledger, chosen, settings, say), ledger, settings, say)
    return _conclude(settings, entries, ledgers)


def _need(settings: CoverageSettings) -> None:
    try:
        settings.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserInputError(f"--out must be a folder, got {str(settings.out)!r}: {error.strerror}") from error
    wanted = {"timm": settings.models == "timm", "torch_pruning": settings.peer}
    for package, needed in wanted.items():
        if needed and find_spec(package) is None:
            remedy = (
                "pip install timm" if package == "timm" else "pip install torch-pruning, or leave it out: --no-peer"
            )
            raise UserInputError(f"this benchmark needs {package}, which is not installed; {remedy}")


def _bare(entry: Entry) -> str:
    return entry.spec.partition(":")[2]


def _pending(
    tool: str, ledger: Ledger, entries: list[Entry], settings: CoverageSettings, say: Callable[[str], None]
) -> list[Entry]:
    """The models without a valid row, and what is said about the others."""
    rows = ledger.rows()
    known = [entry for entry in entries if str(entry) in rows]
    stale = [entry for entry in known if not ledger.holds(rows[str(entry)], entry)]
    failed = [entry for entry in known if entry not in stale and rows[str(entry)].get("failure")]
    again = stale + (failed if settings.retry_failed else [])
    pending = [entry for entry in entries if entry not in known or entry in again]
    say(f"{tool}: {len(entries)} models, {len(entries) - len(pending)} measured before, {len(pending)} to measure")
    if stale:
        say(f"{tool}: {len(stale)} of them again, for the code, the versions or the model's own file changed since")
    if failed:
        what = "are measured again" if settings.retry_failed else "are left so; --retry-failed measures them again"
        say(f"{tool}: {len(failed)} failed before and {what}")
    return pending


def _measure(
    tool: str, entries: list[Entry], ledger: Ledger, settings: CoverageSettings, say: Callable[[str], None]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        tasks = [_Task(tool, entry, ledger, Path(folder, f"{i}.json")) for i, entry in enumerate(entries)]
        commands = [(task, _command(task, settings)) for task in tasks]
        ends = run_bounded(commands, jobs=settings.jobs, limit_seconds=settings.limit_seconds)
        for number, (task, row) in enumerate(_rows(ends, settings), 1):
            ledger.append(row, task.entry)
            say(f"[{number}/{len(tasks)}] {tool} {task.entry.spec}: {_outcome(row)}")


def _command(task: _Task, settings: CoverageSettings) -> list[str]:
    limits = [str(settings.limit_seconds), str(settings.limit_gib)]
    return [sys.executable, "-m", "growkit.bench.worker", task.tool, str(task.entry), str(task.path), *limits]


def _rows(ends: Iterator[tuple[_Task, Ending]], settings: CoverageSettings) -> Iterator[tuple[_Task, Row]]:
    for task, ending in ends:
        row = json.loads(task.path.read_text()) if task.path.exists() else {"stage": "start", "seconds": {}}
        row["wall_seconds"], row["limit_seconds"] = round(ending.seconds, 2), settings.limit_seconds
        if row["stage"] != DONE and "failure" not in row:
            row["failure"] = _end_of(ending, settings)
        yield task, row


def _end_of(ending: Ending, settings: CoverageSettings) -> dict[str, str]:
    """Why a worker left no result: it ran too long, or something killed it."""
    if ending.timed_out:
        return {"kind": "TimeLimit", "message": f"killed after {settings.limit_seconds:g} s"}
    return {"kind": "Killed", "message": f"ended with code {ending.code}: {ending.last_words[:200]}"}


def _outcome(row: Row) -> str:
    failure = row.get("failure")
    if failure:
        return f"{failure['kind']} in {row['stage']}: {failure['message'][:100]} ({row['wall_seconds']:.0f} s)"
    if "built" in row:
        return f"{'usable' if row['usable'] else 'nothing pruned'} ({row['wall_seconds']:.0f} s)"
    return f"{row['verified']}/{row['found']} sites, reach {row['reach_verified']:.2f} ({row['wall_seconds']:.0f} s)"


def _conclude(settings: CoverageSettings, entries: list[Entry], ledgers: dict[str, Ledger]) -> dict[str, Any]:
    rows = {
        tool: [row for entry in entries if (row := known.get(str(entry))) and ledger.holds(row, entry)]
        for tool, ledger in ledgers.items()
        for known in [ledger.rows()]
    }
    environment = describe_environment()
    environment["packages"] |= {k: v for ledger in ledgers.values() for k, v in ledger.origin["packages"].items()}
    summary = {
        "version": SUMMARY_VERSION,
        "set": settings.name,
        "in_set": len(entries),
        "limit_seconds": {tool: sorted({row["limit_seconds"] for row in of_tool}) for tool, of_tool in rows.items()},
        "command": shlex.join(["growkit", *environment.pop("command")[1:]]),
        "environment": environment,
        **summarise(rows["growkit"], rows.get("torch-pruning")),
    }
    out = settings.out
    (out / f"{settings.name}.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / f"{settings.name}.md").write_text(models_table(settings.name, rows["growkit"], rows.get("torch-pruning")))
    (out / "README.md").write_text(readme([json.loads(one.read_text()) for one in _summaries(out)]))
    return summary


def _summaries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.json") if path.with_suffix(".jsonl").exists())
