"""Where to grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growkit.config.growth import AllSitesSettings, RoundRobinSettings
from growkit.growth.base import History, SiteSelector, SiteState

__all__ = ["AllSites", "RoundRobin", "build_selector"]


@dataclass(frozen=True)
class AllSites(SiteSelector):
    """Every site with room grows at every event ("all at once", Evci et al. 2022)."""

    settings: AllSitesSettings = AllSitesSettings()

    def select(self, sites: Sequence[SiteState], history: History) -> Sequence[SiteState]:
        return sites


@dataclass(frozen=True)
class RoundRobin(SiteSelector):
    """The sites take turns, in the order of the graph (Evci et al. 2022)."""

    settings: RoundRobinSettings = RoundRobinSettings()

    def select(self, sites: Sequence[SiteState], history: History) -> Sequence[SiteState]:
        # Fewest turns first keeps the order of the graph and skips full sites without losing anybody's turn.
        turns = {site.name: sum(site.name in growth.widths for growth in history.growths) for site in sites}
        chosen = sorted(sites, key=lambda site: turns[site.name])[: self.settings.sites_per_event]
        return [site for site in sites if site in chosen]


def build_selector(settings: AllSitesSettings | RoundRobinSettings) -> SiteSelector:
    """The selector that `growth.where` names."""
    return AllSites(settings) if isinstance(settings, AllSitesSettings) else RoundRobin(settings)
