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
from growkit.growth.initializers.units import UnitPlaces, not_plain
from growkit.growth.initializers.widened import SlicePlace, adam, alive, widened
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
        sides = {"live": fan_in, "consumer": self.settings}
        places, losses = UnitPlaces(site, num_new), list[float]()

        def draw() -> dict[SlicePlace, Tensor]:
            drawn = (random_slices(site, num_new, side, measurement, s, generator) for side, s in sides.items())
            return {place: slices for one in drawn for place, slices in one.items()}

        with widened(measurement, site, num_new, {}) as copy:
            with torch.no_grad():
                losses.append(copy.loss().item())
            start = alive(copy, places, draw, "consumer")
            roles = {place.key: place.role for place in places}
            norms = {
                place: slice_norm(
                    measurement.tensor(place[0]), place[1], self.settings if roles[place] == "consumer" else fan_in
                )
                for place in start
            }

            def gradients() -> dict[SlicePlace, Tensor]:
                loss = copy.loss()
                losses.append(loss.item())
                return copy.gradients(loss, list(start))

            values = adam(copy, start, norms, gradients, steps=self.settings.steps, lr=self.settings.lr)
            with torch.no_grad():
                losses.append(copy.loss().item())
                values |= copy.running_statistics()
        facts = {"loss_before": round(losses[0], 9), "loss_start": round(losses[1], 9), "loss": round(losses[-1], 9)}
        return Extended(values, "both", "its only form", facts)
