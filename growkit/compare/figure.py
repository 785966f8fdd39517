"""The picture: what training FLOPs bought on the way, and where the arms ended."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from growkit.compare.measure import Measure
from growkit.compare.statistics import LEVEL, interval
from growkit.compare.summary import Row

__all__ = ["draw"]

# told apart by people who see fewer colours (Okabe and Ito, 2008), and by their markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "osD^vPX*"
BARS = 6
POINTS = 200  # of a curve that is put on a common grid
Curve = tuple[np.ndarray, np.ndarray]


def draw(rows: Sequence[Row], measure: Measure, against: str) -> bytes:
    """The picture as PNG.

    Left: the metric after each epoch against the training FLOPs spent so far, mean over seeds, with its t-interval at
    some points. Right: the final means with their t-intervals, and every seed as a faint dot.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(11, 4.5), layout="constrained", dpi=150)
    curves, ends = figure.subplots(1, 2, width_ratios=(3, 2))
    split = _draw_curves(curves, rows, measure)
    _draw_ends(ends, rows, measure, against)
    curves.xaxis.set_major_formatter(EngFormatter(sep=""))
    curves.set(xlabel="training FLOPs", ylabel=f"{split} {measure.metric.replace('_', '-')}")
    curves.set_title(f"on the way: mean and {LEVEL:.0%} interval over seeds", fontsize=10)
    handles, labels = curves.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(rows), 6), frameon=False)
    for axes in (curves, ends):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_curves(axes: Any, rows: Sequence[Row], measure: Measure) -> str:
    """Curves of the validate split where all runs have it, else of train; says which."""
    read = {}
    for split in ("validate", "train"):
        read = {row.arm.name: _curves(row, f"{split}_{measure.metric}") for row in rows}
        if any(read.values()):
            break
    lowest, highest = np.inf, -np.inf
    for number, row in enumerate(rows):
        curves = read[row.arm.name]
        if not curves:
            continue
        flops, values = _common(curves)
        found = [interval(list(column)) for column in values.T]
        mean = np.array([one.mean for one in found])
        half = np.array([one.half or 0.0 for one in found])
        colour = COLOURS[number % len(COLOURS)]
        # bars at a few points, at other ones for each arm: bands over each other show nothing
        every = max(1, len(flops) // BARS)
        shown = slice(number * every // len(rows), None, every)
        axes.plot(flops, mean, color=colour, label=row.arm.name, linewidth=1.8)
        axes.errorbar(
            flops[shown],
            mean[shown],
            yerr=half[shown],
            fmt=MARKERS[number % len(MARKERS)],
            color=colour,
            elinewidth=1,
            capsize=3,
            markersize=5,
        )
        lowest, highest = min(lowest, mean.min()), max(highest, mean.max())
    _scale(axes, lowest, highest, measure)
    return split


def _scale(axes: Any, lowest: float, highest: float, measure: Measure) -> None:
    """Errors that fall by orders of magnitude on a logarithmic axis; else the window of the means, not of the bands."""
    if not np.isfinite(lowest) or lowest == highest:
        return
    if not measure.higher_is_better and lowest > 0 and highest / lowest > 20:
        axes.set_yscale("log")
        axes.set_ylim(lowest * 0.7, highest * 1.4)
        return
    margin = 0.08 * (highest - lowest)
    axes.set_ylim(lowest - margin, highest + margin)


def _draw_ends(axes: Any, rows: Sequence[Row], measure: Measure, against: str) -> None:
    for number, row in enumerate(rows):
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        place = len(rows) - 1 - number
        values = list(row.values.values())
        axes.scatter(values, [place - 0.18] * len(values), color=colour, alpha=0.35, s=14, linewidth=0)
        if row.mean is not None:
            axes.errorbar(
                row.mean.mean, place, xerr=row.mean.half, color=colour, marker=marker, capsize=4, markersize=7
            )
        if row.arm.name == against and row.mean is not None:
            axes.axvline(row.mean.mean, color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.arm.name for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(measure.name)
    axes.set_title(f"at the end: mean, {LEVEL:.0%} interval, each seed", fontsize=10)


def _curves(row: Row, column: str) -> list[Curve]:
    """(training FLOPs, value) after each epoch, of every finished run."""
    read = [_read(outcome.folder / "metrics.csv", column) for outcome in row.outcomes.values() if outcome.folder]
    return [curve for curve in read if curve is not None]


def _read(path: Path, column: str) -> Curve | None:
    with path.open(newline="", encoding="utf-8") as file:
        rows = [(line["train_flops"], line[column]) for line in csv.DictReader(file) if line.get(column)]
    numbers = np.array(rows, dtype=float).reshape(-1, 2)
    return (numbers[:, 0], numbers[:, 1]) if len(numbers) else None


def _common(curves: Sequence[Curve]) -> Curve:
    """FLOPs [P] and values [runs, P] on one grid: that of the runs where they share it, else between them."""
    first = curves[0][0]
    if all(np.array_equal(flops, first) for flops, _ in curves):
        return first, np.stack([values for _, values in curves])
    start, end = max(flops[0] for flops, _ in curves), min(flops[-1] for flops, _ in curves)
    grid = np.linspace(start, end, POINTS)
    return grid, np.stack([np.interp(grid, flops, values) for flops, values in curves])
