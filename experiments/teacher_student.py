"""A closer look at a comparison of growing arms: differences on the way, and the gradients of new units.

    python experiments/teacher_student.py FOLDER PICTURE

FOLDER is the --out of `growkit compare`. The picture leaves out arms that never grow, whose distance would hide the
others; the printed table holds the gradient norm of new units in the first step after every event, where all arms still
have the same weights at the first one.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
Point = tuple[float, float, float]


def read_differences(folder: Path) -> dict[str, list[Point]]:
    """By arm: step, mean of the paired differences, half the interval."""
    found: dict[str, list[Point]] = {}
    with (folder / "curves.csv").open(newline="") as file:
        for line in csv.DictReader(file):
            if line["curve"] == "difference":
                point = float(line["step"]), float(line["mean"]), float(line["half_interval"] or "nan")
                found.setdefault(line["arm"], []).append(point)
    return found


def gradients(arm: dict[str, Any]) -> dict[int, float]:
    """By steps after an event, the mean gradient norm of its new units over events and runs."""
    norms: dict[int, list[float]] = {}
    for growth in (growth for run in arm["runs"] for growth in run["growths"]):
        for after, norm in growth["gradient_norms"].items():
            norms.setdefault(int(after), []).append(norm)
    return {after: fmean(values) for after, values in sorted(norms.items())}


def table(arms: list[dict[str, Any]]) -> str:
    """Gradient norms in the first step after each event: mean ± standard deviation over seeds."""
    events = [growth["step"] for growth in arms[0]["runs"][0]["growths"]]
    lines = [
        "| arm | " + " | ".join(f"event at step {step}" for step in events) + " |",
        "|---" * (1 + len(events)) + "|",
    ]
    for arm in arms:
        columns = zip(*([g["gradient_norms"]["1"] for g in run["growths"]] for run in arm["runs"]), strict=True)
        cells = (f"{fmean(column):.3f} ± {stdev(column):.3f}" for column in columns)
        lines.append(f"| {arm['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def draw(
    arms: list[dict[str, Any]], differences: dict[str, list[tuple[float, float, float]]], comparison: dict
) -> Figure:
    """Left: differences on the way with their intervals at the end. Right: gradients of new units."""
    figure = Figure(figsize=(12, 5), layout="constrained", dpi=150)
    way, young = figure.subplots(1, 2, width_ratios=(3, 2))
    for number, arm in enumerate(arms):
        style = {"color": COLOURS[number % len(COLOURS)], "linestyle": "-" if number < len(COLOURS) else "--"}
        if arm["name"] in differences:
            steps, means, halves = zip(*differences[arm["name"]], strict=True)
            way.plot(steps, means, label=arm["name"], linewidth=1.6, **style)
            way.errorbar(steps[-1] + 12 * (number + 1), means[-1], halves[-1], color=style["color"], capsize=2, fmt=".")
        norms = gradients(arm)
        young.plot(list(norms), list(norms.values()), marker="o", markersize=3.5, label=arm["name"], **style)
    way.axhline(0.0, color="#555555", linewidth=0.8, label=f"{comparison['against']} = 0")
    for growth in arms[0]["runs"][0]["growths"]:
        way.axvline(growth["step"], color="#999999", linewidth=0.6, linestyle=":")
    way.set(
        xlabel="steps (dotted: growth events)",
        ylabel=f"{comparison['split']} loss, difference to {comparison['against']}",
    )
    young.set(xscale="log", yscale="log", xlabel="steps after a growth event", ylabel="gradient norm of new units")
    young.set_xticks([1, 2, 4, 8, 16, 32, 64, 128], ["1", "2", "4", "8", "16", "32", "64", "128"])
    young.minorticks_off()
    way.set_title(f"mean over {len(comparison['seeds'])} seeds; right end: 95% intervals", fontsize=10)
    young.set_title("mean over events and seeds", fontsize=10)
    figure.legend(*young.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    for axes in (way, young):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def main() -> None:
    """Print the table and draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    comparison = json.loads((arguments.folder / "compare.json").read_text())
    arms = [arm for arm in comparison["arms"] if any(run["growths"] for run in arm["runs"])]
    print(table(arms))
    draw(arms, read_differences(arguments.folder), comparison).savefig(arguments.picture)


if __name__ == "__main__":
    main()
