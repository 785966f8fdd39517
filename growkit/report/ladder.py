"""pareto.csv and pareto.png: what every stage of a run costs, how well it does, and which of them pay."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growkit.ladder import Cost, Ladder, Stage
from growkit.report.files import write_atomically
from growkit.report.observer import Observer, RunFacts

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["LadderTable", "draw"]

COSTS: dict[Cost, str] = {"flops": "FLOPs per sample, forward", "params": "parameters"}
# told apart by people who see fewer colours (Okabe and Ito, 2008), and by their markers
FRONTIER, BEATEN, SMALLEST = "#0072B2", "#8A8A8A", "#D55E00"
WIDE = 8  # costs that differ by so much are drawn on a logarithmic axis


class LadderTable(Observer):
    """Keeps pareto.csv, whole after every stage, and draws pareto.png at the end if there are two stages to compare."""

    def __init__(self, folder: Path):
        self._folder = folder
        self.problem = None if find_spec("matplotlib") else "pareto.png needs matplotlib: pip install matplotlib"
        self._stages: list[Stage] = []
        self._facts: RunFacts | None = None

    def started(self, facts: RunFacts) -> None:
        self._facts = facts

    def stage(self, stage: Stage) -> None:
        self._stages.append(stage)
        write_atomically(self._folder / "pareto.csv", _table(Ladder(self._stages)).encode())

    def finished(self, result: Mapping[str, Any]) -> None:
        ladder = Ladder(self._stages)
        if len(ladder.judged) > 1 and self._facts is not None and self.problem is None:
            name = self._facts.config.run.name or "run"
            write_atomically(self._folder / "pareto.png", draw(ladder, f"{name}, seed {self._facts.config.seed}"))


def _table(ladder: Ladder) -> str:
    frontiers: dict[str, list[Stage]] = {f"frontier_{cost}": ladder.frontier(cost) for cost in COSTS}
    rows = [
        {
            "stage": stage.number,
            "step": stage.last_step,
            "params": stage.params,
            "flops": stage.flops,
            "latency_ms": f"{stage.latency_ms:.4g}",
            "latency_batch": stage.latency_batch,
            "train_flops": stage.train_flops,
            **{f"validate_{name}": value for name, value in (stage.validate or {}).items()},
            "standard_error": stage.standard_error,
            **{name: stage in frontier for name, frontier in frontiers.items()},
            **{f"depth/{place}": depth for place, depth in stage.depths.items()},
            **{f"width/{site}": width for site, width in stage.widths.items()},
        }
        for stage in ladder.stages
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def draw(ladder: Ladder, title: str) -> bytes:
    """The picture as PNG: the score of every stage against FLOPs and against parameters, with both Pareto frontiers.

    Args:
        ladder: of at least one stage with a score.
        title: of the run.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, cost in zip(panels, COSTS, strict=True):
        _draw_panel(axes, ladder, cost)
    panels[0].set_ylabel(f"validate {ladder.metric}" + (" (lower is better)" if ladder.metric == "loss" else ""))
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)
    figure.suptitle(f"{title}: the model of every stage, judged on the validate split", fontsize=11)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_panel(axes: Axes, ladder: Ladder, cost: Cost) -> None:
    from matplotlib.ticker import EngFormatter, LogLocator, NullLocator, PercentFormatter

    best, smallest, frontier = ladder.best, ladder.smallest, ladder.frontier(cost)
    assert best is not None and smallest is not None, "no stage has a score"

    def points(stages: list[Stage]) -> tuple[list[float], list[float]]:
        return [float(getattr(one, cost)) for one in stages], [ladder.value(one) for one in stages]

    top = ladder.value(best)
    near = top - ladder.within if ladder.metric == "accuracy" else top + ladder.within
    axes.axhspan(near, top, color=FRONTIER, alpha=0.08, linewidth=0, label="within one standard error of the best")
    ring = {"markersize": 14, "markerfacecolor": "none", "markeredgewidth": 1.8}
    axes.plot(*points([smallest]), "o", color=SMALLEST, label="smallest stage within that", **ring)
    axes.step(*points(frontier), where="post", color=FRONTIER, linewidth=1.6, label="Pareto frontier")
    axes.plot(*points(frontier), "o", color=FRONTIER, markersize=7)
    beaten = [one for one in ladder.judged if one not in frontier]
    axes.plot(*points(beaten), "x", color=BEATEN, markersize=7, markeredgewidth=1.8, label="beaten by another stage")
    _number(axes, ladder, cost)
    axes.set_xlabel(COSTS[cost])
    costs = [getattr(one, cost) for one in ladder.judged]
    if max(costs) >= WIDE * min(costs):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if ladder.metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.margins(x=0.08, y=0.15)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _number(axes: Axes, ladder: Ladder, cost: Cost) -> None:
    """Write the number of its stage beside every point; of points that lie on each other, all numbers in a row."""
    values = [ladder.value(one) for one in ladder.judged]
    apart = 0.03 * (max(values) - min(values))
    places: dict[tuple[float, float], list[int]] = {}
    for stage, value in zip(ladder.judged, values, strict=True):
        here = float(getattr(stage, cost))
        near = next((place for place in places if place[0] == here and abs(place[1] - value) <= apart), (here, value))
        places.setdefault(near, []).append(stage.number)
    beyond = 6 if ladder.metric == "accuracy" else -14  # on the side of better scores, where no line comes from
    for place, numbers in places.items():
        text = ", ".join(map(str, numbers))
        axes.annotate(text, place, xytext=(-8, beyond), textcoords="offset points", ha="right", fontsize=9)
