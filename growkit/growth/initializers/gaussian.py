"""Gaussian initialisation: the fair baseline of GradMax, and the plain widening."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from growkit.config.growth import InitializerSettings, RandomSettings, ZeroSettings
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.forms import choose_form
from growkit.growth.initializers.norms import Draw, random_slices
from growkit.growth.statistics import Measurement

__all__ = ["GaussianRandom", "ZeroFanOut", "one_sided"]


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
        return one_sided(self.settings.form, site, num_new, measurement, self.settings, generator)


@dataclass(frozen=True)
class ZeroFanOut(Initializer):
    """Zero fan-out and Gaussian fan-in: keeps any function, whatever the activation."""

    settings: ZeroSettings = ZeroSettings()
    name: ClassVar[str] = "zero"

    def refuses(self, site: GrowthSite) -> str | None:
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        return one_sided("zero_fan_out", site, num_new, measurement, self.settings, generator)


def one_sided(
    wanted: str,
    site: GrowthSite,
    num_new: int,
    measurement: Measurement,
    settings: InitializerSettings,
    generator: torch.Generator,
    draw: Draw = torch.randn,
) -> Extended:
    """Random directions on the side that the form leaves free; arguments as of `choose_form` and `random_slices`."""
    form, reason = choose_form(wanted, site, measurement)
    side = "consumer" if form == "zero_fan_in" else "live"
    return Extended(random_slices(site, num_new, side, measurement, settings, generator, draw), form, reason)
