"""Shared by all tests: one thread, and a run small enough to make in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

EXPERIMENTS = Path(__file__).parent.parent / "experiments"

SHORT = {
    "train.epochs": "4",
    "train.optimizer": "{name: sgd, lr: 0.1}",  # half the passes of the job's SAM
    "growth.when.start": "1",
    "growth.when.every": "1",
    "run.tensorboard": "false",
}


def short(root: Path, **overrides: str) -> list[str]:
    """Overrides that make the main job short; dots in keys are written as two underscores."""
    changed = {key.replace("__", "."): value for key, value in overrides.items()}
    settings = {**SHORT, **changed}
    if "growth.when" in settings:
        settings = {key: value for key, value in settings.items() if not key.startswith("growth.when.")}
    return [f"{key}={value}" for key, value in settings.items()] + [f"run.root={root}"]


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def wrn_quarter() -> Path:
    return EXPERIMENTS / "wrn_quarter.yaml"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Write a text to c.yaml in an empty working folder, so that problems start with `c.yaml:`."""
    monkeypatch.chdir(tmp_path)

    def write_text(text: str) -> Path:
        Path("c.yaml").write_text(text, encoding="utf-8")
        return Path("c.yaml")

    return write_text
