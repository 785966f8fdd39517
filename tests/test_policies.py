from __future__ import annotations

import json
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from growkit.config.growth import GrowthSettings
from growkit.config.policies import (
    AllSitesSettings,
    BudgetPacedSettings,
    BudgetSettings,
    FixedSettings,
    FractionOfSeedSettings,
    FractionSettings,
    GainSettings,
    LargestGainSettings,
    MarginalGainSettings,
    NeverSettings,
    OverfitGuardSettings,
    PeriodicSettings,
    PlateauSettings,
    ProgressGuardSettings,
    RandomSitesSettings,
    RankSettings,
    RankThresholdSettings,
    RoundRobinSettings,
    SpreadSettings,
)
from growkit.errors import UserInputError
from growkit.growth.base import (
    Allocator,
    Clock,
    EpochRecord,
    GrowthRecord,
    History,
    Nothing,
    SiteSelector,
    SiteState,
    Trigger,
    Why,
)
from growkit.growth.guards import build_trigger
from growkit.growth.how_many import build_allocator
from growkit.growth.limits import Limits
from growkit.growth.plan import plan_growth, resolve_targets, select_sites
from growkit.growth.policy import Policy
from growkit.growth.where import build_selector
from growkit.testing import (
    ALLOCATOR_CONTRACT,
    SELECTOR_CONTRACT,
    TRIGGER_CONTRACT,
    history_at,
    site_states,
)

TRIGGERS = [
    NeverSettings(),
    PeriodicSettings(start=2, every=3, unit="epochs"),
    PeriodicSettings(start=1, every=1, unit="steps"),
    PeriodicSettings(start=4, every=10, events=3, unit="steps"),
    SpreadSettings(),
    SpreadSettings(until=0.9, events=40),
]
BY_TRAINING = [
    PlateauSettings(window=3),
    PlateauSettings(loss="train", window=3, cooldown=0),
    GainSettings(),
    GainSettings(every=2),
    RankSettings(share=0.25),
    OverfitGuardSettings(window=1, base=PeriodicSettings(start=2, every=3)),
    OverfitGuardSettings(window=2, base=GainSettings()),
    ProgressGuardSettings(),
    ProgressGuardSettings(base=GainSettings()),
]
SELECTORS = [
    AllSitesSettings(),
    RoundRobinSettings(),
    RoundRobinSettings(sites_per_event=3),
    RandomSitesSettings(sites_per_event=2),
]
BY_PROSPECTS = [LargestGainSettings(), LargestGainSettings(per="unit", sites_per_event=2)]
ALLOCATORS = [
    FixedSettings(units=4),
    FractionOfSeedSettings(),
    FractionOfSeedSettings(fraction=0.01),
    FractionSettings(fraction=0.5),
    FixedSettings(units=3, round_to=4),
]
IN_RUNS = [
    RankThresholdSettings(),
    RankThresholdSettings(at_most=2),
    BudgetPacedSettings(events=3),
    MarginalGainSettings(events=3),
]


@pytest.mark.parametrize("check", TRIGGER_CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("settings", [*TRIGGERS, *BY_TRAINING], ids=repr)
def test_trigger_contract(settings: Any, check: Callable[[Trigger], None]) -> None:
    check(build_trigger(settings))


@pytest.mark.parametrize("check", SELECTOR_CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("settings", [*SELECTORS, *BY_PROSPECTS], ids=repr)
def test_selector_contract(settings: Any, check: Callable[[SiteSelector], None]) -> None:
    check(build_selector(settings))


@pytest.mark.parametrize("check", ALLOCATOR_CONTRACT, ids=lambda check: check.__name__)
@pytest.mark.parametrize("settings", [*ALLOCATORS, *IN_RUNS], ids=repr)
def test_allocator_contract(settings: Any, check: Callable[[Allocator], None]) -> None:
    check(build_allocator(settings, build_trigger(NeverSettings())))


# when


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"start": 10, "every": 20, "unit": "steps"}, [10, 30, 50]),
        ({"start": 2, "every": 3, "unit": "epochs"}, [14, 35, 56]),
        ({"start": 10, "every": 20, "events": 2, "unit": "steps"}, [10, 30]),
        ({"start": 10, "every": 20, "events": 9, "unit": "steps"}, [10, 30, 50]),
        ({"start": 70, "every": 1, "unit": "steps"}, []),
        ({"start": 69, "every": 1, "unit": "steps"}, [69]),
        ({"start": 10, "every": 1, "unit": "epochs"}, []),
    ],
    ids=str,
)
def test_periodic_fires_at(settings: dict[str, Any], steps: list[int]) -> None:
    clock = Clock(steps_per_epoch=7, total_steps=70)
    assert list(build_trigger(PeriodicSettings(**settings)).planned_steps(clock) or ()) == steps


# where


def play(settings: GrowthSettings, states: list[SiteState], clock: Clock) -> tuple[list[dict[str, int]], History]:
    """What happens to the widths step by step, decided anew at each step as a run does."""
    policy, history, events = Policy.build(settings), History(clock), []
    for step in range(1, clock.total_steps + 1):
        history.step = step
        decisions = policy.consult(states, history)
        if decisions is not None and not isinstance(decisions, Nothing):
            new = {d.site: d.num_new for d in decisions}
            grown = {s.name: (s.width, s.width + new[s.name]) for s in states if s.name in new}
            history.growths.append(GrowthRecord(step, grown))
            states = [SiteState(s.name, s.seed_width, s.width + new.get(s.name, 0), s.target) for s in states]
            events.append({state.name: state.width for state in states})
    return events, history


def test_round_robin_gives_everybody_the_same_number_of_turns() -> None:
    settings = GrowthSettings(
        when=PeriodicSettings(start=1, every=1, unit="steps"),
        where=RoundRobinSettings(sites_per_event=2),
        how_many=FixedSettings(),
    )
    _, history = play(settings, site_states((4, 5, 6, 7, 8), target=100.0), Clock(7, 21))
    assert [list(growth.widths) for growth in history.growths[:5]] == [
        ["a", "b"], ["c", "d"], ["a", "e"], ["b", "c"], ["d", "e"],
    ]  # fmt: skip
    turns = [sum(name in growth.widths for growth in history.growths) for name in "abcde"]
    assert turns == [8] * 5


def test_round_robin_passes_over_full_sites() -> None:
    settings = GrowthSettings(
        when=PeriodicSettings(start=1, every=1, unit="steps"), where=RoundRobinSettings(), how_many=FixedSettings()
    )
    states = [SiteState("a", 4, 4, 5), SiteState("b", 4, 4, 8), SiteState("c", 4, 4, 4)]
    _, history = play(settings, states, Clock(7, 70))
    assert [list(growth.widths) for growth in history.growths] == [["a"], ["b"], ["b"], ["b"], ["b"]]


def test_the_reason_to_grow_is_in_every_decision() -> None:
    policy = Policy.build(GrowthSettings(how_many=FixedSettings(units=10)))
    decisions = policy.decide([SiteState("a", 4, 9, 12), SiteState("b", 4, 12, 12)], history_at(7), Why("a test"))
    assert not isinstance(decisions, Nothing)
    assert [(d.site, d.num_new, d.reason) for d in decisions] == [("a", 3, "a test; all sites")]


# the plan


@pytest.mark.parametrize("where", SELECTORS, ids=repr)
@pytest.mark.parametrize("how_many", ALLOCATORS, ids=repr)
@pytest.mark.parametrize("when", TRIGGERS, ids=repr)
def test_the_plan_is_what_happens(when: Any, where: Any, how_many: Any) -> None:
    settings, clock = GrowthSettings(when=when, where=where, how_many=how_many), Clock(7, 70)
    plan = plan_growth(Policy.build(settings), site_states(), clock)
    assert plan is not None
    events, history = play(settings, site_states(), clock)
    assert [dict(event.widths) for event in plan.events] == events
    assert [event.step for event in plan.events] == [growth.step for growth in history.growths]
    assert plan.reaches_target == (events[-1:] == [{s.name: s.target for s in site_states()}])
    assert sum(steps for steps, _ in plan.stages(clock.total_steps)) == clock.total_steps
    assert plan.stages(clock.total_steps)[-1][1] == plan.final_widths


@pytest.mark.parametrize(
    "settings",
    [{"when": PlateauSettings()}, {"where": LargestGainSettings()}, {"how_many": RankThresholdSettings()}],
    ids=str,
)
def test_what_depends_on_training_has_no_plan(settings: dict[str, Any]) -> None:
    assert plan_growth(Policy.build(GrowthSettings(**settings)), site_states(), Clock(7, 70)) is None


def test_a_plan_keeps_within_what_is_afforded() -> None:
    settings = GrowthSettings(when=PeriodicSettings(start=1, every=1, unit="steps"), how_many=FixedSettings(units=2))
    limits = Limits(BudgetSettings(params=15), params=lambda widths: sum(widths.values()))
    plan = plan_growth(Policy.build(settings), site_states((4, 4)), Clock(7, 70), limits)
    assert plan is not None and not plan.reaches_target
    assert [dict(event.widths) for event in plan.events] == [
        {"a": 6, "b": 6}, {"a": 8, "b": 6},
    ]  # fmt: skip


# sites and targets


def sites(**widths: int) -> Any:
    return [
        SimpleNamespace(name=name.replace("_", "."), seed_width=width, by_copies=False)
        for name, width in widths.items()
    ]


def test_a_target_is_a_multiple_of_the_seed_or_widths_by_pattern() -> None:
    some = sites(blocks_0=4, blocks_1=5, head=3)
    assert resolve_targets(some, 1.5) == {"blocks.0": 6, "blocks.1": 8, "head": 4}
    assert resolve_targets(some, {"blocks.*": 9, "blocks.1": 7}) == {"blocks.0": 9, "blocks.1": 7, "head": 3}


def test_every_wrong_target_is_named_at_once() -> None:
    with pytest.raises(UserInputError) as caught:
        resolve_targets(sites(blocks_0=4, head=3), {"blocks.*": 2, "haed": 9})
    low, unknown = str(caught.value).splitlines()
    assert low == "growth.target.blocks.*: a target must not lie below the seed's width, got 2 for blocks.0 of width 4"
    assert unknown == "growth.target: every pattern must fit a site, got 'haed'; did you mean 'head'?"


def test_patterns_choose_sites_in_the_order_of_the_graph() -> None:
    some = sites(stem=4, blocks_0=4, blocks_1=5)
    assert [site.name for site in select_sites(some, ["blocks.1", "s*"])] == ["stem", "blocks.1"]
    assert select_sites(some, ["*"]) == some


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [("steem", "; did you mean 'stem'?"), ("xyz", "; the sites are stem, blocks.0, blocks.1")],
)
def test_a_pattern_that_fits_nothing_is_refused_with_what_is_there(pattern: str, hint: str) -> None:
    with pytest.raises(UserInputError) as caught:
        select_sites(sites(stem=4, blocks_0=4, blocks_1=5), [pattern])
    assert str(caught.value) == f"growth.sites: every pattern must fit a site, got {pattern!r}{hint}"
    with pytest.raises(UserInputError, match="no site can grow"):
        select_sites([], [pattern])


# history


def test_a_history_survives_json() -> None:
    epoch = EpochRecord(7, 1, 0.1, 2.0, 0.5, None, None, 100, 200, 300, 1.5, 2.5)
    growths = [GrowthRecord(7, {"a": (4, 6)})]
    history = History(Clock(7, 70, 3.5), 9, [epoch], growths, wall_seconds=1.5, ended="a reason")
    assert History.from_json(json.loads(json.dumps(history.to_json()))) == history


def test_a_history_of_another_version_is_refused() -> None:
    with pytest.raises(UserInputError, match="must have version 1, got 7"):
        History.from_json(history_at(1).to_json() | {"version": 7})
