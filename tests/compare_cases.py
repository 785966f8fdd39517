"""A comparison small enough for a test: a perceptron on 200 digits, each run in this process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from growkit.bench.processes import Ending
from growkit.compare import CompareSettings, compare
from growkit.config import Config, load_config
from growkit.errors import GrowkitError
from growkit.pipeline import run

TINY = """
data: {name: digits, limit: 200, augment: {crop: 0}, split: {validate: 0.2}}
model: {name: mlp, hidden: [4]}
train: {epochs: 2, batch_size: 32, optimizer: {name: sgd, lr: 0.1}}
growth: {when: {start: 1, every: 1, events: 1}, how_many: {fraction: 1.0}, target: 2.0}
run: {tensorboard: false}
"""


class InProcess:
    """Stands in for processes: runs one after the other, here.

    Attributes:
        made: the settings of the runs made. die_after: raise KeyboardInterrupt after so many.
    """

    def __init__(self) -> None:
        self.made: list[Config] = []
        self.die_after: int | None = None

    def __call__(
        self, tasks: Iterable[tuple[int, Sequence[str]]], *, jobs: int, limit_seconds: float
    ) -> Iterator[tuple[int, Ending]]:
        for task, command in tasks:
            if len(self.made) == self.die_after:
                raise KeyboardInterrupt
            config = load_config(command[-1])
            self.made.append(config)
            yield task, _ending(config)


def _ending(config: Config) -> Ending:
    try:
        run(config, observers=[])
    except GrowkitError as error:
        return Ending(0.0, False, error.exit_code, f"growkit: {error}")
    return Ending(0.0, False, 0, "")


def in_process(monkeypatch: pytest.MonkeyPatch) -> InProcess:
    """Let comparisons run here; what comes back knows what was run."""
    runs = InProcess()
    monkeypatch.setattr("growkit.compare.runs.run_bounded", runs)
    return runs


def compared(folder: Path, *arguments: str, **settings: Any) -> dict[str, Any]:
    """What compare.json holds, with arms by name; files that arguments name are in the working folder."""
    lines: list[str] = []
    asked = CompareSettings(arguments, out=folder / "out", **{"seeds": "2", **settings})
    result = compare(asked, lines.append)
    assert result is not None
    return result | {"arms": {arm["name"]: arm for arm in result["arms"]}, "lines": lines}
