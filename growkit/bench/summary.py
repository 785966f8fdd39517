"""The numbers of a coverage benchmark: from rows to shares, quantiles and tables. Nothing is measured here."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any

import numpy as np

from growkit.bench.progress import number

__all__ = ["models_table", "readme", "render", "summarise"]

Row = dict[str, Any]

QUANTILES = {"min": 0.0, "p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}
REACHES = (0.0, 0.5, 0.75, 0.9, 0.99, 1.0)
TOLERANCE = 1e-5  # relative change of the outputs that rounding in fp32 may come to
WRONG = 1e-4  # that no rounding explains, unless float64 shows that it does
EXACT = 1e-9  # the same in float64
TOP = 12


def summarise(rows: Sequence[Row], peers: Sequence[Row] | None = None) -> dict[str, Any]:
    """Condense rows of growkit, and of torch-pruning if it was measured.

    A model that failed counts as not traced, without a site, with reach 0, unless its row says that it came so far.

    Returns:
        Counts, quantiles of reach (over all models), of errors (over models with a verified site) and of CPU seconds.
    """
    grown = [row for row in rows if row.get("verified", 0) > 0]
    found, verified = (sum(row.get(key, 0) for row in rows) for key in ("found", "verified"))
    return {
        "models": len(rows),
        "traced": sum("found" in row for row in rows),
        "path_specialised": sum(bool(row.get("path_specialised")) for row in rows),
        "with_verified_site": len(grown),
        "all_found_verified": sum(row["verified"] == row["found"] for row in grown),
        "found": found,
        "verified": verified,
        "verified_by_copies": sum(row.get("verified_by_copies", 0) for row in rows),
        "reach_verified": quantiles(row.get("reach_verified", 0.0) for row in rows),
        "reach_counts": _reach_counts([row.get("reach_verified", 0.0) for row in rows]),
        "reach_found": quantiles(row.get("reach_found", 0.0) for row in rows),
        "error_eval": _errors(grown, "error_eval"),
        "error_train": _errors(grown, "error_train"),
        "control": _errors(grown, "control"),
        "error_exact": _errors(grown, "error_exact"),
        "streams": _streams(rows),
        "grown_wrong": sorted(row["model"] for row in grown if _is_wrong(row)),
        "not_measured": sorted(row["model"] for row in grown if "error_eval" not in row),
        "graph_refusals": _total(row.get("graph_refusals", {}) for row in rows),
        "trial_refusals": _total(row.get("trial_refusals", {}) for row in rows),
        "failures": _failures(rows),
        "cpu_seconds": _seconds(rows),
        "analysis_seconds_per_1000_nodes": quantiles(
            1000 * row["seconds"]["analyse"] / row["nodes"] for row in rows if row.get("nodes")
        ),
        "wall_seconds": quantiles(row["wall_seconds"] for row in rows),
        "peak_mib": quantiles(row["peak_mib"] for row in rows if "peak_mib" in row),
        "torch_pruning": None if peers is None else _peer(peers),
    }


def _reach_counts(values: Sequence[float]) -> dict[str, int]:
    """How many models lie in each range of reach."""
    ranges = itertools.pairwise(REACHES)
    return {
        f"{low:g} to {high:g}": sum(low <= one < high or one == high == 1.0 for one in values) for low, high in ranges
    }


def _streams(rows: Sequence[Row]) -> dict[str, int]:
    """Residual streams that norms read, in models that attend: of models and of streams, how many grow."""
    known = [row for row in rows if row.get("streams")]
    grown = [row for row in known if row.get("streams_verified")]
    return {
        "models": len(known),
        "models_some_verified": len(grown),
        "models_all_verified": sum(len(row["streams_verified"]) == len(row["streams"]) for row in grown),
        "streams": sum(len(row["streams"]) for row in known),
        "streams_verified": sum(len(row["streams_verified"]) for row in grown),
        "streams_by_copies": sum(len(row.get("streams_by_copies", ())) for row in grown),
    }


def _peer(rows: Sequence[Row]) -> dict[str, Any]:
    return {
        "models": len(rows),
        "built": sum(bool(row.get("built")) for row in rows),
        "usable": sum(bool(row.get("usable")) for row in rows),
        "usable_train": sum(bool(row.get("usable_train")) for row in rows),
        "failures": _failures(rows),
        "cpu_seconds": _seconds(rows),
        "wall_seconds": quantiles(row["wall_seconds"] for row in rows),
    }


def quantiles(values: Iterable[float | None]) -> dict[str, float] | None:
    """Minimum, quantiles and maximum; None of nothing."""
    known = [value for value in values if value is not None]
    return {name: float(f"{np.quantile(known, q):.4g}") for name, q in QUANTILES.items()} if known else None


def _errors(rows: Sequence[Row], key: str) -> dict[str, float | str] | None:
    """Median and extremes; an infinite error stands as "inf"."""
    values = sorted(value for row in rows if (value := number(row.get(key))) is not None)
    if not values:
        return None
    known = {"min": values[0], "median": median(values), "max": values[-1]}
    return {name: value if np.isfinite(value) else str(value) for name, value in known.items()}


def _is_wrong(row: Row) -> bool:
    """Whether the outputs changed by more than rounding: as float64 tells, or else by how much."""
    exact = number(row.get("error_exact"))
    worst = max(number(row.get(key)) or 0.0 for key in ("error_eval", "error_train"))
    return worst > WRONG if exact is None else exact > EXACT


def _total(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    total = Counter[str]()
    for one in counts:
        total.update(one)
    return dict(total.most_common())


def _failures(rows: Sequence[Row]) -> dict[str, list[str]]:
    """The models that failed, by what ended them and the stage it was in."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.get("failure"):
            found.setdefault(f"{row['failure']['kind']} in {row['stage']}", []).append(row["model"])
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def _seconds(rows: Sequence[Row]) -> dict[str, dict[str, float] | None]:
    stages = dict.fromkeys(stage for row in rows for stage in row["seconds"])
    return {stage: quantiles(row["seconds"].get(stage) for row in rows) for stage in stages}


def render(summary: dict[str, Any]) -> str:
    """The summary as a markdown table with the peer beside, then the reasons of refusals and failures."""
    peer = summary["torch_pruning"]
    lines = ["| | growkit | torch-pruning |", "|---|---|---|"]
    for name, ours, theirs in _lines(summary, peer):
        lines.append(f"| {name} | {ours} | {theirs if peer else 'not measured'} |")
    for title, counts in (
        ("widths refused by the graph", summary["graph_refusals"]),
        ("found sites refused by the trial", summary["trial_refusals"]),
        ("models that failed", {what: len(models) for what, models in summary["failures"].items()}),
        ("models on which torch-pruning failed", {k: len(v) for k, v in peer["failures"].items()} if peer else {}),
    ):
        lines += _counts(title, counts)
    for title, key in (("Grown wrongly", "grown_wrong"), ("Verified, but the final check did not end", "not_measured")):
        if summary[key]:
            lines += ["", f"{title}: {', '.join(summary[key])}."]
    return "\n".join(lines) + "\n"


def _lines(summary: dict[str, Any], peer: dict[str, Any] | None) -> list[tuple[str, str, str]]:
    n, found = summary["models"], summary["found"]
    theirs = peer or {"models": 0, "built": 0, "usable": 0, "usable_train": 0, "wall_seconds": None}
    m, reach, seconds = theirs["models"], summary["reach_verified"], summary["cpu_seconds"]
    streams = summary["streams"]
    return [
        ("models", f"{n} of {summary.get('in_set', n)}", str(m)),
        ("graph built", _share(summary["traced"], n), _share(theirs["built"], m)),
        ("changed, and the forward runs (eval)", _share(summary["with_verified_site"], n), _share(theirs["usable"], m)),
        ("and in train mode", _share(summary["with_verified_site"], n), _share(theirs["usable_train"], m)),
        ("every found site verified", _share(summary["all_found_verified"], n), ""),
        ("verified / found sites", _share(summary["verified"], found), ""),
        ("of them by whole copies of all units only", _share(summary["verified_by_copies"], found), ""),
        ("reach: median (10 %, 25 %, 75 %)", _spread(reach, "median", "p10", "p25", "p75"), ""),
        *((f"models of reach {name}", _share(count, n), "") for name, count in summary["reach_counts"].items()),
        ("change of the outputs, eval: median, worst", _spread(summary["error_eval"], "median", "max"), "no claim"),
        ("change of the outputs, train: median, worst", _spread(summary["error_train"], "median", "max"), "no claim"),
        (
            f"the same in float64 where fp32 shows more than {TOLERANCE:g}: worst",
            _spread(summary["error_exact"], "max"),
            "",
        ),
        ("transformers whose residual streams all grow", _share(streams["models_all_verified"], streams["models"]), ""),
        (
            "transformers of which some residual stream grows",
            _share(streams["models_some_verified"], streams["models"]),
            "",
        ),
        (
            "verified / found residual streams of transformers",
            _share(streams["streams_verified"], streams["streams"]),
            "",
        ),
        ("of them by whole copies only", _share(streams["streams_by_copies"], streams["streams"]), ""),
        ("control (must change): least, median", _spread(summary["control"], "min", "median"), ""),
        ("wall s per model: median, 90 %", _both(summary), _spread(theirs["wall_seconds"], "median", "p90")),
        *(
            (f"CPU s of `{stage}`: median, 90 %, most", _spread(seconds.get(stage), "median", "p90", "max"), "")
            for stage in ("trace", "analyse", "verify", "grow")
        ),
        ("analysis, s per 1000 nodes: median, most", _spread(_per_node(summary), "median", "max"), ""),
        ("branches on values (path of the example only)", str(summary["path_specialised"]), ""),
    ]


def _both(summary: dict[str, Any]) -> str:
    return _spread(summary["wall_seconds"], "median", "p90")


def _per_node(summary: dict[str, Any]) -> dict[str, Any] | None:
    return summary["analysis_seconds_per_1000_nodes"]


def _share(part: int, whole: int) -> str:
    return f"{part} / {whole} ({100 * part / whole:.1f} %)" if whole else ""


def _spread(values: dict[str, Any] | None, *names: str) -> str:
    return ", ".join(f"{float(values[name]):.3g}" for name in names) if values else ""


def _counts(title: str, counts: dict[str, int]) -> list[str]:
    if not counts:
        return []
    shown = list(counts.items())[:TOP]
    rest = sum(counts.values()) - sum(count for _, count in shown)
    lines = ["", f"| {title} | {sum(counts.values())} |", "|---|---|"]
    lines += [f"| {_cell(reason)} | {count} |" for reason, count in shown]
    return [*lines, f"| others | {rest} |"] if rest else lines


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def models_table(name: str, rows: Sequence[Row], peers: Sequence[Row] | None) -> str:
    """One line a model."""
    beside = {row["model"]: row for row in peers or ()}
    lines = [
        f"# Coverage on {name}, model by model",
        "",
        "| model | input | M params | nodes | verified / found | reach | error eval | error train | control | wall s "
        "| MiB | what stands against the rest | torch-pruning |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(_model_line(row, beside.get(row["model"])) for row in rows)]) + "\n"


def _model_line(row: Row, peer: Row | None) -> str:
    failure = row.get("failure")
    against = f"{failure['kind']} in {row['stage']}: {failure['message'][:80]}" if failure else _first_reason(row)
    cells = [
        row["model"],
        row.get("input", ""),
        f"{row['params'] / 1e6:.2f}" if "params" in row else "",
        str(row.get("nodes", "")),
        f"{row.get('verified', 0)} / {row.get('found', 0)}",
        f"{row.get('reach_verified', 0.0):.3f}",
        *(_number(row.get(key)) for key in ("error_eval", "error_train", "control")),
        f"{row['wall_seconds']:.0f}",
        str(row.get("peak_mib", "")),
        _cell(against),
        _cell(_peer_word(peer)),
    ]
    return f"| {' | '.join(cells)} |"


def _number(value: Any) -> str:
    return "" if value is None else f"{float(value):.1e}"


def _first_reason(row: Row) -> str:
    reasons = [*row.get("trial_refusals", {}).items(), *row.get("graph_refusals", {}).items()]
    return f"{reasons[0][0][:100]} ({reasons[0][1]})" if reasons else ""


def _peer_word(peer: Row | None) -> str:
    if peer is None:
        return ""
    if peer.get("failure"):
        word = "usable in eval only" if peer.get("usable") else "built" if peer.get("built") else "not built"
        return f"{word}; {peer['failure']['kind']} in {peer['stage']}"
    return "usable" if peer.get("usable") else "nothing pruned"


def _limits(of_tools: dict[str, list[float]]) -> str:
    return ", ".join(f"{tool} {' or '.join(f'{one:g} s' for one in limits)}" for tool, limits in of_tools.items())


def readme(summaries: Sequence[dict[str, Any]]) -> str:
    """The page of a folder of results: for every set its command, versions, hardware and summary."""
    parts = [
        "# Coverage",
        "On how many models growth works without a hint, and how exactly. Written by `growkit bench coverage`; what "
        "the rows mean stands in docs/bench.md. Weights are random, batch 2, one thread, fp32.",
    ]
    for summary in summaries:
        environment = summary["environment"]
        versions = ", ".join(f"{name} {version}" for name, version in environment["packages"].items() if version)
        name = summary["set"]
        parts += [
            f"## {name}",
            f"```bash\n{summary['command']}\n```",
            f"Rows: `{name}.jsonl`; model by model: [{name}.md]({name}.md); these numbers: `{name}.json`. "
            f"Limits of one model: {_limits(summary['limit_seconds'])}. {environment['processor']}, "
            f"{environment['cores']} cores, {environment['platform']}. {versions}.",
            render(summary).strip(),
        ]
    return "\n\n".join(parts) + "\n"
