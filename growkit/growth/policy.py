"""When, where and how many, put together: a policy turns history into decisions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from growkit.config.growth import GrowthSettings
from growkit.growth.base import Allocator, GrowthDecision, History, SiteSelector, SiteState, Trigger
from growkit.growth.how_many import build_allocator
from growkit.growth.when import build_trigger
from growkit.growth.where import build_selector

__all__ = ["Affords", "Policy"]

Affords = Callable[[Mapping[str, int]], bool]  # whether a model of these widths, by site, stays within the budget


@dataclass(frozen=True)
class Policy:
    """A trigger, a selector and an allocator."""

    trigger: Trigger
    selector: SiteSelector
    allocator: Allocator

    @classmethod
    def build(cls, settings: GrowthSettings) -> Policy:
        """The policy that `growth` describes."""
        return cls(build_trigger(settings.when), build_selector(settings.where), build_allocator(settings.how_many))

    def decide(
        self, sites: Sequence[SiteState], history: History, affords: Affords = lambda widths: True
    ) -> list[GrowthDecision]:
        """What to grow now, the trigger having fired.

        Args:
            sites: every site that may grow, in the order of the graph.
            history: of the run so far.
            affords: asked for the widths after the event; a site that it says no to is passed over.

        Returns:
            One decision per site; none where every site has reached its target or the budget is spent.
        """
        candidates = [site for site in sites if site.room > 0]
        while candidates:
            chosen = list(self.selector.select(candidates, history))
            decisions = self._affordable(chosen, {site.name: site.width for site in sites}, history, affords)
            if decisions:
                return decisions
            candidates = [site for site in candidates if site not in chosen]
        return []

    def _affordable(
        self, chosen: Sequence[SiteState], widths: dict[str, int], history: History, affords: Affords
    ) -> list[GrowthDecision]:
        """One decision for each site, in order, that the budget bears beside those before it."""
        decisions = []
        for site in chosen:
            num_new = site.possible(self.allocator.units(site, history))
            wider = widths | {site.name: site.width + num_new}
            if affords(wider):
                decisions.append(GrowthDecision(site.name, num_new, type(self.trigger).__name__.lower()))
                widths = wider
        return decisions
