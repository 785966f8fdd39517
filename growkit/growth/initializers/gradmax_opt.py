"""GradMax by direct optimisation: the zero side's gradient made as large as the norms of the other side allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from growkit.config.growth import GradMaxOptSettings
from growkit.errors import GrowthRefused, GrowthWaits
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.forms import choose_form
from growkit.growth.initializers.norms import random_slices, slice_norm
from growkit.growth.initializers.units import UnitPlaces, not_plain
from growkit.growth.initializers.widened import SlicePlace, WidenedCopy, adam, alive, check_gradients, widened
from growkit.growth.statistics import Measurement

__all__ = ["GradMaxOpt"]


@dataclass(frozen=True)
class GradMaxOpt(Initializer):
    """Adam on the norm of the gradient of the zero side of all new units (Evci et al., ICLR 2022, section 3).

    Serves what has no closed form: zero fan-out, several layers before and behind, anything in between. Only the norm
    of every slice is held, not that they stay apart: for one unit the optimum is that of `gradmax`, for several the
    norm is largest where all are alike, to which they draw nearer with every step. Biases stay zero.
    """

    settings: GradMaxOptSettings = GradMaxOptSettings()
    name: ClassVar[str] = "gradmax_opt"

    def refuses(self, site: GrowthSite) -> str | None:
        reason = not_plain(site)
        return None if reason is None else f"gradmax_opt {reason}"

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        form, reason = choose_form(self.settings.form, site, measurement)
        free, silent = ("consumer", "producer") if form == "zero_fan_in" else ("live", "consumer")
        places = UnitPlaces(site, num_new)
        asked = [place.key for place in places.of(silent) if place.is_parameter]
        reached: list[float] = []

        def draw() -> dict[SlicePlace, Tensor]:
            return random_slices(site, num_new, free, measurement, self.settings, generator)

        with widened(measurement, site, num_new, {}) as copy, sdpa_kernel(SDPBackend.MATH):
            # the other kernels of attention have no second derivative
            start = alive(copy, places, draw, silent)
            norms = {
                place: slice_norm(measurement.tensor(place[0]), place[1], self.settings)
                if slices.dim() > 1
                else (slices.norm() / len(slices) ** 0.5).item()
                for place, slices in start.items()
            }

            def gradients() -> dict[SlicePlace, Tensor]:
                norm = self._gradient_norm(copy, asked, site)
                measurement.forwards += 4  # back through the forward and the backward pass
                found = copy.gradients(norm, list(start))
                if not reached and not any(bool(gradient.any()) for gradient in found.values()):
                    raise _not_twice(site, "it is 0")
                reached.append(norm.item())
                return found

            try:
                values = adam(
                    copy, start, norms, gradients, steps=self.settings.steps, lr=self.settings.lr, maximize=True
                )
            except RuntimeError as error:
                if not any(word in str(error) for word in ("derivative", "differentiate")):
                    raise
                raise _not_twice(site, str(error).splitlines()[0]) from error
            reached.append(self._gradient_norm(copy, asked, site).item())
        facts = {"gradient_norm_start": round(reached[0], 9), "gradient_norm": round(reached[-1], 9)}
        return Extended(values, form, reason, facts)

    def _gradient_norm(self, copy: WidenedCopy, places: list[SlicePlace], site: GrowthSite) -> Tensor:
        gradients = copy.gradients(copy.loss(), places, twice=True)
        check_gradients(gradients.values(), site)
        square = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()
        if not square.item() > 0.0:
            raise GrowthWaits(
                f"gradmax_opt needs a gradient to make larger, and that of new units at {site.name} is 0 on the growth "
                "batch; grow later or on a larger batch, or set growth.fallback"
            )
        return square.sqrt()


def _not_twice(site: GrowthSite, what: str) -> GrowthRefused:
    return GrowthRefused(
        f"gradmax_opt needs operations with a second derivative, and at {site.name} torch has none ({what}); take "
        "gradmax, or set growth.fallback"
    )
