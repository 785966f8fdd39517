"""The random baseline of the code released with GradMax: directions without signs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from growkit.config.growth import RandomPositiveSettings
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.gaussian import one_sided
from growkit.growth.statistics import Measurement

__all__ = ["PositiveRandom"]


@dataclass(frozen=True)
class PositiveRandom(Initializer):
    """Directions from U[0, 1) on one side of the new units and zeros on the other (Evci et al., ICLR 2022, their code).

    All slices lie in one corner, so that new units are nearly collinear: `random` is the fair baseline.
    """

    settings: RandomPositiveSettings = RandomPositiveSettings()
    name: ClassVar[str] = "random_positive"

    def refuses(self, site: GrowthSite) -> str | None:
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        return one_sided(self.settings.form, site, num_new, measurement, self.settings, generator, torch.rand)
