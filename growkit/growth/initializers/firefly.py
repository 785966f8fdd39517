"""Firefly, simplified: both sides of the new units are moved until they lower the loss of the batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from growkit.config.growth import FireflySettings
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.norms import random_slices, slice_norm
from growkit.growth.initializers.units import not_plain
from growkit.growth.initializers.widened import SlicePlace, adam, widened
from growkit.growth.statistics import Measurement

__all__ = ["Firefly"]


@dataclass(frozen=True)
class Firefly(Initializer):
    """Adam on the loss over fan-in and fan-out of all new units, each slice put back to its norm after every step.

    Equation 4 of Wu et al. (NeurIPS 2020) as Evci et al. (ICLR 2022) compare with it: no splits, no pool of candidates
    of which the best are kept. Both sides start Gaussian; biases stay zero. Behind the units a BatchNorm gets the
    statistics that they have on the batch.
    """

    settings: FireflySettings = FireflySettings()
    name: ClassVar[str] = "firefly"
    preserves: ClassVar[bool] = False

    def refuses(self, site: GrowthSite) -> str | None:
        reason = not_plain(site)
        return None if reason is None else f"firefly {reason}"

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        fan_in = self.settings.model_copy(update={"scale": self.settings.epsilon})
        start, norms = {}, {}
        for side, settings in (("live", fan_in), ("consumer", self.settings)):
            for place, slices in random_slices(site, num_new, side, measurement, settings, generator).items():
                start[place] = slices
                norms[place] = slice_norm(measurement.tensor(place[0]), place[1], settings)
        losses: list[float] = []

        with widened(measurement, site, num_new, start) as copy:

            def gradients() -> dict[SlicePlace, Tensor]:
                loss = copy.loss()
                losses.append(loss.item())
                return copy.gradients(loss, list(start))

            values = adam(copy, start, norms, gradients, steps=self.settings.steps, lr=self.settings.lr)
            with torch.no_grad():
                losses.append(copy.loss().item())
                values |= copy.running_statistics()
        facts = {"loss_start": round(losses[0], 9), "loss": round(losses[-1], 9)}
        return Extended(values, "both", "its only form", facts)
