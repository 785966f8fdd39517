"""Compare arms of an experiment: mean and deviation of each, and paired differences with their 95 % t-interval.

    python experiments/summarise.py FOLDER [--split test] [--metric accuracy] [--json FILE]

FOLDER/ARM/STAMP/result.json are the runs; runs of one seed are a pair. The first arm, in alphabetical order or named
by --reference, is what the others are compared with. "better" and "worse" are said only where the interval excludes 0.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student


def read_arm(folder: Path) -> dict[int, dict[str, Any]]:
    """Seed -> result of every finished run of an arm; of several runs of one seed the newest."""
    results = [
        json.loads(path.read_text()) for path in sorted(folder.glob("*/result.json")) if path.parent.name != "latest"
    ]
    return {result["seed"]: result for result in results}


def interval(differences: list[float]) -> tuple[float, float]:
    """Mean of paired differences and half the width of its 95 % t-interval."""
    n = len(differences)
    return mean(differences), float(student.ppf(0.975, n - 1)) * stdev(differences) / math.sqrt(n)


def summary(folder: Path, split: str, metric: str, reference: str | None) -> dict[str, Any]:
    """The table as data."""
    arms = {path.name: read_arm(path) for path in sorted(folder.iterdir()) if path.is_dir()}
    reference = reference or next(iter(arms))
    rows: dict[str, Any] = {}
    for name, results in arms.items():
        values = {seed: result[split][metric] for seed, result in sorted(results.items())}
        row: dict[str, Any] = {
            "n": len(values),
            "seeds": list(values),
            "mean": mean(values.values()),
            "deviation": stdev(values.values()) if len(values) > 1 else None,
            "params": mean(r["params"] for r in results.values()),
            "train_flops": mean(r["train_flops"] for r in results.values()),
            "other_flops": mean(sum(r["other_flops"].values()) for r in results.values()),
            "cpu_seconds": mean(r["cpu_seconds"] for r in results.values()),
        }
        shared = sorted(set(values) & set(arms[reference]))
        if name != reference and len(shared) > 1:
            row["difference"], row["half_interval"] = interval(
                [values[seed] - arms[reference][seed][split][metric] for seed in shared]
            )
        rows[name] = row
    return {"split": split, "metric": metric, "reference": reference, "arms": rows}


def render(table: dict[str, Any]) -> str:
    """The table as Markdown."""
    lines = [
        f"| arm | n | {table['split']} {table['metric']} | against {table['reference']} "
        "| parameters | training FLOPs | other FLOPs | CPU-s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in table["arms"].items():
        spread = "" if row["deviation"] is None else f" ± {row['deviation']:.4f}"
        compared = ""
        if "difference" in row:
            clear = abs(row["difference"]) > row["half_interval"]
            compared = f"{row['difference']:+.4f} ± {row['half_interval']:.4f}" + ("" if clear else " (includes 0)")
        lines.append(
            f"| {name} | {row['n']} | {row['mean']:.4f}{spread} | {compared} | {row['params']:,.0f} "
            f"| {row['train_flops']:.3g} | {row['other_flops']:.3g} | {row['cpu_seconds']:.1f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print the table and, on request, write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--metric", default="accuracy")
    parser.add_argument("--reference")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    table = summary(arguments.folder, arguments.split, arguments.metric, arguments.reference)
    print(render(table))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
