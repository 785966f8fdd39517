"""Where and how many: selectors, allocators and limits on sites and prospects made by hand."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from growkit.config.growth import GrowthSettings
from growkit.config.policies import (
    AllSitesSettings,
    BudgetPacedSettings,
    BudgetSettings,
    FixedSettings,
    FractionSettings,
    LargestGainSettings,
    PeriodicSettings,
    PlateauSettings,
    RandomSitesSettings,
    RankThresholdSettings,
    RoundRobinSettings,
)
from growkit.growth.base import Clock, GrowthRecord, History, Nothing, Prospect, Prospects, SiteState, Why
from growkit.growth.guards import build_trigger
from growkit.growth.how_many import build_allocator
from growkit.growth.limits import Limits, train_flops
from growkit.growth.plan import plan_growth
from growkit.growth.policy import Policy
from growkit.growth.where import build_selector
from growkit.testing import history_at, prospects_of, site_states

WHY = Why("a test")


def one_prospect(*gains: float, noise: float = 0.0, params: int = 1, flops: int = 1, norm: float = 1.0) -> Prospect:
    return Prospect(gains, noise, 0.0, params, flops, norm)


def of(**sites: Prospect) -> Prospects:
    return Prospects(sites, gradient=1.0, samples=8, flops=100)


# where


@pytest.mark.parametrize(("per", "best"), [("unit", "a"), ("params", "b"), ("flops", "c")])
def test_the_largest_gain_is_per_what_it_is_asked_for(per: Any, best: str) -> None:
    seen = of(
        a=one_prospect(9.0, params=90, flops=90),
        b=one_prospect(8.0, params=1, flops=80),
        c=one_prospect(7.0, params=70, flops=1),
    )
    chosen = build_selector(LargestGainSettings(per=per)).select(site_states(), history_at(7), seen)
    assert not isinstance(chosen, Nothing) and list(chosen) == [best]


def test_the_norm_of_a_new_slice_counts_squared() -> None:
    seen = of(a=one_prospect(2.0, norm=1.0), b=one_prospect(1.0, norm=1.5), c=one_prospect(1.9))
    chosen = build_selector(LargestGainSettings()).select(site_states(), history_at(7), seen)
    assert not isinstance(chosen, Nothing)
    assert chosen == {"b": Why("largest_gain: 2.25 per flops, rank 1 of 3, next a 2", {"score": 2.25})}


def test_sites_within_the_noise_are_passed_over_and_where_all_are_growth_ends() -> None:
    selector = build_selector(LargestGainSettings(sites_per_event=3))
    seen = of(a=one_prospect(2.0, noise=3.0), b=one_prospect(1.0), c=one_prospect(0.5, noise=0.5))
    chosen = selector.select(site_states(), history_at(7), seen)
    assert not isinstance(chosen, Nothing) and list(chosen) == ["b"]
    seen = of(a=one_prospect(2.0, noise=3.0), b=one_prospect(1.0, noise=0.75), c=one_prospect(noise=0.5))
    assert selector.select(site_states(), history_at(7), seen) == Nothing(
        "no site has a gain above its noise floor: b 1 of 1.5, c 0 of 1, a 2 of 6",
        {"a": 2.0, "b": 1.0, "c": 0.0},
        ends=True,
    )


def test_random_sites_follow_from_seed_and_step_alone() -> None:
    def draws(seed: int) -> list[list[str]]:
        selector = build_selector(RandomSitesSettings(sites_per_event=2), seed)
        found = [selector.select(site_states((4,) * 5), history_at(step)) for step in range(1, 400)]
        return [list(one) for one in found if not isinstance(one, Nothing)]

    assert draws(1) == draws(1) != draws(2)
    turns = Counter(name for draw in draws(1) for name in draw)
    # each site has two fifths of 399 events, with a deviation of sqrt(399 * 0.4 * 0.6) = 9.8
    assert all(abs(count - 159.6) < 4 * 9.8 for count in turns.values()) and len(turns) == 5


# how many


def units_of(settings: Any, sites: list[SiteState], seen: Prospects | None = None) -> Any:
    allocator = build_allocator(settings, build_trigger(PeriodicSettings()))
    return allocator.units(sites, history_at(7), seen, Limits())


def test_a_fraction_is_of_the_present_width() -> None:
    sites = [SiteState("a", 4, 16, 99), SiteState("b", 4, 40, 99), SiteState("c", 1, 1, 99)]
    assert units_of(FractionSettings(fraction=0.25), sites) == {"a": 4, "b": 10, "c": 1}


def test_a_rank_is_the_number_of_gains_above_the_floor() -> None:
    seen = of(
        a=one_prospect(8.0, 4.0, 2.0, 1.0, noise=1.5),
        b=one_prospect(8.0, 1.0, noise=3.0),
        c=one_prospect(2.0, 1.0, noise=3.0),
    )
    assert units_of(RankThresholdSettings(), site_states(), seen) == {"a": 3, "b": 1}
    assert units_of(RankThresholdSettings(at_least=2, at_most=2), site_states(), seen) == {"a": 2, "b": 2}
    nothing = units_of(RankThresholdSettings(factor=9.0), site_states(), seen)
    assert isinstance(nothing, Nothing) and nothing.ends
    assert nothing.reason.startswith("no site has a gain above its noise floor: a 8 of 13.5, b 8 of 27")


@pytest.mark.parametrize(
    ("site", "units"),
    [
        (SiteState("a", 10, 10, 99), 6),  # 13 up to 16
        (SiteState("a", 13, 13, 99), 3),  # 16
        (SiteState("a", 10, 10, 15), 5),  # 16 is beyond the target
        (SiteState("a", 5, 5, 20, by_copies=True), 5),  # whole copies are not rounded
    ],
    ids=["up", "already", "target", "copies"],
)
def test_widths_are_rounded_up_to_a_multiple_within_the_target(site: SiteState, units: int) -> None:
    policy = Policy.build(GrowthSettings(how_many=FixedSettings(units=3, round_to=8)))
    (decision,) = tuple(policy.decide([site], history_at(7), WHY))  # type: ignore[arg-type]
    assert decision.num_new == units


# a budget and its pace


def squares(budget: BudgetSettings) -> Limits:
    """A chain of two sites: inputs of 3, outputs of 2."""

    def params(widths: Any) -> int:
        a, b = widths.get("a", 4), widths.get("b", 6)
        return 3 * a + a * b + 2 * b

    return Limits(budget, params, lambda widths: 2 * params(widths))


def paced(budget: int, **settings: Any) -> list[int]:
    """Parameters after each event of a plan."""
    policy = Policy.build(
        GrowthSettings(
            when=PeriodicSettings(start=1, every=1, events=4),
            how_many=BudgetPacedSettings(**settings),
            budget=BudgetSettings(params=budget),
        )
    )
    limits = squares(BudgetSettings(params=budget))
    plan = plan_growth(policy, site_states((4, 6), target=100.0), Clock(7, 70), limits)
    assert plan is not None
    return [limits.params(event.widths) for event in plan.events]


def test_a_pace_reaches_its_budget_at_the_last_event_in_equal_parts() -> None:
    seed, budget = squares(BudgetSettings()).params({}), 2000
    reached = paced(budget)
    assert len(reached) == 4 and reached[-1] <= budget
    # what is left is less than the cheapest unit, of b: 2 and the width of a, which is below 45
    assert budget - reached[-1] < 2 + 45
    for number, params in enumerate(reached, start=1):
        assert params == pytest.approx(seed + number * (budget - seed) / 4, rel=0.05)


def test_a_rounded_pace_stays_below_its_budget() -> None:
    reached = paced(2000, round_to=8)
    assert 0.7 * 2000 < reached[-1] <= 2000


def test_a_pace_that_pays_for_no_unit_waits() -> None:
    """9 parameters in 4 parts: 2, 3, 4, and at last all 9, where a unit of b costs 6 and one of a 9."""
    assert paced(57) == [54]


def test_a_pace_takes_the_number_of_events_it_is_given() -> None:
    budget = BudgetSettings(params=2000)
    settings = GrowthSettings(when=PlateauSettings(), how_many=BudgetPacedSettings(events=2), budget=budget)
    policy, history = Policy.build(settings), history_at(35)
    first = policy.consult(site_states((4, 6), target=100.0), history, squares(budget))
    assert not isinstance(first, Nothing | None)
    history.growths = [GrowthRecord(7, {"a": (3, 4)}), GrowthRecord(14, {"a": (4, 5)})]
    assert policy.decide(site_states(), history, WHY, squares(budget)) == Nothing(
        "the 2 events of budget_paced are done", ends=True
    )


def test_what_the_budget_does_not_bear_is_said_with_the_numbers() -> None:
    policy = Policy.build(GrowthSettings(where=RoundRobinSettings(), how_many=FixedSettings(units=2)))
    limits = squares(BudgetSettings(flops=100))
    assert policy.decide(site_states((4, 6)), history_at(7), WHY, limits) == Nothing(
        "a with 2 more units: growth.budget.flops is 100, and 132 would be needed; "
        "b with 2 more units: growth.budget.flops is 100, and 120 would be needed",
        ends=True,
    )


# the cost of the run and its time


def test_the_training_flops_of_a_run_are_the_sum_over_its_stages() -> None:
    clock = Clock(7, 70, forwards_per_step=6.0)
    growths = [GrowthRecord(10, {"a": (4, 6)}), GrowthRecord(30, {"a": (6, 7), "b": (5, 9)})]
    history = History(clock, step=50, growths=growths)
    stages = [(10, {"a": 4, "b": 5}), (20, {"a": 6, "b": 5}), (20, {"a": 7, "b": 9}), (20, {"a": 8, "b": 9})]
    flops = squares(BudgetSettings()).flops
    assert train_flops(flops, history, {"a": 7, "b": 9}, {"a": 8, "b": 9}) == 6 * sum(
        steps * flops(widths) for steps, widths in stages
    )


def test_a_run_grows_once_what_is_left_of_it_can_be_afforded() -> None:
    """The same step is too dear early, and is taken late: the rest of the run is short."""
    clock = Clock(7, 70, forwards_per_step=1.0)
    seed = 70 * squares(BudgetSettings()).flops({})
    limits = squares(BudgetSettings(train_flops=round(1.2 * seed)))
    policy = Policy.build(
        GrowthSettings(when=PeriodicSettings(start=1, every=1, unit="steps"), how_many=FixedSettings(units=4))
    )
    plan = plan_growth(policy, site_states((4, 6), target=2.0), clock, limits)
    assert plan is not None and plan.events and plan.events[0].step > 20
    spent = sum(steps * limits.flops(widths) for steps, widths in plan.stages(clock.total_steps))
    assert 1.1 * seed < spent <= 1.2 * seed


def test_no_event_begins_after_the_time_is_up() -> None:
    policy, limits = Policy.build(GrowthSettings(where=AllSitesSettings())), Limits(BudgetSettings(wall_seconds=5.0))
    history = history_at(35)
    history.wall_seconds = 4.9
    assert not isinstance(policy.consult(site_states(), history, limits), Nothing | None)
    history.wall_seconds = 5.0
    assert policy.consult(site_states(), history, limits) == Nothing(
        "growth.budget.wall_seconds is 5, and the run has taken 5.0", ends=True
    )


# prospects are asked for once, and only if somebody listens


class Counting:
    """Measures, and counts how often."""

    def __init__(self, prospects: Prospects) -> None:
        self.prospects, self.calls = prospects, 0

    def __call__(self) -> Prospects:
        self.calls += 1
        return self.prospects


NEEDY = {"where": LargestGainSettings(), "how_many": RankThresholdSettings()}


@pytest.mark.parametrize(
    ("settings", "history", "calls"),
    [
        ({}, history_at(35), 0),
        (NEEDY, history_at(35), 1),
        (NEEDY, history_at(36), 0),
        ({**NEEDY, "when": {"name": "gain"}}, history_at(7), 1),
        ({**NEEDY, "when": {"name": "gain", "ratio": 1e9}}, history_at(7), 1),
        ({"when": {"name": "gain"}}, history_at(7), 1),
        ({"when": {"name": "gain"}}, history_at(8), 0),
    ],
    ids=str,
)
def test_prospects_are_measured_once_a_decision_and_only_where_needed(
    settings: dict[str, Any], history: History, calls: int
) -> None:
    measure = Counting(prospects_of(site_states()))
    Policy.build(GrowthSettings.model_validate(settings)).consult(site_states(), history, measure=measure)
    assert measure.calls == calls


def test_nothing_is_measured_once_every_site_has_its_target() -> None:
    measure = Counting(prospects_of(site_states()))
    full = [SiteState("a", 4, 8, 8)]
    policy = Policy.build(GrowthSettings.model_validate({"when": {"name": "gain"}}))
    assert policy.consult(full, history_at(7), measure=measure) == Nothing(
        "every site that may grow has its target width", ends=True
    )
    assert measure.calls == 0


def test_a_decision_carries_the_numbers_that_made_it() -> None:
    policy = Policy.build(GrowthSettings.model_validate({**NEEDY, "when": {"name": "gain"}}))
    decisions = policy.consult(site_states(), history_at(7), measure=lambda: prospects_of(site_states()))
    assert not isinstance(decisions, Nothing | None)
    (decision,) = decisions
    assert (decision.site, decision.num_new) == ("a", 4)  # 1, 1/2, 1/4, 1/8 lie above 0.1
    assert decision.reason.startswith("gain: a unit of a promises ")
    assert decision.reason.endswith(
        "; largest_gain: 0.0125 per flops, rank 1 of 3, next b 0.00625; "
        "rank_threshold: 4 singular values above the noise floor"
    )
    assert decision.scores.keys() == {"gain_ratio", "gain", "noise", "standard_error", "score", "rank"}


def test_sites_without_prospects_are_no_candidates() -> None:
    policy = Policy.build(GrowthSettings.model_validate(NEEDY))
    only_c = Prospects({"c": prospects_of(site_states()).sites["a"]}, 1.0, 8, 100)
    decisions = policy.decide(site_states(), history_at(7), WHY, measure=lambda: only_c)
    assert not isinstance(decisions, Nothing) and [decision.site for decision in decisions] == ["c"]
    none = policy.decide(site_states(), history_at(7), WHY, measure=lambda: Prospects({}, 1.0, 8, 100))
    assert isinstance(none, Nothing)
    assert none.reason == ("growth.where and growth.how_many need prospects, and none could be measured of a, b, c")
