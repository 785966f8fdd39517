"""GradMax by direct optimisation: the zero side's gradient made as large as the norms of the other side allow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from growkit.config.growth import GradMaxOptSettings
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.forms import choose_form
from growkit.growth.initializers.norms import random_slices, slice_norm
from growkit.growth.initializers.units import UnitPlaces, not_plain
from growkit.growth.initializers.widened import SlicePlace, WidenedCopy, adam, check_gradients, widened
from growkit.growth.statistics import Measurement

__all__ = ["GradMaxOpt"]


@dataclass(frozen=True)
class GradMaxOpt(Initializer):
    """Adam on the norm of the gradient of the zero side of all new units (Evci et al., ICLR 2022, section 3).

    Serves what has no closed form: zero fan-out, several layers before and behind, anything in between. Only the norm
    of every slice is held, not that they stay apart: for one unit the optimum is that of `gradmax`, for several the
    norm is largest where all are alike, to which they draw nearer with every step.
    """

    settings: GradMaxOptSettings = GradMaxOptSettings()
    name: ClassVar[str] = "gradmax_opt"

    def refuses(self, site: GrowthSite) -> str | None:
        reason = not_plain(site)
        return None if reason is None else f"gradmax_opt {reason}"

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        form, reason = choose_form(self.settings.form, site, measurement)
        free, silent = ("consumer", "producer") if form == "zero_fan_in" else ("live", "consumer")
        start = random_slices(site, num_new, free, measurement, self.settings, generator)
        norms = {
            place: slice_norm(measurement.tensor(place[0]), place[1], self.settings)
            if slices.dim() > 1
            else float(slices.norm() / len(slices) ** 0.5)
            for place, slices in start.items()
        }
        asked = [place.key for place in UnitPlaces(site, num_new).of(silent) if place.is_parameter]
        reached: list[float] = []

        with widened(measurement, site, num_new, start) as copy, sdpa_kernel(SDPBackend.MATH):
            # the other kernels of attention have no second derivative

            def gradients() -> dict[SlicePlace, Tensor]:
                norm = self._gradient_norm(copy, asked, site)
                reached.append(norm.item())
                measurement.forwards += 4  # through the forward and the backward pass
                return copy.gradients(norm, list(start))

            try:
                values = adam(
                    copy, start, norms, gradients, steps=self.settings.steps, lr=self.settings.lr, maximize=True
                )
            except RuntimeError as error:
                if "derivative" not in str(error) and "backward" not in str(error):
                    raise
                raise GrowthRefused(
                    f"gradmax_opt needs operations with a second derivative, and at {site.name} torch has none: "
                    f"{str(error).splitlines()[0]}; take gradmax, or set growth.fallback"
                ) from error
            reached.append(self._gradient_norm(copy, asked, site).item())
        facts = {"gradient_norm_start": round(reached[0], 9), "gradient_norm": round(reached[-1], 9)}
        return Extended(values, form, reason, facts)

    def _gradient_norm(self, copy: WidenedCopy, places: list[SlicePlace], site: GrowthSite) -> Tensor:
        gradients = copy.gradients(copy.loss(), places, twice=True)
        check_gradients(gradients.values(), site)
        square = torch.stack([gradient.square().sum() for gradient in gradients.values()]).sum()
        if not square.item() > 0.0:
            raise GrowthRefused(
                f"gradmax_opt needs a gradient to make larger, and that of new units at {site.name} is 0 on the growth "
                "batch; grow later or on a larger batch, or set growth.fallback"
            )
        return square.sqrt()
