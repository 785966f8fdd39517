"""By how much to grow."""

from __future__ import annotations

from dataclasses import dataclass

from growkit.config.growth import FixedSettings, FractionOfSeedSettings
from growkit.growth.base import Allocator, History, SiteState

__all__ = ["Fixed", "FractionOfSeed", "build_allocator"]


@dataclass(frozen=True)
class FractionOfSeed(Allocator):
    """A share of the site's seed width, the same at every event (Evci et al. 2022)."""

    settings: FractionOfSeedSettings = FractionOfSeedSettings()

    def units(self, site: SiteState, history: History) -> int:
        return max(1, round(self.settings.fraction * site.seed_width))


@dataclass(frozen=True)
class Fixed(Allocator):
    """The same number of units everywhere."""

    settings: FixedSettings = FixedSettings()

    def units(self, site: SiteState, history: History) -> int:
        return self.settings.units


def build_allocator(settings: FractionOfSeedSettings | FixedSettings) -> Allocator:
    """The allocator that `growth.how_many` names."""
    return Fixed(settings) if isinstance(settings, FixedSettings) else FractionOfSeed(settings)
