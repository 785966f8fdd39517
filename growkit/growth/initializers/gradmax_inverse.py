"""GradMax with the other side zero, by its own name."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch

from growkit.config.growth import GradMaxInverseSettings, GradMaxSettings
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.gradmax import GradMax
from growkit.growth.statistics import Measurement

__all__ = ["GradMaxInverse"]


@dataclass(frozen=True)
class GradMaxInverse(Initializer):
    """GradMax in its form zero_fan_out at every site, also where the activation would allow zero fan-in."""

    settings: GradMaxInverseSettings = GradMaxInverseSettings()
    name: ClassVar[str] = "gradmax_inverse"

    @cached_property
    def _gradmax(self) -> GradMax:
        shared = self.settings.model_dump(exclude={"name", "form"})
        return GradMax(GradMaxSettings(**shared, form="zero_fan_out"))

    def refuses(self, site: GrowthSite) -> str | None:
        return self._gradmax.refuses(site)

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        return self._gradmax.extend(site, num_new, measurement, generator)
