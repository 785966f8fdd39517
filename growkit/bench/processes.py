"""Many commands, a few at a time, each with a time limit after which it and all its children are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Generic, TypeVar

__all__ = ["Ending", "run_bounded"]

T = TypeVar("T")
POLL = 0.05


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Attributes:
        seconds: wall time.
        timed_out: it was killed at the limit.
        code: its exit code, negative for a signal.
        last_words: the last line it wrote to standard error.
    """

    seconds: float
    timed_out: bool
    code: int
    last_words: str


def run_bounded(
    tasks: Iterable[tuple[T, Sequence[str]]], *, jobs: int, limit_seconds: float
) -> Generator[tuple[T, Ending]]:
    """Run the command of each task and yield the tasks as they end; none outlives this generator.

    Args:
        tasks: (what to yield, the command) pairs.
        jobs: how many run at a time.
        limit_seconds: wall time of each.
    """
    waiting, running = deque(tasks), list[_Running[T]]()
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Running(*waiting.popleft(), limit_seconds))
            for one in list(running):
                ending = one.poll()
                if ending is not None:
                    running.remove(one)
                    yield one.task, ending
            time.sleep(POLL)
    finally:
        for one in running:
            one.kill()
            one.errors.close()


class _Running(Generic[T]):
    def __init__(self, task: T, command: Sequence[str], limit: float):
        self.task, self.limit, self.start = task, limit, time.monotonic()
        self.errors: IO[bytes] = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self.errors,
            start_new_session=True,  # its own group, so that its children can be killed with it
        )

    def poll(self) -> Ending | None:
        seconds = time.monotonic() - self.start
        timed_out = self.process.poll() is None and seconds > self.limit
        if self.process.poll() is None and not timed_out:
            return None
        self.kill()
        return Ending(seconds, timed_out, self.process.wait(), self._last_words())

    def kill(self) -> None:
        """End the process and whatever it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _last_words(self) -> str:
        with self.errors as errors:
            errors.seek(max(0, errors.seek(0, os.SEEK_END) - 2000))
            lines = errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
