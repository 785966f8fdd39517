"""Contracts for authors of triggers, selectors and allocators."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from growkit.config.policies import BudgetSettings
from growkit.growth.base import (
    Allocator,
    Clock,
    EpochRecord,
    GrowthRecord,
    History,
    Nothing,
    Prospect,
    Prospects,
    SiteSelector,
    SiteState,
    Trigger,
    Why,
)
from growkit.growth.limits import Limits

__all__ = [
    "ALLOCATOR_CONTRACT",
    "SELECTOR_CONTRACT",
    "TRIGGER_CONTRACT",
    "expect",
    "history_at",
    "prospects_of",
    "site_states",
]


def expect(holds: bool, rule: str) -> None:
    """Raise AssertionError with the rule where it does not hold."""
    if not holds:
        raise AssertionError(rule)


def site_states(widths: Sequence[int] = (4, 8, 6), target: float = 3.0) -> list[SiteState]:
    """Sites `a`, `b`, ... at their seed widths."""
    names = (chr(ord("a") + index) for index in range(len(widths)))
    return [SiteState(name, width, width, round(target * width)) for name, width in zip(names, widths, strict=True)]


def history_at(
    step: int,
    clock: Clock | None = None,
    growths: Sequence[GrowthRecord] = (),
    loss: Callable[[int], float] = lambda epoch: 1.0,
) -> History:
    """A history after `step` optimizer steps; the clock is 10 epochs of 7 steps.

    Args:
        step: optimizer steps done.
        clock: of the run.
        growths: so far.
        loss: validate and train loss by epoch, from 1.
    """
    clock = clock or Clock(7, 70)
    ends = [*range(clock.steps_per_epoch, min(step, clock.total_steps) + 1, clock.steps_per_epoch)]
    if step >= clock.total_steps and clock.total_steps % clock.steps_per_epoch:
        ends.append(clock.total_steps)
    epochs = [
        EpochRecord(end, n, 0.1, loss(n), 0.5, loss(n), 0.5, 100, 200, 3 * end, float(n), float(n))
        for n, end in enumerate(ends, start=1)
    ]
    return History(clock, step=step, epochs=epochs, growths=list(growths))


def prospects_of(sites: Sequence[SiteState], gain: float = 1.0, noise: float = 0.1) -> Prospects:
    """Prospects of sites, of which each promises half as much as the one before it.

    Args:
        sites: whose.
        gain: largest one of the first site.
        noise: floor of every site.
    """
    largest = {site.name: gain / 2**place for place, site in enumerate(sites)}
    found = {
        name: Prospect(tuple(value / 2**unit for unit in range(8)), noise, 0.01 * value, 10, 20, 0.5)
        for name, value in largest.items()
    }
    return Prospects(found, gradient=1e-6, samples=64, flops=1000)


def _due(trigger: Trigger, history: History) -> Why | None:
    """What a run would be told: a trigger is asked first, and gets prospects only if it needs them."""
    if not trigger.asks(history):
        return None
    return trigger.due(history, prospects_of(site_states()) if trigger.needs_prospects else None)


def fires_when_it_planned_to(trigger: Trigger) -> None:
    """`planned_steps`, where known, are exactly the steps of a run at which it fires."""
    for clock in (Clock(7, 70), Clock(1, 9), Clock(100, 30), Clock(3, 1)):
        planned = trigger.planned_steps(clock)
        fired = [step for step in range(clock.total_steps + 1) if _due(trigger, history_at(step, clock))]
        if planned is not None:
            expect(list(planned) == fired, f"{clock}: planned {list(planned)}, fired at {fired}")


def never_fires_where_nothing_follows(trigger: Trigger) -> None:
    """No event before the first step or after the last one: new units could not be trained."""
    for clock in (Clock(7, 70), Clock(5, 5), Clock(1, 1), Clock(3, 29)):
        for step in (0, clock.total_steps, clock.total_steps + 1):
            expect(_due(trigger, history_at(step, clock)) is None, f"{clock}: due at step {step}")


def is_asked_before_it_is_due(trigger: Trigger) -> None:
    """`asks` says yes wherever `due` would, or prospects would be measured for nothing, or not at all."""
    prospects = prospects_of(site_states()) if trigger.needs_prospects else None
    for step in range(71):
        history = history_at(step)
        if trigger.due(history, prospects) is not None:
            expect(trigger.asks(history), f"due at step {step}, where it does not ask")


def only_reads_the_history(trigger: Trigger) -> None:
    """Asking twice gives the same answer and leaves the history as it was."""
    for step in range(71):
        history = history_at(step)
        before = history.to_json()
        expect(_due(trigger, history) == _due(trigger, history), f"two answers at step {step}")
        expect(history.to_json() == before, "the history was changed")


def says_why_it_fires(trigger: Trigger) -> None:
    """Every answer has a reason in one line, and numbers that are finite."""
    for step in range(71):
        if (why := _due(trigger, history_at(step))) is not None:
            _expect_reason(why)


def refuses_in_words_or_not_at_all(trigger: Trigger) -> None:
    """What it says of a run that it could never fire in is a sentence, or nothing."""
    for clock, validates in ((Clock(7, 70), True), (Clock(7, 70), False), (Clock(1, 1), True)):
        reason = trigger.refuses(clock, validates)
        expect(reason is None or bool(reason.strip()), f"{clock}: refused with {reason!r}")


TRIGGER_CONTRACT = (
    fires_when_it_planned_to,
    never_fires_where_nothing_follows,
    is_asked_before_it_is_due,
    only_reads_the_history,
    says_why_it_fires,
    refuses_in_words_or_not_at_all,
)
"""For `growkit.growth.base.Trigger`."""


def selects_among_the_candidates_in_order(selector: SiteSelector) -> None:
    """At least one of the given sites, in the order of the graph, each with a reason."""
    history = history_at(7)
    for count in range(1, 6):
        states = site_states(tuple(range(3, 3 + count)))
        chosen = selector.select(states, history, prospects_of(states, noise=1e-3))
        expect(not isinstance(chosen, Nothing) and bool(chosen), f"none of {count} sites was selected")
        assert not isinstance(chosen, Nothing)
        positions = [[site.name for site in states].index(name) for name in chosen]
        expect(positions == sorted(positions), f"sites must be selected in order, got {positions}")
        for why in chosen.values():
            _expect_reason(why)


def selects_alike_twice(selector: SiteSelector) -> None:
    """The answer follows from its arguments, which stay as they were."""
    states = site_states()
    history, prospects = history_at(7, growths=[GrowthRecord(3, {"a": (4, 5)})]), prospects_of(states)
    before = history.to_json()
    one, other = (selector.select(states, history, prospects) for _ in range(2))
    expect(one == other, "two answers")
    expect(history.to_json() == before, "the history was changed")


def needs_what_it_says(selector: SiteSelector) -> None:
    """Without prospects it selects if it says that it needs none."""
    if not selector.needs_prospects:
        expect(bool(selector.select(site_states(), history_at(7))), "no site was selected without prospects")


SELECTOR_CONTRACT = (selects_among_the_candidates_in_order, selects_alike_twice, needs_what_it_says)
"""For `growkit.growth.base.SiteSelector`."""

_LIMITS = Limits(
    BudgetSettings(params=100_000, flops=100_000),
    params=lambda widths: sum(widths.values()) ** 2,
    flops=lambda widths: 2 * sum(widths.values()) ** 2,
)


def gives_at_least_one_unit(allocator: Allocator) -> None:
    """A whole number >= 1 for sites with room, and for no others."""
    for seed_width in (1, 2, 3, 10):
        for width in (seed_width, 2 * seed_width):
            site = SiteState("a", seed_width, width, 3 * seed_width)
            units = _units(allocator, [site])
            expect(units.keys() == {"a"}, f"units for {list(units)}, asked for those of a")
            expect(type(units["a"]) is int and units["a"] >= 1, f"units must be a whole number >= 1, got {units!r}")


def keeps_to_its_multiple(allocator: Any) -> None:
    """New widths are multiples of `settings.round_to`, or the target."""
    rounding = replace(allocator, settings=allocator.settings.model_copy(update={"round_to": 8}))
    for width, target in ((3, 64), (16, 30), (17, 80), (60, 63)):
        site = SiteState("a", width, width, target)
        new = width + site.possible(_units(rounding, [site])["a"])
        expect(new % 8 == 0 or new == target, f"width {width} became {new}, no multiple of 8")


def allocates_alike_twice(allocator: Allocator) -> None:
    """The answer follows from its arguments."""
    expect(_units(allocator, site_states()) == _units(allocator, site_states()), "two answers")


ALLOCATOR_CONTRACT = (gives_at_least_one_unit, keeps_to_its_multiple, allocates_alike_twice)
"""For `growkit.growth.base.Allocator`; its `settings` must be AllocatorSettings."""


def _units(allocator: Allocator, sites: Sequence[SiteState]) -> dict[str, int]:
    widths = {site.name: site.width for site in sites}
    units = allocator.units(sites, history_at(7), prospects_of(sites), _LIMITS.at(widths))
    expect(not isinstance(units, Nothing), f"no units, for {units}")
    assert not isinstance(units, Nothing)
    return dict(units)


def _expect_reason(why: Why) -> None:
    expect(bool(why.reason.strip()) and "\n" not in why.reason, f"a reason must be one line, got {why.reason!r}")
    expect(all(math.isfinite(score) for score in why.scores.values()), f"scores must be finite, got {why.scores}")
