"""When, where and how many, put together: a policy turns history into decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

from growkit.config.growth import GrowthSettings
from growkit.growth.base import (
    Allocator,
    GrowthDecision,
    History,
    Nothing,
    Prospects,
    SiteSelector,
    SiteState,
    Trigger,
    Why,
)
from growkit.growth.guards import build_trigger
from growkit.growth.how_many import build_allocator
from growkit.growth.kinds import of_one_kind
from growkit.growth.limits import Limits
from growkit.growth.where import build_selector

__all__ = ["Decisions", "Measure", "Policy"]

Decisions = Sequence[GrowthDecision]
Measure = Callable[[], Prospects]


def _unmeasured() -> Prospects:
    raise AssertionError("a policy that needs prospects was given no way to measure them")


@dataclass(frozen=True)
class Policy:
    """A trigger, a selector and an allocator; and the blocks that a place gets at an event."""

    trigger: Trigger
    selector: SiteSelector
    allocator: Allocator
    blocks: int = 1

    @classmethod
    def build(cls, settings: GrowthSettings, seed: int = 0) -> Policy:
        """The policy that `growth` describes; `seed` is that of the growth stream."""
        trigger = build_trigger(settings.when)
        selector, allocator = build_selector(settings.where, seed), build_allocator(settings.how_many, trigger)
        return cls(trigger, selector, allocator, settings.depth.blocks_per_event)

    @property
    def by_prospects(self) -> list[str]:
        """The settings of the parts that must be told what growth promises."""
        parts = {"when": self.trigger, "where": self.selector, "how_many": self.allocator}
        return [f"growth.{key}" for key, part in parts.items() if part.needs_prospects]

    @property
    def chooses_by_prospects(self) -> bool:
        """Whether where or how many depends on what growth promises."""
        return self.selector.needs_prospects or self.allocator.needs_prospects

    def consult(
        self,
        sites: Sequence[SiteState],
        history: History,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        measure: Measure = _unmeasured,
    ) -> Decisions | Nothing | None:
        """Whether and what to grow now.

        Args:
            sites: every site that may grow, in the order of the graph.
            history: of the run so far.
            limits: no decision breaks them.
            measure: gives the prospects; called once at most, and only where a part needs them and may use them.

        Returns:
            One decision at least; or why there is none although it is time; or None where it is not time.
        """
        if not self.trigger.asks(history):
            return None
        obstacle, once = _obstacle(sites, history, limits), cache(measure)
        if self.trigger.needs_prospects and obstacle is not None:
            return obstacle
        seen = _of(once(), sites) if self.trigger.needs_prospects else None
        why = self.trigger.due(history, seen)
        return None if why is None else obstacle or self.decide(sites, history, why, limits, once)

    def decide(
        self,
        sites: Sequence[SiteState],
        history: History,
        why: Why,
        limits: Limits = Limits(),  # noqa: B008 - frozen
        measure: Measure = _unmeasured,
    ) -> Decisions | Nothing:
        """What to grow now, `why` being the reason to grow at all; the rest is as in `consult`."""
        if (obstacle := _obstacle(sites, history, limits)) is not None:
            return obstacle
        prospects = _of(measure(), sites) if self.chooses_by_prospects else None
        candidates = [s for s in sites if s.room > 0 and (prospects is None or s.name in prospects.sites)]
        if not candidates:
            names = ", ".join(site.name for site in sites if site.room > 0)
            return Nothing(f"{' and '.join(self.by_prospects)} need prospects, and none could be measured of {names}")
        obstacles: list[Nothing] = []
        while candidates:
            answer = self._attempt(candidates, sites, history, prospects, limits)
            if not isinstance(answer, _Attempt):
                return _merged([*obstacles, answer])
            if answer.wished:
                return [self._decision(name, answer, why, prospects) for name in answer.wished]
            obstacles.append(answer.obstacle)
            candidates = [site for site in candidates if site.name not in answer.chosen]
        return _merged(obstacles)

    def _decision(self, name: str, attempt: _Attempt, why: Why, prospects: Prospects | None) -> GrowthDecision:
        is_place = prospects is not None and prospects.sites[name].is_place
        parts = [why, attempt.chosen[name], None if is_place else self.allocator.why(name, prospects)]
        told = [part for part in parts if part is not None]
        scores: dict[str, float] = {}
        if prospects is not None:
            one = prospects.sites[name]
            scores = {"gain": one.largest, "noise": one.noise, "standard_error": one.standard_error}
        for part in told:
            scores |= part.scores
        return GrowthDecision(name, attempt.wished[name], "; ".join(part.reason for part in told), scores)

    def _attempt(
        self,
        candidates: Sequence[SiteState],
        sites: Sequence[SiteState],
        history: History,
        prospects: Prospects | None,
        limits: Limits,
    ) -> _Attempt | Nothing:
        """What the selector chooses of the candidates, as far as it gets units that the budget bears."""
        chosen = self.selector.select(candidates, history, prospects)
        if isinstance(chosen, Nothing):
            return chosen
        chosen = of_one_kind(chosen, candidates, history)
        growing, widths = [s for s in candidates if s.name in chosen], {site.name: site.width for site in sites}
        if growing[0].is_place:
            wished: Mapping[str, int] | Nothing = {place.name: self.blocks for place in growing}
        else:
            wished = self.allocator.units(growing, history, prospects, limits.at(widths))
        if isinstance(wished, Nothing):
            return _Attempt(chosen, {}, wished)
        borne: dict[str, int] = {}
        exceeded: list[str] = []
        for site in growing:
            if site.name not in wished:
                continue
            num_new = site.possible(wished[site.name])
            wider = {name: width + borne.get(name, 0) for name, width in widths.items()}
            wider[site.name] += num_new
            if (reason := limits.exceeded(history, widths, wider)) is None:
                borne[site.name] = num_new
            else:
                exceeded.append(f"{site.name} with {num_new} more {'blocks' if site.is_place else 'units'}: {reason}")
        # a run that is nearer to its end may afford a dearer model, and other gains may ask for fewer units
        for_good = limits.budget.train_flops is None and not self.chooses_by_prospects
        return _Attempt(chosen, borne, Nothing(_first(exceeded), ends=for_good))


@dataclass(frozen=True)
class _Attempt:
    """Which sites were chosen, and how many units of theirs the budget bears; if of none, why."""

    chosen: Mapping[str, Why]
    wished: Mapping[str, int]
    obstacle: Nothing


def _obstacle(sites: Sequence[SiteState], history: History, limits: Limits) -> Nothing | None:
    """What keeps every site from growing, whatever the policy wants."""
    if (late := limits.out_of_time(history)) is not None:
        return Nothing(late, ends=True)
    if (enough := limits.reached(history)) is not None:
        return Nothing(enough)
    if not sites:
        return Nothing("every site has been given up", ends=True)
    if all(site.room <= 0 for site in sites):
        kinds = {"every place" if site.is_place else "every site": None for site in sites}
        goal = "target" if "every place" in kinds else "target width"
        return Nothing(f"{' and '.join(kinds)} that may grow has its {goal}", ends=True)
    return None


def _of(prospects: Prospects, sites: Sequence[SiteState]) -> Prospects:
    """The prospects of the sites that have room."""
    names = {site.name for site in sites if site.room > 0}
    return replace(prospects, sites={name: one for name, one in prospects.sites.items() if name in names})


def _merged(obstacles: Sequence[Nothing]) -> Nothing:
    """Several reasons as one; growth ends where each of them ends it."""
    scores = {name: score for one in obstacles for name, score in one.scores.items()}
    return Nothing(
        _first(list(dict.fromkeys(one.reason for one in obstacles))), scores, all(one.ends for one in obstacles)
    )


def _first(reasons: Sequence[str], most: int = 3) -> str:
    more = len(reasons) - most
    return "; ".join(reasons[:most]) + (f"; and {more} more" if more > 0 else "")
