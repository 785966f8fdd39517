"""How many units, and where, in one: unit by unit to the site that promises most for its cost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from growkit.config.policies import MarginalGainSettings
from growkit.growth.base import Allocator, History, Nothing, Prospect, Prospects, SiteState, Trigger, Why
from growkit.growth.limits import Limits
from growkit.growth.pace import events_left
from growkit.growth.where import within_noise

__all__ = ["MarginalGain"]


@dataclass(frozen=True)
class MarginalGain(Allocator):
    """Greedy by promise per cost: the next unit goes where it adds most to the squared gradient norm per parameter.

    A site's units serve its singular directions above the noise, one each, the best first: the unit that serves
    direction i promises n^2 s_i^2, with n the norm of a new slice (Evci et al., ICLR 2022, equation 11, gives a unit
    the gradient norm n s_i). So the promise of a site falls with every unit it gets, and a site gets no more units than
    it has such directions, for a further one would begin along a direction of chance. Where widths are multiples of
    `round_to`, the last step is rounded up beyond them.

    Which directions stand above the noise, parallel analysis tells (Horn, Psychometrika 1965): s_i^2 must be above
    `factor` times the i-th largest squared singular value that chance gives, and so must be all before it. What chance
    gives is measured with random signs (`measure_prospects`).
    """

    trigger: Trigger
    settings: MarginalGainSettings = MarginalGainSettings()
    needs_prospects = True

    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int] | Nothing:
        assert prospects is not None
        factor = self.settings.factor
        if not any(prospects.sites[site.name].directions(factor) for site in sites):
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

    def why(self, site: str, prospects: Prospects | None) -> Why:
        assert prospects is not None
        promises = {name: _promises(one, self.settings) for name, one in prospects.sites.items()}
        own = promises.pop(site)
        first = {name: one[0] for name, one in promises.items() if one}
        best = max(first, key=lambda name: first[name], default=None)
        other = "" if best is None else f", the best other site {best} {first[best]:.3g}"
        directions = f"{len(own)} direction{'s' if len(own) != 1 else ''} above the noise"
        reason = (
            f"marginal_gain: {directions} and so at most as many units, the first promises {own[0]:.3g} per "
            f"{self.settings.of}{other}"
        )
        return Why(reason, {"promise": own[0], "directions": len(own)})


class _Share:
    """A site's part of an event, unit by unit."""

    def __init__(self, site: SiteState, prospect: Prospect, settings: MarginalGainSettings):
        self.site, self.units, self._multiple = site, 0, settings.round_to
        self._promises = _promises(prospect, settings)

    @property
    def next(self) -> int:
        """The least number of units it can have next."""
        return self.site.possible(self.site.rounded(self.units + 1, self._multiple))

    @property
    def promise(self) -> float | None:
        """Of the next unit, per cost; None where there is none."""
        return self._promises[self.units] if self.units < min(len(self._promises), self.site.room) else None

    def take(self) -> None:
        """Have the next units."""
        self.units = self.next


def _promises(prospect: Prospect, settings: MarginalGainSettings) -> list[float]:
    """What each unit promises per cost, the best first: one for every direction above the noise."""
    cost = prospect.params_per_unit if settings.of == "params" else prospect.flops_per_unit
    above = prospect.gains[: prospect.directions(settings.factor)]
    return [prospect.norm**2 * gain / max(1, cost) for gain in above]


def _shared_out(shares: Sequence[_Share], affordable: Callable[[Mapping[str, int]], bool]) -> dict[str, int]:
    """Units by site, the best first; a site whose next units cannot be afforded gets no more."""
    waiting, widths = list(shares), dict[str, int]()
    while open_to_more := [share for share in waiting if share.promise is not None]:
        best = max(open_to_more, key=lambda share: share.promise or 0.0)
        wider = {**widths, best.site.name: best.site.width + best.next}
        if affordable(wider):
            widths = wider
            best.take()
        else:
            waiting.remove(best)
    return {share.site.name: share.units for share in shares if share.units}
