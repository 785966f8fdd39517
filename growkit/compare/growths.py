"""The growth events of a finished run, as its events.jsonl holds them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

__all__ = ["Growth", "mean_gradients", "read_growths"]


@dataclass(frozen=True)
class Growth:
    """One growth event that stands.

    Attributes:
        step: optimizer steps before it. loss_before, loss_after: of the growth batch.
        gradient_norms: of all its new entries together, by steps after the event.
    """

    step: int
    loss_before: float
    loss_after: float
    gradient_norms: dict[int, float] = field(default_factory=dict)


def read_growths(folder: Path) -> list[Growth]:
    """The events of the run in a folder, in their order."""
    growths: list[Growth] = []
    for line in _lines(folder / "events.jsonl"):
        if line["event"] == "growth" and line["undone"] is None:
            growths.append(Growth(line["step"], line["loss_before"], line["loss_after"]))
        elif line["event"] == "new_units" and growths:
            norm = math.hypot(*(norm or 0.0 for norm in line["gradient_norms"].values()))
            growths[-1].gradient_norms[line["step"] - growths[-1].step] = norm
    return growths


def mean_gradients(runs: Sequence[Sequence[Growth]]) -> dict[int, float]:
    """By steps after an event, the mean gradient norm of new entries over events and runs."""
    norms: dict[int, list[float]] = {}
    for growth in (growth for run in runs for growth in run):
        for after, norm in growth.gradient_norms.items():
            norms.setdefault(after, []).append(norm)
    return {after: fmean(norms[after]) for after in sorted(norms)}


def _lines(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield json.loads(line)
