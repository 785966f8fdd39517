"""How many units, and where, in one: unit by unit to the site that promises most for its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush

from growkit.config.policies import MarginalGainSettings
from growkit.growth.base import Allocator, History, Nothing, Prospect, Prospects, SiteState, Trigger
from growkit.growth.limits import Limits
from growkit.growth.pace import events_left
from growkit.growth.where import within_noise

__all__ = ["MarginalGain"]


@dataclass(frozen=True)
class MarginalGain(Allocator):
    """Greedy by promise per cost: the next unit goes where it adds most to the squared gradient norm per parameter.

    A site's units serve its singular directions one after the other: unit i adds n^2 s_i^2, with n the norm of a new
    slice. So the promise of a site falls with every unit it gets, and the greedy choice balances the sites; for costs
    that add up it is optimal among choices of the same cost. Costs do not add up where neighbours both grow: the pace
    is kept with the true cost of all sites together.
    """

    trigger: Trigger
    settings: MarginalGainSettings = MarginalGainSettings()
    needs_prospects = True

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int] | Nothing:
        assert prospects is not None
        factor = self.settings.factor
        if not any(prospects.sites[site.name].above(factor) for site in sites):
            return within_noise([site.name for site in sites], prospects, factor)
        left = events_left(self.settings.events, self.trigger, history)
        if left < 1:
            return Nothing(f"the {self.settings.events} events of marginal_gain are done", ends=True)
        cost, budget = getattr(limits, self.settings.of), getattr(limits.budget, self.settings.of)
        now = cost({})
        pace = round(now * self.settings.ratio) if budget is None else now + (budget - now) // left
        shares = [_Share(site, prospects.sites[site.name], self.settings) for site in sites]
        given = _shared_out(shares, lambda widths: cost(widths) <= pace)
        if not given:
            told = f"the pace of this event is {pace - now:,} {self.settings.of}, less than any unit costs"
            return Nothing(told, ends=left == 1 and budget is not None)
        return given


@dataclass(order=True)
class _Share:
    """A site's place in the queue: the one whose next units promise most comes first."""

    site: SiteState = field(compare=False)
    prospect: Prospect = field(compare=False)
    settings: MarginalGainSettings = field(compare=False)
    units: int = field(default=0, compare=False)
    order: float = 0.0

    def __post_init__(self) -> None:
        self.queue()

    @property
    def next(self) -> int:
        """The least number of units it can have next."""
        return self.site.possible(self.site.rounded(self.units + 1, self.settings.round_to))

    @property
    def serves(self) -> bool:
        """Whether its next units have room, and directions above the noise."""
        return self.units < self.site.room and self.units < self.prospect.above(self.settings.factor)

    def queue(self) -> None:
        """Find its place: less is sooner."""
        gains, more = self.prospect.gains[self.units : self.next], max(1, self.next - self.units)
        costs = {"flops": self.prospect.flops_per_unit, "params": self.prospect.params_per_unit}
        self.order = -(self.prospect.norm**2) * sum(gains) / more / max(1, costs[self.settings.of])


def _shared_out(shares: list[_Share], affordable: Callable[[Mapping[str, int]], bool]) -> dict[str, int]:
    """Units by site, the best first; a site whose next units cannot be afforded gets no more."""
    queue, widths = [share for share in shares if share.serves], {}
    heapify(queue)
    while queue:
        share = heappop(queue)
        wider = {**widths, share.site.name: share.site.width + share.next}
        if not affordable(wider):
            continue
        widths, share.units = wider, share.next
        share.queue()
        if share.serves:
            heappush(queue, share)
    return {share.site.name: share.units for share in shares if share.units}
