"""GradMax: new units that keep the function and learn fastest.

Evci, van Merrienboer, Unterthiner, Pedregosa and Vladymyrov, ICLR 2022.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from growkit.config.growth import GradMaxSettings
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer, Later
from growkit.growth.initializers.any_graph import extend_through_graph, refuses_graph
from growkit.growth.initializers.forms import choose_form
from growkit.growth.initializers.norms import scaled, slice_norm
from growkit.growth.initializers.signs import SHARE, better_signs
from growkit.growth.initializers.singular import EXACT_LIMIT, top_singular, top_singular_of
from growkit.growth.statistics import GradientOperator, Measurement

__all__ = ["GradMax"]


@dataclass(frozen=True)
class GradMax(Initializer):
    """The new fan-out is spanned by the top left singular vectors of the gradient matrix M.

    Zero fan-in (its own form): |dL/dw_in| = |M^T w_out| is largest, among orthogonal w_out of given norms, for the top
    left singular vectors of M; the gradient norm of unit i is sigma_i times its norm (equation 11 and its solution).
    That leaves the sign of every vector open, which decides on which half of the samples a ReLU will fire. The one is
    taken whose unit, moved down its gradient, lowers the loss of a part of the batch more (`better_signs`); this rule
    is growkit's own.

    Zero fan-out (where the activation rules the first form out) has no closed form. The candidates are the top right
    singular vectors with both signs, which are optimal for a linear unit; the ones with the largest measured gradient
    of the fan-out are taken. Where both signs answer alike, as with an odd activation, the second would be the same
    unit over again and is left out. This rule is growkit's own.
    """

    settings: GradMaxSettings = GradMaxSettings()
    name: ClassVar[str] = "gradmax"

    def refuses(self, site: GrowthSite) -> str | None:
        return refuses_graph(site) if site.chain is None else None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        if site.chain is None:
            return extend_through_graph(site, num_new, measurement, self.settings, generator)
        form, reason = choose_form(self.settings.form, site, measurement)
        gradient = measurement.gradient_operator(site)
        left, sigma, right = self._triplets(site, gradient, num_new, measurement, generator)
        left, right, note = self._fill_beyond_rank(site, num_new, left, sigma, right, generator)
        facts = {"sigma": [round(float(s), 9) for s in sigma], **note}
        if form == "zero_fan_in":
            values = self._candidates(site, gradient, right, measurement)
            gradients = measurement.ask_gradients(site, values, 2 * num_new, SHARE)

            def choose() -> dict[tuple[str, int], Tensor]:
                return self._fan_out(site, gradient, left * better_signs(left.T, gradients()), measurement)

            return Extended(Later(choose, [(site.chain.consumer, 1)]), form, reason, facts)
        return Extended(self._fan_in(site, gradient, right, num_new, measurement), form, reason, facts)

    def _triplets(
        self,
        site: GrowthSite,
        gradient: GradientOperator,
        count: int,
        measurement: Measurement,
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if min(gradient.shape) <= EXACT_LIMIT:
            return top_singular(measurement.gradient_matrix(site).matrix, count, generator)
        assert site.chain is not None
        return top_singular_of(gradient, count, generator, measurement.tensor(site.chain.consumer))

    def _fill_beyond_rank(
        self, site: GrowthSite, num_new: int, left: Tensor, sigma: Tensor, right: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, dict[str, int]]:
        missing = num_new - len(sigma)
        if missing == 0:
            return left, right, {}
        if self.settings.beyond_rank == "error":
            raise GrowthRefused(
                f"gradmax can make at most as many units as the gradient matrix has rank, {len(sigma)} at {site.name}, "
                f"got {num_new}; grow by fewer units, or set growth.initializer.beyond_rank: random"
            )
        extra_left = torch.randn(left.shape[0], missing, generator=generator).to(left)
        extra_right = torch.randn(right.shape[0], missing, generator=generator).to(right)
        return torch.cat([left, extra_left], 1), torch.cat([right, extra_right], 1), {"random_beyond_rank": missing}

    def _fan_out(
        self, site: GrowthSite, gradient: GradientOperator, left: Tensor, measurement: Measurement
    ) -> dict[tuple[str, int], Tensor]:
        assert site.chain is not None
        outputs, *kernel = gradient.fan_out_shape
        slices = left.reshape(outputs, *kernel, -1).movedim(-1, 1)  # [O, K, *kernel]
        norm = slice_norm(measurement.tensor(site.chain.consumer), 1, self.settings)
        return {(site.chain.consumer, 1): scaled(slices, 1, norm)}

    def _fan_in(
        self, site: GrowthSite, gradient: GradientOperator, right: Tensor, num_new: int, measurement: Measurement
    ) -> Later:
        values = self._candidates(site, gradient, right, measurement)
        response = measurement.ask_response(site, values, 2 * num_new)

        def choose() -> dict[tuple[str, int], Tensor]:
            best = _distinct(response()).topk(num_new).indices
            return {key: slices[best] for key, slices in values.items()}

        return Later(choose, values)

    def _candidates(
        self, site: GrowthSite, gradient: GradientOperator, right: Tensor, measurement: Measurement
    ) -> dict[tuple[str, int], Tensor]:
        """Fan-ins along the right singular vectors [C*U (+ 1), K], then along their opposites: 2K units."""
        assert site.chain is not None
        norm = slice_norm(measurement.tensor(site.chain.producer), 0, self.settings)
        candidates = scaled(torch.cat([right, -right], dim=1).T, 0, norm)  # [2K, C*U (+ 1)]
        bias = measurement.bias_of(site)
        weights = candidates if bias is None else candidates[:, :-1]
        values = {(site.chain.producer, 0): weights.reshape(-1, *gradient.fan_in_shape)}
        if bias is not None:
            values[bias, 0] = candidates[:, -1]
        return values


def _distinct(response: Tensor) -> Tensor:
    """Responses [2K] to K directions and then their opposites, the opposite marked -1 where it answers alike."""
    forth, back = response.chunk(2)
    return torch.cat([forth, back.masked_fill(torch.isclose(forth, back, rtol=1e-4, atol=0.0), -1.0)])
