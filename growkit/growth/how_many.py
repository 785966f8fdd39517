"""By how much to grow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from growkit.config.policies import (
    BudgetPacedSettings,
    FixedSettings,
    FractionOfSeedSettings,
    FractionSettings,
    MarginalGainSettings,
    RankThresholdSettings,
)
from growkit.growth.base import Allocator, History, Nothing, Prospects, SiteState, Trigger, Why
from growkit.growth.limits import Limits
from growkit.growth.marginal_gain import MarginalGain
from growkit.growth.pace import events_left
from growkit.growth.where import within_noise

__all__ = ["BudgetPaced", "Fixed", "Fraction", "FractionOfSeed", "RankThreshold", "build_allocator"]


@dataclass(frozen=True)
class FractionOfSeed(Allocator):
    """A share of the site's seed width, the same at every event (Evci et al. 2022)."""

    settings: FractionOfSeedSettings = FractionOfSeedSettings()

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int]:
        return _share_of(lambda site: site.seed_width, sites, self.settings)


@dataclass(frozen=True)
class Fraction(Allocator):
    """A share of the site's present width: the widths grow geometrically."""

    settings: FractionSettings = FractionSettings()

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int]:
        return _share_of(lambda site: site.width, sites, self.settings)


@dataclass(frozen=True)
class Fixed(Allocator):
    """The same number of units everywhere."""

    settings: FixedSettings = FixedSettings()

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int]:
        return {site.name: site.rounded(self.settings.units, self.settings.round_to) for site in sites}


@dataclass(frozen=True)
class RankThreshold(Allocator):
    """As many units as the site's gradient matrix has singular values above its noise floor.

    A singular value that chance would give as well promises nothing; each one above the floor is a direction of its own
    in which the loss falls, and a unit can serve one.
    """

    settings: RankThresholdSettings = RankThresholdSettings()
    needs_prospects = True

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int] | Nothing:
        assert prospects is not None
        settings, ranks = self.settings, {s.name: prospects.sites[s.name].above(self.settings.factor) for s in sites}
        if not any(ranks.values()):
            return within_noise(list(ranks), prospects, settings.factor)
        wished = {name: max(rank, settings.at_least) for name, rank in ranks.items() if rank}
        if settings.at_most is not None:
            wished = {name: min(units, settings.at_most) for name, units in wished.items()}
        return {s.name: s.rounded(wished[s.name], settings.round_to) for s in sites if s.name in wished}

    def why(self, site: str, prospects: Prospects | None) -> Why:
        assert prospects is not None
        rank = prospects.sites[site].above(self.settings.factor)
        return Why(f"rank_threshold: {rank} singular values above the noise floor", {"rank": rank})


@dataclass(frozen=True)
class BudgetPaced(Allocator):
    """Equal growth of parameters or FLOPs at every event, so that the last one reaches the budget.

    Of what is left of the budget, an event takes one part in as many as events are left. The sites of the event grow by
    the largest common share of their width that keeps within it; then one step more each, in the order of the graph,
    where it still fits. Widths are rounded down, for the pace must not be exceeded.
    """

    trigger: Trigger
    settings: BudgetPacedSettings = BudgetPacedSettings()

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int] | Nothing:
        left = events_left(self.settings.events, self.trigger, history)
        if left < 1:
            return Nothing(f"the {self.settings.events} events of budget_paced are done", ends=True)
        cost, budget = getattr(limits, self.settings.of), getattr(limits.budget, self.settings.of)
        now = cost({})
        pace = now + (budget - now) // left

        def keeps_pace(units: Mapping[str, int]) -> bool:
            return cost({site.name: site.width + units[site.name] for site in sites}) <= pace

        units = self._filled(sites, self._largest_share(sites, keeps_pace), keeps_pace)
        if not any(units.values()):
            return Nothing(
                f"the pace of this event is {pace - now:,} {self.settings.of}, less than any unit costs",
                ends=left == 1,
            )
        return {name: new for name, new in units.items() if new}

    def _largest_share(
        self, sites: Sequence[SiteState], keeps_pace: Callable[[Mapping[str, int]], bool]
    ) -> Mapping[str, int]:
        """The units of the largest common share of the widths, by bisection."""
        low, high = 0.0, max(site.room / site.width for site in sites)
        units = self._share(sites, high)
        if keeps_pace(units):
            return units
        narrowest = 0.5 / max(site.width for site in sites)
        while high - low > narrowest:
            middle = (low + high) / 2
            low, high = (middle, high) if keeps_pace(self._share(sites, middle)) else (low, middle)
        return self._share(sites, low)

    def _filled(
        self,
        sites: Sequence[SiteState],
        units: Mapping[str, int],
        keeps_pace: Callable[[Mapping[str, int]], bool],
    ) -> Mapping[str, int]:
        for site in sites:
            more = {**units, site.name: self._next(site, units[site.name])}
            if keeps_pace(more):
                units = more
        return units

    def _share(self, sites: Sequence[SiteState], share: float) -> dict[str, int]:
        return {site.name: self._down(site, min(site.room, int(share * site.width + 1e-9))) for site in sites}

    def _down(self, site: SiteState, units: int) -> int:
        """The most units that are allowed, up to `units`."""
        if site.by_copies:
            steps = [site.possible(wished) for wished in range(site.width, units + 1, site.width)]
            return max((step for step in steps if step <= units), default=0)
        whole = units if units == site.room else units - (site.width + units) % self.settings.round_to
        return max(0, whole)

    def _next(self, site: SiteState, units: int) -> int:
        """The next number of units above `units` that is allowed, or `units` where the room ends."""
        return site.possible(site.rounded(units + 1, self.settings.round_to)) if units < site.room else units


def _share_of(
    width: Callable[[SiteState], int],
    sites: Sequence[SiteState],
    settings: FractionSettings | FractionOfSeedSettings,
) -> dict[str, int]:
    wished = {site.name: max(1, round(settings.fraction * width(site))) for site in sites}
    return {site.name: site.rounded(wished[site.name], settings.round_to) for site in sites}


def build_allocator(settings: object, trigger: Trigger) -> Allocator:
    """The allocator that `growth.how_many` names.

    Args:
        settings: of it.
        trigger: of the same policy, which may know how many events there will be.
    """
    match settings:
        case FractionOfSeedSettings():
            return FractionOfSeed(settings)
        case FractionSettings():
            return Fraction(settings)
        case FixedSettings():
            return Fixed(settings)
        case RankThresholdSettings():
            return RankThreshold(settings)
        case BudgetPacedSettings():
            return BudgetPaced(trigger, settings)
        case MarginalGainSettings():
            return MarginalGain(trigger, settings)
    raise AssertionError(f"no allocator for {type(settings).__name__}")
