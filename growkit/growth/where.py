"""Where to grow."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from growkit.config.policies import (
    AllSitesSettings,
    LargestGainSettings,
    RandomSitesSettings,
    RoundRobinSettings,
)
from growkit.growth.base import History, Nothing, Prospect, Prospects, SiteSelector, SiteState, Why

__all__ = ["AllSites", "LargestGain", "RandomSites", "RoundRobin", "build_selector", "within_noise"]


@dataclass(frozen=True)
class AllSites(SiteSelector):
    """Every site with room grows at every event ("all at once", Evci et al. 2022)."""

    settings: AllSitesSettings = AllSitesSettings()

    def select(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None = None
    ) -> Mapping[str, Why]:
        return {site.name: Why("all places" if site.is_place else "all sites") for site in sites}


@dataclass(frozen=True)
class RoundRobin(SiteSelector):
    """The sites take turns, in the order of the graph (Evci et al. 2022)."""

    settings: RoundRobinSettings = RoundRobinSettings()

    def select(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None = None
    ) -> Mapping[str, Why]:
        # Fewest turns first keeps the order of the graph and skips full sites without losing anybody's turn.
        turns = {site.name: sum(site.name in growth.widths for growth in history.events) for site in sites}
        chosen = sorted(turns, key=lambda name: turns[name])[: self.settings.sites_per_event]
        return {site.name: Why(f"round_robin: turn {turns[site.name] + 1}") for site in sites if site.name in chosen}


@dataclass(frozen=True)
class LargestGain(SiteSelector):
    """The sites whose next unit promises most grow.

    A unit made with slices of norm n adds n^2 s^2 to the squared gradient norm, s^2 being the site's largest gain; that
    is divided by what the unit costs. Sites whose largest gain is within `factor` times the noise are passed over;
    where all are, no growth pays any more.
    """

    settings: LargestGainSettings = LargestGainSettings()
    needs_prospects = True

    def select(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None = None
    ) -> Mapping[str, Why] | Nothing:
        assert prospects is not None
        factor, found = self.settings.factor, prospects.sites
        scores = {site.name: self._score(found[site.name]) for site in sites if found[site.name].above(factor)}
        if not scores:
            return within_noise([site.name for site in sites], prospects, factor)
        ranked = sorted(scores, key=lambda name: -scores[name])
        per = "" if self.settings.per == "unit" else f" per {self.settings.per}"
        others = f", next {ranked[1]} {scores[ranked[1]]:.3g}" if len(ranked) > 1 else ""
        return {
            site.name: Why(
                f"largest_gain: {scores[site.name]:.3g}{per}, rank {ranked.index(site.name) + 1} of {len(sites)}"
                + (others if site.name == ranked[0] else ""),
                {"score": scores[site.name]},
            )
            for site in sites
            if site.name in ranked[: self.settings.sites_per_event]
        }

    def _score(self, site: Prospect) -> float:
        costs = {"flops": site.flops_per_unit, "params": site.params_per_unit, "unit": 1}
        return site.norm**2 * site.largest / max(1, costs[self.settings.per])


@dataclass(frozen=True)
class RandomSites(SiteSelector):
    """Sites drawn by chance: the control of every other selector.

    The draw follows from the seed and the step alone (the order of SHA-256 over "seed/step/site"), so that a run that
    is resumed grows where it would have grown.
    """

    settings: RandomSitesSettings = RandomSitesSettings()
    seed: int = 0

    def select(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None = None
    ) -> Mapping[str, Why]:
        def drawn(name: str) -> bytes:
            return hashlib.sha256(f"{self.seed}/{history.step}/{name}".encode()).digest()

        chosen = sorted((site.name for site in sites), key=drawn)[: self.settings.sites_per_event]
        why = Why(f"random: {len(chosen)} of {len(sites)} sites")
        return {site.name: why for site in sites if site.name in chosen}


def within_noise(names: Sequence[str], prospects: Prospects, factor: float = 1.0) -> Nothing:
    """That no site has a gain above its noise floor, with the numbers of the nearest ones."""
    gains = {name: prospects.sites[name].largest for name in names}
    floors = {name: factor * prospects.sites[name].noise for name in names}
    near = sorted(names, key=lambda name: floors[name] - gains[name])
    told = ", ".join(f"{name} {gains[name]:.3g} of {floors[name]:.3g}" for name in near[:3])
    more = f" and {len(near) - 3} more" if len(near) > 3 else ""
    return Nothing(f"no site has a gain above its noise floor: {told}{more}", gains, ends=True)


def build_selector(settings: object, seed: int = 0) -> SiteSelector:
    """The selector that `growth.where` names.

    Args:
        settings: of it.
        seed: of the growth stream.
    """
    match settings:
        case AllSitesSettings():
            return AllSites(settings)
        case RoundRobinSettings():
            return RoundRobin(settings)
        case LargestGainSettings():
            return LargestGain(settings)
        case RandomSitesSettings():
            return RandomSites(settings, seed)
    raise AssertionError(f"no selector for {type(settings).__name__}")
