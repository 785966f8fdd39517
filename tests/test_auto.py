"""Growth that needs no choice but a budget: its trigger, its guard, its allocator, and runs of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from test_choices import of, one_prospect

from growkit.assembly import assemble
from growkit.config import load_config
from growkit.config.growth import GrowthSettings
from growkit.config.policies import (
    BudgetSettings,
    MarginalGainSettings,
    PeriodicSettings,
    ProgressGuardSettings,
    SpreadSettings,
)
from growkit.errors import UserInputError
from growkit.growth.base import Clock, GrowthRecord, History, Nothing, Prospect, Prospects, SiteState
from growkit.growth.guards import build_trigger
from growkit.growth.how_many import build_allocator
from growkit.growth.limits import Limits
from growkit.pipeline import RunResult, run
from growkit.testing import history_at

# spread


@pytest.mark.parametrize(
    ("clock", "settings", "steps"),
    [
        (Clock(7, 140), {"until": 0.5, "events": 5}, [14, 28, 42, 56, 70]),
        (Clock(7, 140), {"until": 0.5, "events": 6}, [14, 21, 35, 49, 56, 70]),
        (Clock(100, 100), {"until": 0.5, "events": 4}, [12, 25, 38, 50]),
        (Clock(1, 3), {"until": 0.5, "events": 6}, [1, 2]),
    ],
    ids=str,
)
def test_times_are_even_and_at_ends_of_epochs_where_there_are_enough(
    clock: Clock, settings: dict[str, Any], steps: list[int]
) -> None:
    assert list(build_trigger(SpreadSettings(**settings)).planned_steps(clock) or ()) == steps


def test_a_time_that_rounding_would_put_at_the_end_is_the_last_before_it() -> None:
    steps = build_trigger(SpreadSettings(until=0.99)).planned_steps(Clock(7, 70))
    assert list(steps or ()) == [14, 21, 35, 49, 56, 63]


def test_a_training_too_short_for_any_time_is_refused() -> None:
    reason = build_trigger(SpreadSettings(until=0.1)).refuses(Clock(1, 3), validates=True)
    assert reason == "until: 0.1 of 3 steps hold no time before the last; raise it"


# progress_guard

EVERY_EPOCH = ProgressGuardSettings(least=0.05, base=SpreadSettings(until=0.9, events=9))


def guarded(*losses: float, growths: tuple[int, ...] = ()) -> bool:
    """Whether the guard lets growth through after epochs with these validate losses, events after `growths` epochs."""
    records = [GrowthRecord(7 * epoch, {"a": (4, 6)}) for epoch in growths]
    history = history_at(7 * len(losses), growths=records, loss=lambda epoch: losses[epoch - 1])
    return build_trigger(EVERY_EPOCH).due(history) is not None


@pytest.mark.parametrize(
    ("losses", "growths", "expected"),
    [
        ((2.3,), (), True),
        ((2.3, 2.0), (), True),
        ((2.3, 2.2), (), False),
        ((2.3, 2.0, 2.4), (), True),
        ((2.3, 2.0, 1.95), (2,), False),
        ((2.3, 2.0, 1.95, 1.8), (2,), True),
        ((2.3, 2.0, 2.1), (3,), True),
    ],
    ids=str,
)
def test_growth_goes_on_while_stages_get_better(
    losses: tuple[float, ...], growths: tuple[int, ...], expected: bool
) -> None:
    assert guarded(*losses, growths=growths) is expected


def test_a_guard_around_a_trigger_that_never_fires_is_refused() -> None:
    guard = build_trigger(ProgressGuardSettings(base=PeriodicSettings(start=50)))
    told = "base never fires within the training; raise train.epochs, or lower base.start"
    assert guard.refuses(Clock(7, 70), validates=True) == told


def test_before_the_first_epoch_and_event_a_guard_speaks_of_none() -> None:
    why = build_trigger(ProgressGuardSettings(base=PeriodicSettings(start=3, unit="steps"))).due(history_at(3))
    assert why is not None and why.reason.endswith("progress_guard: no epoch yet")


def test_a_guard_without_a_validate_split_is_refused() -> None:
    reason = build_trigger(ProgressGuardSettings()).refuses(Clock(7, 70), validates=False)
    assert reason == "progress_guard needs a validate split, which is empty; set data.split.validate"


# marginal_gain

FREE = Limits(params=lambda widths: sum(widths.values()))  # a unit of any site costs one parameter


def shares(prospects: Prospects, limits: Limits = FREE, **settings: Any) -> Any:
    sites = [SiteState(name, 2, 2, 12) for name in prospects.sites]
    given = MarginalGainSettings(**{"events": 1, "factor": 1.0} | settings)
    widths = {site.name: site.width for site in sites}
    return build_allocator(given, build_trigger(SpreadSettings())).units(
        sites, History(Clock(7, 70), 7), prospects, limits.at(widths)
    )


def budget(params: int, cost: Any = lambda widths: sum(widths.values())) -> Limits:
    return Limits(BudgetSettings(params=params), params=cost)


def test_units_go_where_each_next_one_promises_most() -> None:
    seen = of(a=one_prospect(9.0, 4.0, 1.0), b=one_prospect(5.0, 3.0), c=one_prospect(2.0))
    assert shares(seen, budget(6 + 4)) == {"a": 2, "b": 2}  # 9, 5, 4 and 3
    assert shares(seen, budget(6 + 5)) == {"a": 2, "b": 2, "c": 1}  # and 2


def test_the_choice_is_the_best_of_all_that_cost_the_same() -> None:
    seen = of(a=one_prospect(9.0, 4.0, 1.0), b=one_prospect(5.0, 3.0, 2.5), c=one_prospect(2.0, 1.9))
    tables = [prospect.gains for prospect in seen.sites.values()]
    for units in range(1, 9):
        found = shares(seen, budget(6 + units))
        choices = [choice for choice in itertools.product(range(4), repeat=3) if sum(choice) == units]
        promise = {c: sum(sum(table[:n]) for table, n in zip(tables, c, strict=True)) for c in choices}
        assert promise[tuple(found.get(name, 0) for name in seen.sites)] == pytest.approx(max(promise.values()))


def test_a_site_gets_no_more_units_than_it_has_directions_above_the_noise_whatever_the_budget() -> None:
    seen = of(a=one_prospect(9.0, 4.0, 1.0, noise=2.0), b=one_prospect(5.0, 3.0, noise=2.0))
    assert shares(seen, budget(100)) == {"a": 2, "b": 2}
    assert shares(seen, budget(100), round_to=4) == {"a": 2, "b": 2}  # to widths of 4
    assert shares(seen, budget(100), round_to=5) == {"a": 3, "b": 3}  # rounded up


def test_a_direction_is_held_against_the_one_of_its_rank_that_chance_gives() -> None:
    spectrum = Prospect((9.0, 4.0, 1.5, 0.9), 6.0, 0.0, 1, 1, 1.0, chance=(6.0, 2.0, 1.0, 0.5))
    assert [spectrum.directions(factor) for factor in (1.0, 1.4, 1.6)] == [4, 4, 0]
    assert Prospect((9.0, 1.0, 0.9), 6.0, 0.0, 1, 1, 1.0, chance=(6.0, 2.0, 0.1)).directions(1.0) == 1  # none after it
    assert Prospect((9.0, 1e-12), 0.0, 0.0, 1, 1, 1.0, chance=(0.0, 0.0)).directions(1.0) == 1  # rounding is none


def test_a_dear_unit_must_promise_more() -> None:
    seen = of(a=one_prospect(9.0, 4.0, params=4), b=one_prospect(5.0, 3.0, params=1))
    assert shares(seen, budget(4 + 2)) == {"b": 2}


def test_noise_gets_no_unit_and_where_all_is_noise_growth_ends() -> None:
    seen = of(a=one_prospect(9.0, 4.0, 1.0, noise=3.0), b=one_prospect(2.0, noise=3.0))
    assert shares(seen, budget(100)) == {"a": 2}
    nothing = shares(of(b=one_prospect(2.0, noise=3.0)), budget(100))
    assert isinstance(nothing, Nothing) and nothing.ends


def test_the_pace_is_kept_with_the_true_cost_of_all_sites() -> None:
    seen = of(a=one_prospect(*[2.0] * 10), b=one_prospect(*[1.9] * 10))
    units = shares(seen, budget(50, lambda widths: widths["a"] * widths["b"]))  # the sites make each other dear
    assert units == {"a": 10, "b": 2}  # 12 x 4; 12 x 5 would exceed the pace


def test_without_a_budget_an_event_makes_the_model_a_share_dearer() -> None:
    seen = of(a=one_prospect(*[2.0] * 9), b=one_prospect(*[1.0] * 9))
    assert shares(seen, ratio=2.0) == {"a": 4}


# policy: auto


def test_auto_fills_in_what_is_not_given_and_the_rest_stays() -> None:
    auto = GrowthSettings.model_validate({"policy": "auto", "budget": {"flops": 1000}, "where": "round_robin"})
    assert (auto.when.name, auto.how_many.name, auto.how_many.of) == ("progress_guard", "marginal_gain", "flops")  # type: ignore[union-attr]
    assert (auto.where.name, auto.target) == ("round_robin", None)


@pytest.mark.parametrize("given", ["", ", budget: {wall_seconds: 5}", ", budget: {params: null}"])
def test_auto_without_a_budget_is_refused(given: str, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(f"growth: {{policy: auto{given}}}")
    with pytest.raises(UserInputError) as caught:
        load_config(file)
    told = "growth: policy: auto needs a budget: set one of budget.params, budget.flops, budget.latency_ms, "
    assert str(caught.value) == f"{file}:1:1: {told}budget.accuracy"


def test_keys_of_a_part_without_its_name_are_of_the_part_that_auto_chooses(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("growth: {policy: auto, budget: {params: 9}, initializer: {scale: 0.3}, how_many: {round_to: 4}}")
    growth = load_config(file, ["growth.when.least=0.2"]).growth
    assert (growth.initializer.name, growth.how_many.name, growth.when.name) == (
        "gradmax_inverse",
        "marginal_gain",
        "progress_guard",
    )


TAUGHT = """
data: {name: teacher, widths: [16, 48, 48, 8], samples: 8000}
model: {name: mlp, hidden: [24, 24, 24]}
train: {epochs: 6, batch_size: 64, optimizer: {name: adam, lr: 0.01}, schedule: constant}
growth:
  policy: auto
  when: {name: progress_guard, base: {name: spread, events: 2}}
  initializer: {name: gradmax_inverse, batch_size: 512}
  budget: {params: 2500}
"""

DIGITS = """
data: {name: digits}
model: {name: mlp, hidden: [8, 8]}
train: {epochs: 20, batch_size: 64, optimizer: {name: sgd, lr: 0.1, momentum: 0.9}}
growth: {policy: auto, budget: {params: 3000}}
"""


def done(text: str, *overrides: str, folder: Path) -> RunResult:
    file = folder / "c.yaml"
    file.write_text(text)
    return run(load_config(file, list(overrides)), observers=(), writes=False)


def test_a_planted_bottleneck_gets_most_new_units_first_in_nine_of_ten_seeds(tmp_path: Path) -> None:
    hits = 0
    for seed in range(10):
        hidden = [24, 24, 24]
        hidden[seed % 3] = 2
        given = (f"seed={seed}", f"data.teacher_seed={seed}", f"model.hidden={hidden}")
        (first, *_) = done(TAUGHT, *given, folder=tmp_path).events
        new = {grown.site: grown.new_width - grown.old_width for grown in first.grown}
        hits += max(new, key=lambda site: new[site]) == f"hidden.{seed % 3}.linear"
    assert hits >= 9


@pytest.mark.parametrize("noise", [1.0, 0.0], ids=["labels of noise", "true labels"])
def test_growth_stops_where_labels_are_pure_noise_and_only_there(noise: float, tmp_path: Path) -> None:
    grown = 0
    for seed in range(5):
        labels = f"data.label_noise={{rate: {noise}, seed: {seed}, splits: [train, validate, diagnose, accept, test]}}"
        result = done(DIGITS, f"seed={seed}", labels, folder=tmp_path)
        grown += result.result["params"] > 2000  # of the 682 of the seed, within the budget of 3 000
    assert grown == (0 if noise else 5)


def test_every_unit_has_a_direction_of_its_own_and_decisions_say_how_many_there_are(tmp_path: Path) -> None:
    events = [event for event in done(DIGITS, folder=tmp_path).events if event.undone is None]
    assert events
    for event in events:
        decided = {decision.site: decision for decision in event.decisions}
        for grown in event.grown:
            directions = int(decided[grown.site].scores["directions"])
            assert grown.new_width - grown.old_width <= directions and "random_beyond_rank" not in grown.facts
            assert f"{directions} direction" in decided[grown.site].reason


def test_growth_waits_while_the_network_is_accurate_enough(tmp_path: Path) -> None:
    result = done(DIGITS, "growth.budget={params: null, accuracy: 0.6}", folder=tmp_path)
    reached = [record.step for record in result.history.epochs if (record.validate_accuracy or 0.0) >= 0.6]
    assert result.events and max(event.step for event in result.events) <= reached[0]


@pytest.mark.parametrize(
    ("text", "override", "told"),
    [
        (
            TAUGHT,
            "growth.budget={params: null, accuracy: 0.9}",
            "is for classes and tokens, got 0.9 for the regression",
        ),
        (
            DIGITS.replace("policy: auto, ", "when: {name: periodic, start: 1}, "),
            "growth.budget={params: null, accuracy: 0.9}",
            "needs a validate split, which is empty",
        ),
    ],
    ids=["regression", "no validate split"],
)
def test_an_accuracy_that_no_epoch_tells_is_refused(text: str, override: str, told: str, tmp_path: Path) -> None:
    empty = ["data.split.validate=0.0"] if "validate" in told else []
    with pytest.raises(UserInputError, match=f"growth.budget.accuracy {told}"):
        done(text, override, *empty, folder=tmp_path)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["train.steps=6"], "the training has room for 3 of the 6 growth events"),
        (["growth.budget.params=682"], "nothing will grow, for growth.budget leaves every site as wide as it is"),
        (["growth.target=1.0"], "nothing will grow, for growth.target leaves every site as wide as it is"),
    ],
)
def test_a_run_says_before_it_trains_what_keeps_growth_from_its_events(
    overrides: list[str], told: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(DIGITS)
    assert told in assemble(load_config(file, overrides), writes=False).warnings
