"""What arms reached on the way: means over seeds and paired differences, against steps or training FLOPs."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from growkit.compare.measure import Measure
from growkit.compare.statistics import interval
from growkit.compare.summary import Row

__all__ = ["AXES", "Band", "Curves", "read_curves"]

AXES = {"step": "steps", "train_flops": "training FLOPs"}
POINTS = 200  # most of a curve
Curve = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Band:
    """A mean over runs, or over pairs of runs, with its interval, along a curve.

    Attributes:
        x: where, ascending, [P]. mean: [P]. half: half the interval's width, [P]; NaN for one run.
        low, high: the least and the greatest value, [P]. count: of runs or pairs.
    """

    x: np.ndarray
    mean: np.ndarray
    half: np.ndarray
    low: np.ndarray
    high: np.ndarray
    count: int


@dataclass(frozen=True)
class Curves:
    """The curves of a comparison.

    Attributes:
        measure: what was read after each epoch. axis: a key of AXES.
        bands: by arm; without an arm whose runs have no such values.
        differences: by arm, to the arm that the others are held against, over the seeds that both have.
    """

    measure: Measure
    axis: str
    bands: Mapping[str, Band]
    differences: Mapping[str, Band]

    def to_csv(self) -> str:
        """A table with a line for each arm and point (docs/compare.md)."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(["arm", self.axis, "curve", "mean", "half_interval"])
        for name, bands in ((self.measure.name, self.bands), ("difference", self.differences)):
            table.writerows(line for arm, band in bands.items() for line in _lines(arm, name, band))
        return text.getvalue()


def _lines(arm: str, curve: str, band: Band) -> Iterator[list[str]]:
    for x, mean, half in zip(band.x, band.mean, band.half, strict=True):
        yield [arm, f"{x:.10g}", curve, f"{mean:.6g}", "" if np.isnan(half) else f"{half:.6g}"]


def read_curves(rows: Sequence[Row], measure: Measure, against: str, axis: str) -> Curves:
    """The curves of the validate split where runs have it, else of train.

    Args:
        rows: of the table; their runs lie on disk.
        measure: its metric is read.
        against: the arm that differences are to.
        axis: what the curves run along: a key of AXES.
    """
    found: dict[str, dict[int, Curve]] = {}
    for split in ("validate", "train"):
        measure = measure.on(split)
        found = {row.arm.name: _curves(row, axis, f"{split}_{measure.metric}") for row in rows}
        if any(found.values()):
            break
    found = {arm: curves for arm, curves in found.items() if curves}
    theirs = found.get(against, {})
    return Curves(
        measure,
        axis,
        {arm: _mean(curves) for arm, curves in found.items()},
        {arm: _difference(ours, theirs) for arm, ours in found.items() if arm != against and set(ours) & set(theirs)},
    )


def _curves(row: Row, axis: str, column: str) -> dict[int, Curve]:
    """(x, value) after each epoch, of every finished run, by seed."""
    read = {seed: _read(one.folder / "metrics.csv", axis, column) for seed, one in row.outcomes.items() if one.folder}
    return {seed: curve for seed, curve in read.items() if curve is not None}


def _read(path: Path, axis: str, column: str) -> Curve | None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(line[axis], line[column]) for line in csv.DictReader(file) if line.get(column)]
    numbers = np.array(rows, dtype=float).reshape(-1, 2)
    return (numbers[:, 0], numbers[:, 1]) if len(numbers) else None


def _mean(curves: Mapping[int, Curve]) -> Band:
    x, values = _common(list(curves.values()))
    return _band(x, values)


def _difference(ours: Mapping[int, Curve], theirs: Mapping[int, Curve]) -> Band:
    seeds = sorted(set(ours) & set(theirs))
    x, values = _common([ours[seed] for seed in seeds] + [theirs[seed] for seed in seeds])
    return _band(x, values[: len(seeds)] - values[len(seeds) :])


def _band(x: np.ndarray, values: np.ndarray) -> Band:
    """Of values [runs, P]."""
    found = [interval(list(column)) for column in values.T]
    halves = [np.nan if one.half is None else one.half for one in found]
    means = np.array([one.mean for one in found])
    return Band(x, means, np.array(halves), values.min(0), values.max(0), len(values))


def _common(curves: Sequence[Curve]) -> Curve:
    """One grid [P] and values [runs, P] on it: points of the runs where they share them, else between them."""
    first = curves[0][0]
    if all(np.array_equal(x, first) for x, _ in curves):
        kept = np.unique(np.linspace(0, len(first) - 1, min(POINTS, len(first))).round().astype(int))
        return first[kept], np.stack([values[kept] for _, values in curves])
    start, end = max(x[0] for x, _ in curves), min(x[-1] for x, _ in curves)
    grid = np.linspace(start, end, POINTS)
    return grid, np.stack([np.interp(grid, x, values) for x, values in curves])
