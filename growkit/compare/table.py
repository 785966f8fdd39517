"""A comparison as text and as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growkit.compare.growths import Growth, mean_gradients
from growkit.compare.measure import Measure
from growkit.compare.runs import Outcome
from growkit.compare.statistics import LEVEL, Interval
from growkit.compare.summary import Row
from growkit.report.console import human

__all__ = ["COMPARE_VERSION", "Comparison"]

COMPARE_VERSION = 1


@dataclass(frozen=True)
class Comparison:
    """All that is known at the end.

    Attributes:
        rows: of the arms. measure: what they are compared by. against: the arm the others are held against.
        seeds, tuning_seeds: of the runs. match: what is equal. anchor: the arm that sets it.
        notes: what a reader must know. command: that made it. environment: versions and processor. out: the folder.
    """

    rows: Sequence[Row]
    measure: Measure
    against: str
    seeds: Sequence[int]
    tuning_seeds: Sequence[int]
    match: str
    anchor: str
    notes: Sequence[str]
    command: str
    environment: Mapping[str, Any]
    out: Path

    @property
    def axis(self) -> str:
        """What curves run along, a column of metrics.csv: steps where those are equal, else training FLOPs."""
        return "step" if self.match == "steps" else "train_flops"

    def tables(self) -> str:
        """Scores, costs and, where an arm grew, the gradients of its new units, as Markdown tables."""
        tables = [self._scores(), self._costs(), *([gradients] if (gradients := self._gradients()) else [])]
        return "\n\n".join(_aligned(table) for table in tables)

    def markdown(self, figure: str | None) -> str:
        """The whole account."""
        packages = ", ".join(f"{name} {version}" for name, version in self.environment["packages"].items() if version)
        lines = [
            f"# {' / '.join(row.arm.name for row in self.rows)}",
            f"```bash\n{self.command}\n```",
            self.account(),
            self.tables(),
            *(["\n".join(f"- {note}" for note in self.notes)] if self.notes else []),
            *([f"![{self.measure.name} on the way and at the end]({figure})"] if figure is not None else []),
            "\n".join(f"- `{row.arm.name}`: {row.arm.origin}" for row in self.rows),
            f"{self.environment['processor']}, {self.environment['cores']} cores, threads of torch: "
            f"{self.environment['threads']}, {self.environment['platform']}; Python {self.environment['python']}, "
            f"{packages}.",
        ]
        return "\n\n".join(lines) + "\n"

    def account(self) -> str:
        """How to read the tables."""
        better = "higher" if self.measure.higher_is_better else "lower"
        equal = {
            "flops": f"The training FLOPs of {self.anchor} are matched.",
            "steps": f"The steps of {self.anchor} are matched.",
            "none": "Every arm trains for as long as its settings say.",
        }[self.match]
        tuned = ", ".join(map(str, self.tuning_seeds))
        return (
            f"Seeds {', '.join(map(str, self.seeds))}; runs of one seed are a pair (data order, initial weights and "
            f"growth streams). {self.measure.name}: mean ± standard deviation, {better} is better. Differences are "
            f'means over pairs with their {LEVEL:.0%} t-interval, each by itself; "better" and "worse" are said only '
            f"where it excludes 0. {equal}"
            + (f" Learning rates were tuned on validate with the seeds {tuned}." if self.tuning_seeds else "")
            + " Costs are means over runs; FLOPs are 2 per multiply-accumulate, those of growth and evaluation apart. "
            "Gradients of new units, in steps 1, 2, 4, ... after a growth event, are means over events and runs."
        )

    def to_json(self) -> dict[str, Any]:
        """What compare.json holds (docs/compare.md)."""
        return {
            "version": COMPARE_VERSION,
            "command": self.command,
            "environment": self.environment,
            "split": self.measure.split,
            "metric": self.measure.metric,
            "higher_is_better": self.measure.higher_is_better,
            "seeds": self.seeds,
            "tuning_seeds": self.tuning_seeds,
            "match": self.match,
            "matched_to": None if self.match == "none" else self.anchor,
            "against": self.against,
            "level": LEVEL,
            "notes": self.notes,
            "arms": [_row_json(row, self.out) for row in self.rows],
        }

    def _scores(self) -> list[list[str]]:
        head = ["arm", "n", self.measure.name, f"difference to {self.against}", f"{LEVEL:.0%} interval", "verdict"]
        return [head, *(_score_cells(row) for row in self.rows)]

    def _costs(self) -> list[list[str]]:
        kinds = sorted({kind for row in self.rows for kind in row.costs if kind.endswith("_flops")} - {"train_flops"})
        tuned = any(row.choice is not None for row in self.rows)
        head = ["arm", *(["lr"] if tuned else []), "steps", "parameters", "FLOPs/sample", "training FLOPs"]
        head += [f"{kind.removesuffix('_flops')} FLOPs" for kind in kinds] + ["CPU-s", "events"]
        return [head, *(_cost_cells(row, kinds, tuned) for row in self.rows)]

    def _gradients(self) -> list[list[str]]:
        """By arm and steps after a growth event; empty where nothing grew."""
        found = {row.arm.name: mean_gradients(list(row.growths.values())) for row in self.rows}
        steps = sorted({after for norms in found.values() for after in norms})
        lines = [
            [name, *(f"{norms[after]:.3g}" if after in norms else "-" for after in steps)]
            for name, norms in found.items()
            if norms
        ]
        return [["gradient norm of new units after steps", *map(str, steps)], *lines] if lines else []


def _score_cells(row: Row) -> list[str]:
    mean = "-" if row.mean is None else f"{row.mean.mean:.4f}"
    spread = "" if row.deviation is None else f" ± {row.deviation:.4f}"
    return [row.arm.name, str(len(row.values)), mean + spread, *_difference_cells(row.difference), row.verdict]


def _difference_cells(difference: Interval | None) -> list[str]:
    if difference is None:
        return ["", ""]
    mean, half = difference.mean, difference.half
    return [f"{mean:+.4f}", "-" if half is None else f"{mean - half:+.4f} .. {mean + half:+.4f}"]


def _cost_cells(row: Row, kinds: Sequence[str], tuned: bool) -> list[str]:
    costs, rate = row.costs, [] if not tuned else ["" if row.choice is None else f"{row.choice.rate:g}"]
    if not costs:
        return [row.arm.name, *rate, *["-"] * (6 + len(kinds))]
    flops = [human(costs["flops"]), *(human(costs.get(kind, 0)) for kind in ("train_flops", *kinds))]
    whole = [f"{costs['steps']:,.0f}", f"{costs['params']:,.0f}"]
    return [row.arm.name, *rate, *whole, *flops, f"{costs['cpu_seconds']:.1f}", f"{costs['events']:g}"]


def _aligned(cells: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose columns are as wide as their widest cell, so that a terminal shows it as well."""
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _row_json(row: Row, out: Path) -> dict[str, Any]:
    return {
        "name": row.arm.name,
        "origin": row.arm.origin,
        "n": len(row.values),
        "mean": None if row.mean is None else row.mean.mean,
        "deviation": row.deviation,
        "half_interval": None if row.mean is None else row.mean.half,
        "difference": _difference_json(row),
        "verdict": row.verdict or None,
        "costs": row.costs,
        "learning_rate": None
        if row.choice is None
        else {
            "chosen": row.choice.rate,
            "validate": [{"rate": rate, "mean": score} for rate, score in row.choice.scores.items()],
        },
        "runs": [_run_json(row, seed, outcome, out) for seed, outcome in row.outcomes.items()],
    }


def _growth_json(growth: Growth) -> dict[str, Any]:
    norms = {str(after): norm for after, norm in growth.gradient_norms.items()}
    return {
        "step": growth.step,
        "loss_before": growth.loss_before,
        "loss_after": growth.loss_after,
        "gradient_norms": norms,
    }


def _difference_json(row: Row) -> dict[str, Any] | None:
    if row.difference is None or row.differences is None:
        return None
    return {
        "mean": row.difference.mean,
        "half_interval": row.difference.half,
        "pairs": row.difference.n,
        "by_seed": row.differences,
    }


def _run_json(row: Row, seed: int, outcome: Outcome, out: Path) -> dict[str, Any]:
    kept = ("steps", "params", "flops", "train_flops", "other_flops", "cpu_seconds", "wall_seconds", "events")
    return {
        "seed": seed,
        "folder": None if outcome.folder is None else outcome.folder.relative_to(out).as_posix(),
        "value": row.values.get(seed),
        "failure": row.failures.get(seed),
        "growths": [_growth_json(growth) for growth in row.growths.get(seed, ())],
        **{key: None if outcome.result is None else outcome.result[key] for key in kept},
    }
