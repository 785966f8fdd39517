"""Runs on disk: each is made by `growkit run` in a process of its own, or collected where it was made before."""

from __future__ import annotations

import hashlib
import json
import math
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import growkit
from growkit.bench.processes import Ending, run_bounded
from growkit.compare.arms import differing
from growkit.config import Config, dump_config, load_config
from growkit.environment import describe_environment
from growkit.errors import UserInputError
from growkit.report import write_atomically

__all__ = ["Outcome", "Run", "Runner", "source_hash"]

SETTINGS = "settings.yaml"
FAULT_OF_INPUT = 2
NO_SPACE = ("[Errno 28]", "[Errno 122]")  # of the disk; of the user's quota
TERMINATED = 143


@dataclass(frozen=True)
class Run:
    """One run of one arm.

    Attributes:
        label: how it is spoken of. config: all its settings. home: the folder in which it makes its own, by time.
    """

    label: str
    config: Config
    home: Path


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        folder: where it lies; None where it came to nothing.
        result: what its result.json holds; None where it failed.
        environment: what its env.json holds.
        source: hash of growkit's code that made it.
        failure: why there is no result.
    """

    folder: Path | None = None
    result: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    source: str | None = None
    failure: str | None = None


class Runner:
    """Executes runs, so many at a time, and never one that is there.

    Args:
        jobs: runs at a time.
        say: is told of each run when it has ended: the run, its outcome, whether it was made before.
    """

    def __init__(self, jobs: int, say: Callable[[Run, Outcome, bool], None]):
        self._jobs, self._say = jobs, say
        self._environment = describe_environment()

    def __call__(self, runs: Sequence[Run]) -> list[Outcome]:
        """The outcome of each run, in their order.

        Raises:
            UserInputError: a stored run has other settings or was made by other versions, a folder cannot be written,
                or a run found something wrong with what the user gave.
        """
        outcomes: dict[int, Outcome] = {}
        for number, run in enumerate(runs):  # all of them first: what does not fit is told before hours are spent
            stored = self._collect(run)
            if stored is not None:
                outcomes[number] = stored
        for number, outcome in outcomes.items():
            self._say(runs[number], outcome, True)
        missing = [number for number in range(len(runs)) if number not in outcomes]
        for number in missing:
            self._prepare(runs[number])
        with _stopping_at_sigterm():
            commands = [(number, _command(runs[number])) for number in missing]
            for number, ending in run_bounded(commands, jobs=self._jobs, limit_seconds=math.inf):
                outcomes[number] = self._conclude(runs[number], ending)
                self._say(runs[number], outcomes[number], False)
        return [outcomes[number] for number in range(len(runs))]

    def _collect(self, run: Run) -> Outcome | None:
        """The newest finished run in a folder."""
        for folder in sorted(run.home.glob("*/"), reverse=True) if run.home.is_dir() else ():
            if folder.is_symlink() or not (folder / "result.json").is_file():
                continue
            try:
                outcome = Outcome(
                    folder, _json(folder / "result.json"), _json(folder / "env.json"), _made_by(run.home / SETTINGS)
                )
                stored = load_config(folder / "config.yaml")
            except (OSError, ValueError, UserInputError) as error:
                raise UserInputError(f"{folder}: a stored run cannot be read: {error}; {_REMEDY}") from error
            self._check(run, stored, outcome)
            return outcome
        return None

    def _check(self, run: Run, stored: Config, outcome: Outcome) -> None:
        """Refuse a stored run that is not the one asked for."""
        for key, ours, theirs in differing(run.config, stored):
            raise UserInputError(
                f"{outcome.folder}: a stored run must have the settings asked for, but {key} is {theirs!r} there and "
                f"{ours!r} here; {_REMEDY}"
            )
        if stored.seed != run.config.seed:
            raise UserInputError(f"{outcome.folder}: the stored run has seed {stored.seed}; {_REMEDY}")
        here, there = _versions(self._environment), _versions(outcome.environment or {})
        for name, version in here.items():
            if there.get(name) != version:
                raise UserInputError(
                    f"{outcome.folder}: a stored run must be made by the versions that are here, but {name} was "
                    f"{there.get(name)} and is {version}; {_REMEDY}"
                )

    def _prepare(self, run: Run) -> None:
        """Write the settings that the process of a run reads."""
        text = f"# growkit {source_hash()}\n{dump_config(run.config)}"
        try:
            run.home.mkdir(parents=True, exist_ok=True)
            write_atomically(run.home / SETTINGS, text.encode())
        except OSError as error:
            raise UserInputError(
                f"--out must be a folder that can be written, but {run.home} cannot: {error.strerror}; "
                "choose another, or make room"
            ) from error

    def _conclude(self, run: Run, ending: Ending) -> Outcome:
        """What a process left behind."""
        words = ending.last_words.removeprefix("growkit: ")
        if ending.code == FAULT_OF_INPUT:
            raise UserInputError(f"{run.label}: {words}")
        if ending.code != 0 and any(fault in words for fault in NO_SPACE):
            raise UserInputError(
                f"{run.label}: no space is left where --out lies ({run.home}); what is finished is kept. Make room, "
                "then the same command goes on"
            )
        if ending.code == 0 and (outcome := self._collect(run)) is not None:
            return outcome
        return Outcome(failure=words or f"its process ended with code {ending.code}")


_REMEDY = "choose another --out, or remove that folder"


def _command(run: Run) -> list[str]:
    # -P: the working folder comes last among the places of modules, as it does for the command
    return [sys.executable, "-P", "-m", "growkit", "run", str(run.home / SETTINGS)]


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _versions(environment: dict[str, Any]) -> dict[str, Any]:
    return {"python": environment.get("python"), **environment.get("packages", {})}


@cache
def source_hash() -> str:
    """A hash of growkit's own code."""
    root, digest = Path(growkit.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def _made_by(settings: Path) -> str | None:
    first = settings.read_text(encoding="utf-8").partition("\n")[0].split() if settings.is_file() else []
    return first[2] if first[:2] == ["#", "growkit"] and len(first) == 3 else None


@contextmanager
def _stopping_at_sigterm() -> Iterator[None]:
    """Let SIGTERM unwind this process, so that those it started end with it."""

    def stop(*_: object) -> None:
        sys.exit(TERMINATED)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread, which alone may
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
