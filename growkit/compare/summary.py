"""What came out: for each arm its scores and costs, and how it differs from the one it is held against."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from growkit.compare.arms import Arm
from growkit.compare.campaign import Choice
from growkit.compare.growths import Growth, read_growths
from growkit.compare.measure import Measure
from growkit.compare.runs import Outcome, source_hash
from growkit.compare.statistics import Interval, deviation, interval, paired, verdict

__all__ = ["Row", "costs_of", "notes_on", "summarise"]

COSTS = ("steps", "params", "flops", "train_flops", "cpu_seconds", "events")
CLOSE = 0.01  # of the FLOPs to be matched: what rounding to whole steps and batches may leave


@dataclass(frozen=True)
class Row:
    """One arm in the table.

    Attributes:
        arm: which.
        values: the measure by seed. failures: why there is none, by seed.
        mean: with its interval; None where no run has a value. deviation: None for fewer than two.
        differences: to the arm it is held against, by seed; None for that arm itself.
        difference: their mean with its interval; None where there is none. verdict: what that allows to be said.
        costs: means over the runs; FLOPs that trained nothing are under `other`, by kind.
        choice: of the learning rate, where it was tuned.
        outcomes: by seed. growths: the growth events of the runs that have a value, by seed.
    """

    arm: Arm
    values: Mapping[int, float]
    failures: Mapping[int, str]
    mean: Interval | None
    deviation: float | None
    differences: Mapping[int, float] | None
    difference: Interval | None
    verdict: str
    costs: Mapping[str, float]
    choice: Choice | None
    outcomes: Mapping[int, Outcome]
    growths: Mapping[int, Sequence[Growth]]


def summarise(
    arms: Sequence[Arm],
    outcomes: Mapping[str, Mapping[int, Outcome]],
    measure: Measure,
    against: str,
    choices: Mapping[str, Choice],
) -> list[Row]:
    """A row for each arm, in their order."""
    values = {arm.name: _values(outcomes[arm.name], measure) for arm in arms}
    return [
        _row(
            arm,
            values[arm.name],
            None if arm.name == against else paired(values[arm.name], values[against]),
            outcomes[arm.name],
            measure,
            choices.get(arm.name),
        )
        for arm in arms
    ]


def _values(outcomes: Mapping[int, Outcome], measure: Measure) -> dict[int, float]:
    found = {seed: measure.of(outcome.result) for seed, outcome in outcomes.items() if outcome.result is not None}
    return {seed: value for seed, value in found.items() if value is not None}


def _row(
    arm: Arm,
    values: Mapping[int, float],
    differences: Mapping[int, float] | None,
    outcomes: Mapping[int, Outcome],
    measure: Measure,
    choice: Choice | None,
) -> Row:
    failures = {
        seed: outcome.failure or f"its {measure.name} is no finite number"
        for seed, outcome in outcomes.items()
        if seed not in values
    }
    difference = interval(list(differences.values())) if differences else None
    return Row(
        arm=arm,
        values=values,
        failures=failures,
        mean=interval(list(values.values())) if values else None,
        deviation=deviation(list(values.values())),
        differences=differences,
        difference=difference,
        verdict="" if differences is None else _said(difference, measure),
        costs=costs_of(outcomes, values),
        choice=choice,
        outcomes=outcomes,
        growths={seed: read_growths(folder) for seed in values if (folder := outcomes[seed].folder) is not None},
    )


def _said(difference: Interval | None, measure: Measure) -> str:
    return "no pair" if difference is None else verdict(difference, measure.higher_is_better)


def costs_of(outcomes: Mapping[int, Outcome], seeds: Sequence[int] | Mapping[int, Any]) -> dict[str, float]:
    """Means of what the runs of some seeds cost; those of `other_flops` under their kind, such as `growth_flops`."""
    results = [result for seed in seeds if (result := outcomes[seed].result) is not None]
    if not results:
        return {}
    kinds = sorted({kind for result in results for kind in result["other_flops"]})
    return {key: fmean(result[key] for result in results) for key in COSTS} | {
        f"{kind}_flops": fmean(result["other_flops"].get(kind, 0) for result in results) for kind in kinds
    }


def notes_on(rows: Sequence[Row], against: str, anchor: str | None, shared: Sequence[str]) -> list[str]:
    """What a reader of the table must know.

    Args:
        rows: of the table.
        against: the arm that the others are held against.
        anchor: the arm whose training FLOPs the others match; None where they need not.
        shared: known beforehand.
    """
    notes = list(shared)
    reference = next(row for row in rows if row.arm.name == against)
    seeds = list(reference.outcomes)
    for row in rows:
        name = row.arm.name
        notes += [f"{name}, seed {seed}: failed and left out: {why}" for seed, why in row.failures.items()]
        if row.differences is not None and 0 < len(row.differences) < len(seeds):
            notes.append(
                f"{name}: paired over {len(row.differences)} of {len(seeds)} seeds, {_listed(row.differences)}"
            )
        if row.choice is not None and row.choice.edge:
            notes.append(f"{name}: the chosen learning rate {row.choice.rate:g} is at the edge of the grid; widen it")
        if row.choice is not None:
            notes += [
                f"{name}: learning rate {rate:g} was out of the choice, for a run of it failed"
                for rate, score in row.choice.scores.items()
                if score is None
            ]
    if len(seeds) == 1:
        notes.append("one seed: there are no deviations and no intervals, and nothing can be said of chance")
    return notes + _unmatched(rows, anchor) + _costly_events(rows) + _mixed(rows)


def _listed(seeds: Sequence[int] | Mapping[int, Any]) -> str:
    return "seeds " + ", ".join(map(str, seeds))


def _unmatched(rows: Sequence[Row], anchor: str | None) -> list[str]:
    """Arms whose training FLOPs came out differently from those they should match."""
    spent = {row.arm.name: row.costs["train_flops"] for row in rows if row.costs}
    if anchor is None or anchor not in spent:
        return []
    off = {name: flops / spent[anchor] - 1 for name, flops in spent.items()}
    return [
        f"{name}: its training FLOPs are {share:+.1%} of those of {anchor}; the two are not at equal cost"
        for name, share in off.items()
        if abs(share) > CLOSE
    ]


def _costly_events(rows: Sequence[Row]) -> list[str]:
    """Growth that itself costs a share of the training, which equal training FLOPs do not show."""
    shares = {row.arm.name: row.costs.get("growth_flops", 0) / row.costs["train_flops"] for row in rows if row.costs}
    return [
        f"{name}: its growth events cost {share:.0%} of its training FLOPs on top of them"
        for name, share in shares.items()
        if share > CLOSE
    ]


def _mixed(rows: Sequence[Row]) -> list[str]:
    """Runs that were not made alike."""
    outcomes = [outcome for row in rows for outcome in row.outcomes.values()]
    made = [outcome.environment for outcome in outcomes if outcome.environment is not None]
    facts = {
        "processors": [environment["processor"] for environment in made],
        "numbers of threads": [environment["threads"] for environment in made],
        "precisions": [environment["compute"]["precision"] for environment in made],
    }
    notes = [
        f"the runs were made with different {what}: {', '.join(sorted(map(str, set(values))))}"
        for what, values in facts.items()
        if len(set(values)) > 1
    ]
    aged = sum(outcome.source != source_hash() for outcome in outcomes if outcome.result is not None)
    if aged:
        notes.append(f"{aged} of the {len(made)} runs were made by other code of growkit than is here now")
    seeds = sorted({seed for row in rows for seed in row.outcomes})
    return notes + [
        f"seed {seed}: the arms were not trained and tested on the same samples; the data changed between runs"
        for seed in seeds
        if _data_changed(rows, seed)
    ]


def _data_changed(rows: Sequence[Row], seed: int) -> bool:
    """Whether the arms' test samples are not the same, or anything at all where they have the same settings."""
    prints: dict[str, set[str]] = {}
    for row in rows:
        environment = row.outcomes[seed].environment
        if environment is not None:
            found = environment["data"]["fingerprint"]
            prints.setdefault("test", set()).add(str(found["splits"]["test"]))
            prints.setdefault(row.arm.config.data.model_dump_json(), set()).add(str(found))
    return any(len(found) > 1 for found in prints.values())
