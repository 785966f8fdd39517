"""Gaussian initialisation: the fair baseline of GradMax, and the plain widening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from growkit.config.growth import RandomSettings, ZeroSettings
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.forms import choose_form
from growkit.growth.initializers.norms import gaussian_slices
from growkit.growth.statistics import Measurement

__all__ = ["GaussianRandom", "ZeroFanOut"]


@dataclass(frozen=True)
class GaussianRandom(Initializer):
    """Gaussian directions on one side of the new units and zeros on the other.

    With zero fan-in it is "Random" of Evci et al. (ICLR 2022) but with signs: their released code draws from U[0, 1),
    whose slices are nearly collinear and make a weaker baseline.
    """

    settings: RandomSettings = RandomSettings()
    name: ClassVar[str] = "random"

    def refuses(self, site: GrowthSite) -> str | None:
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        form, reason = choose_form(self.settings.form, site, measurement)
        side = "consumer" if form == "zero_fan_in" else "live"
        return Extended(gaussian_slices(site, num_new, side, measurement, self.settings, generator), form, reason)


@dataclass(frozen=True)
class ZeroFanOut(Initializer):
    """Zero fan-out and Gaussian fan-in: keeps any function, whatever the activation."""

    settings: ZeroSettings = ZeroSettings()
    name: ClassVar[str] = "zero"

    def refuses(self, site: GrowthSite) -> str | None:
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        form, reason = choose_form("zero_fan_out", site, measurement)
        return Extended(gaussian_slices(site, num_new, "live", measurement, self.settings, generator), form, reason)
