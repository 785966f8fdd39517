"""What a measurement has found so far, on disk after every stage: a process that is killed leaves what it knew."""

from __future__ import annotations

import json
import math
import re
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["DONE", "Progress", "number", "to_json", "without_folders"]

DONE = "done"


class Progress:
    """The row of one model, written to `path` whenever a stage begins.

    Attributes:
        row: the facts; `stage` is the one at work or "done", `seconds` the CPU seconds of each stage.
    """

    def __init__(self, path: Path):
        self.path = path
        self.row: dict[str, Any] = {"stage": "start", "seconds": {}}

    def add(self, **facts: Any) -> None:
        """Note facts; the next stage writes them."""
        self.row.update(facts)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage in CPU seconds of this process."""
        self.row["stage"] = name
        self.write()
        start = time.process_time()
        try:
            yield
        finally:
            self.row["seconds"][name] = round(time.process_time() - start, 3)

    def fail(self, error: BaseException) -> None:
        """Note what ended the stage at work."""
        lines = str(error).strip().splitlines()
        self.row["failure"] = {
            "kind": type(error).__name__,
            "message": without_folders(lines[0] if lines else "")[:300],
        }
        self.write()

    def finish(self) -> None:
        """All stages are done."""
        self.row["stage"] = DONE
        self.write()

    def write(self) -> None:
        """Replace the file by the row as it is."""
        self.row["peak_mib"] = _peak_mib()
        fresh = self.path.with_suffix(".new")
        fresh.write_text(to_json(self.row))
        fresh.replace(self.path)


def _peak_mib() -> int:
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 2**20


def to_json(row: dict[str, Any]) -> str:
    """One line of JSON; numbers that JSON does not know become "inf" and "nan"."""
    return json.dumps(_finite(row), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def number(value: Any) -> float | None:
    """A number as `to_json` wrote it."""
    return None if value is None else float(value)


def without_folders(text: str) -> str:
    """The text with every absolute path of a Python file cut to the file, or to its place in an installed package."""
    text = re.sub(r"/[^\s'\"]*/site-packages/", "", text)
    return re.sub(r"(?<![\w.])/(?:[\w.+-]+/)+(?=[\w.+-]+\.py)", "", text)
