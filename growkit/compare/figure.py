"""The picture: what steps or training FLOPs bought on the way, how arms differed there, and where they ended."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from growkit.compare.curves import AXES, Band, Curves
from growkit.compare.measure import Measure
from growkit.compare.statistics import LEVEL
from growkit.compare.summary import Row

__all__ = ["draw"]

# told apart by people who see fewer colours (Okabe and Ito, 2008), and by their markers
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "osD^vPX*"
BARS = 6
FEWEST = 3  # seeds of which intervals are drawn: that of two is 9 times as wide as the seeds lie apart
APART = 10  # differences larger than the median one by this factor leave no room for the others on a linear axis


def draw(rows: Sequence[Row], curves: Curves, measure: Measure, against: str) -> bytes:
    """The picture as PNG.

    Left: the metric after each epoch, mean over seeds, with its t-interval at some points; below it, the paired
    differences to `against`. Right: the final means with their t-intervals, and every seed as a faint dot. Where an arm
    has two seeds, the range of the seeds stands for the interval everywhere, and the titles say so.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    two = bool(curves.differences)
    figure = Figure(figsize=(11, 7.0 if two else 4.5), layout="constrained", dpi=150)
    axes = figure.subplot_mosaic("ME\nDE" if two else "ME", width_ratios=(3, 2))  # metric, differences, ends
    names = [row.arm.name for row in rows]
    counts = [band.count for band in (*curves.bands.values(), *curves.differences.values())]
    few = any(1 < count < FEWEST for count in (*counts, *(len(row.values) for row in rows)))
    _draw_metric(axes["M"], curves, names, few=few)
    if two:
        _draw_differences(axes["D"], curves, names, against, few=few)
        axes["D"].sharex(axes["M"])
    _draw_ends(axes["E"], rows, measure, against, few=few)
    handles, labels = axes["M"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(rows), 7), frameon=False)
    for name, one in axes.items():
        one.grid(alpha=0.25)
        one.spines[["top", "right"]].set_visible(False)
        if name != "E":
            one.set_xlabel(AXES[curves.axis])
            one.xaxis.set_major_formatter(EngFormatter(sep=""))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _look(number: int) -> dict[str, Any]:
    """Colour and marker of the arm of that number; the second eight are dashed and have other markers."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[(number + 3 * turn) % len(MARKERS)],
        "linestyle": ("-", "--", ":")[turn % 3],
    }


def _bars(few: bool) -> str:
    return "range of the seeds, two being too few for an interval" if few else f"{LEVEL:.0%} interval"


def _draw_metric(axes: Any, curves: Curves, names: Sequence[str], *, few: bool) -> None:
    _draw_bands(axes, curves.bands, names, few=few)
    _scale(axes, curves.bands, curves.measure)
    axes.set_ylabel(curves.measure.name)
    axes.set_title(f"on the way: mean and {_bars(few)}", fontsize=10)


def _draw_bands(axes: Any, bands: Mapping[str, Band], names: Sequence[str], *, few: bool) -> None:
    for number, name in enumerate(names):
        if name not in bands:
            continue
        band, look = bands[name], _look(number)
        # bars at a few points, at other ones for each arm: bands over each other show nothing
        every = max(1, len(band.x) // BARS)
        first = number * every // len(names)
        shown = slice(first, None, every)
        axes.plot(band.x, band.mean, label=name, linewidth=1.8, markersize=5, markevery=(first, every), **look)
        axes.errorbar(
            band.x[shown],
            band.mean[shown],
            yerr=np.stack(_beside(band, few))[:, shown],
            fmt="none",
            ecolor=look["color"],
            elinewidth=1,
            capsize=3,
        )


def _beside(band: Band, few: bool) -> tuple[np.ndarray, np.ndarray]:
    """How far the bars go below and above the mean."""
    if few:
        return band.mean - band.low, band.high - band.mean
    return np.nan_to_num(band.half), np.nan_to_num(band.half)


def _scale(axes: Any, bands: Mapping[str, Band], measure: Measure) -> None:
    """Errors that fall by orders of magnitude on a logarithmic axis; else the window of the seeds, not of the bars."""
    lowest = min((band.low.min() for band in bands.values()), default=np.inf)
    highest = max((band.high.max() for band in bands.values()), default=-np.inf)
    if not np.isfinite(lowest) or lowest == highest:
        return
    if not measure.higher_is_better and lowest > 0 and highest / lowest > 20:
        axes.set_yscale("log")
        axes.set_ylim(lowest * 0.7, highest * 1.4)
        return
    margin = 0.08 * (highest - lowest)
    axes.set_ylim(lowest - margin, highest + margin)


def _draw_ends(axes: Any, rows: Sequence[Row], measure: Measure, against: str, *, few: bool) -> None:
    for number, row in enumerate(rows):
        look = _look(number)
        colour, marker = look["color"], look["marker"]
        place = len(rows) - 1 - number
        values = list(row.values.values())
        axes.scatter(values, [place - 0.18] * len(values), color=colour, alpha=0.35, s=14, linewidth=0)
        if row.mean is not None:
            mean, half = row.mean.mean, row.mean.half or 0.0
            bars = [[mean - min(values)], [max(values) - mean]] if few else [[half], [half]]
            axes.errorbar(mean, place, xerr=bars, color=colour, marker=marker, capsize=4, markersize=7)
        if row.arm.name == against and row.mean is not None:
            axes.axvline(row.mean.mean, color=colour, linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(rows)), [row.arm.name for row in reversed(rows)])
    axes.set_ylim(-0.6, len(rows) - 0.4)
    axes.set_xlabel(measure.name)
    axes.set_title(f"at the end: mean, {'range' if few else _bars(few)}, each seed", fontsize=10)


def _draw_differences(axes: Any, curves: Curves, names: Sequence[str], against: str, *, few: bool) -> None:
    _draw_bands(axes, curves.differences, names, few=few)
    ends = np.abs([band.mean[-1] for band in curves.differences.values()])
    if 0 < APART * np.median(ends) < ends.max():
        axes.set_yscale("symlog", linthresh=np.median(ends))
    axes.axhline(0.0, color="#555555", linewidth=0.8)
    axes.set_ylabel(f"difference to {against}")
