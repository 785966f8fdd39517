"""When, where and how many, put together: a policy turns history into decisions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from growkit.config.growth import GrowthSettings
from growkit.growth.base import Allocator, GrowthDecision, History, SiteSelector, SiteState, Trigger
from growkit.growth.how_many import build_allocator
from growkit.growth.when import build_trigger
from growkit.growth.where import build_selector

__all__ = ["Policy"]


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

    def decide(self, sites: Sequence[SiteState], history: History) -> list[GrowthDecision]:
        """What to grow now, the trigger having fired; empty where every site has reached its target."""
        candidates = [site for site in sites if site.room > 0]
        return [
            GrowthDecision(
                site.name, min(self.allocator.units(site, history), site.room), type(self.trigger).__name__.lower()
            )
            for site in self.selector.select(candidates, history)
        ]
