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
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.forms import choose_form
from growkit.growth.initializers.norms import scaled, slice_norm
from growkit.growth.statistics import GradientMatrix, Measurement

__all__ = ["GradMax", "top_singular"]

EXACT_LIMIT = 600  # the smaller side of a matrix up to which its Gram matrix is decomposed exactly
RANK_TOLERANCE = 1e-5  # singular values below this share of the largest count as 0


@dataclass(frozen=True)
class GradMax(Initializer):
    """The new fan-out is spanned by the top left singular vectors of the gradient matrix M.

    Zero fan-in (its own form): |dL/dw_in| = |M^T w_out| is largest, among orthogonal w_out of given norms, for the top
    left singular vectors of M; the gradient norm of unit i is sigma_i times its norm (equation 11 and its solution).

    Zero fan-out (where the activation rules the first form out) has no closed form. The candidates are the top right
    singular vectors with both signs, which are optimal for a linear unit; the ones with the largest measured gradient
    of the fan-out are taken. Where both signs answer alike, as with an odd activation, the second would be the same
    unit over again and is left out. This rule is growkit's own.
    """

    settings: GradMaxSettings = GradMaxSettings()
    name: ClassVar[str] = "gradmax"

    def refuses(self, site: GrowthSite) -> str | None:
        if site.chain is None:
            return (
                "gradmax needs exactly one layer before and one after these units, with nothing but activations between"
            )
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        assert site.chain is not None, "refuses() was not asked"
        form, reason = choose_form(self.settings.form, site, measurement)
        gradient = measurement.gradient_matrix(site)
        left, sigma, right = top_singular(gradient.matrix, num_new, generator)
        left, right, note = self._fill_beyond_rank(site, num_new, left, sigma, right, generator)
        facts = {"sigma": [round(float(s), 9) for s in sigma], **note}
        if form == "zero_fan_in":
            return Extended(self._fan_out(site, gradient, left, measurement), form, reason, facts)
        return Extended(self._fan_in(site, gradient, right, num_new, measurement), form, reason, facts)

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
        self, site: GrowthSite, gradient: GradientMatrix, left: Tensor, measurement: Measurement
    ) -> dict[tuple[str, int], Tensor]:
        assert site.chain is not None
        outputs, *kernel = gradient.fan_out_shape
        slices = left.reshape(outputs, *kernel, -1).movedim(-1, 1)  # [O, K, *kernel]
        norm = slice_norm(measurement.tensor(site.chain.consumer), 1, self.settings)
        return {(site.chain.consumer, 1): scaled(slices, 1, norm)}

    def _fan_in(
        self, site: GrowthSite, gradient: GradientMatrix, right: Tensor, num_new: int, measurement: Measurement
    ) -> dict[tuple[str, int], Tensor]:
        assert site.chain is not None
        norm = slice_norm(measurement.tensor(site.chain.producer), 0, self.settings)
        candidates = scaled(torch.cat([right, -right], dim=1).T, 0, norm)  # [2K, C*U (+ 1)]
        bias = measurement.bias_of(site)
        weights = candidates if bias is None else candidates[:, :-1]
        values = {(site.chain.producer, 0): weights.reshape(-1, *gradient.fan_in_shape)}
        if bias is not None:
            values[bias, 0] = candidates[:, -1]
        best = _distinct(measurement.response(site, values)).topk(num_new).indices
        return {key: slices[best] for key, slices in values.items()}


def _distinct(response: Tensor) -> Tensor:
    """Responses [2K] to K directions and then their opposites, the opposite marked -1 where it answers alike."""
    forth, back = response.chunk(2)
    return torch.cat([forth, back.masked_fill(torch.isclose(forth, back, rtol=1e-4, atol=0.0), -1.0)])


def top_singular(matrix: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest singular triplets of `matrix` [R, S], fewer where its rank is lower.

    Up to 600 rows or columns by the eigenvectors of the smaller Gram matrix in float64; above by randomised subspace
    iteration (Halko, Martinsson and Tropp, 2011), iterated until the energy of the triplets settles (to about 1e-3).

    Returns:
        left [R, k], sigma [k] (largest first), right [S, k], in the matrix's own type.
    """
    wide = matrix.double()
    if wide.shape[0] > wide.shape[1]:
        right, sigma, left = top_singular(matrix.T, count, generator)
        return left, sigma, right
    if wide.shape[0] <= EXACT_LIMIT:
        values, vectors = torch.linalg.eigh(wide @ wide.T)
        left = vectors.flip(1)[:, :count]
        sigma = values.flip(0)[:count].clamp_min(0.0).sqrt()
    else:
        left, sigma = _subspace_iteration(wide, count, generator)
    rank = int((sigma > RANK_TOLERANCE * sigma[:1]).sum()) if float(sigma[0]) > 0.0 else 0
    left, sigma = left[:, :rank], sigma[:rank]
    right = wide.T @ left / sigma
    return left.to(matrix), sigma.to(matrix), right.to(matrix)


def _subspace_iteration(
    matrix: Tensor, count: int, generator: torch.Generator, oversampling: int = 16
) -> tuple[Tensor, Tensor]:
    columns = min(count + oversampling, matrix.shape[0])
    start = torch.randn(matrix.shape[1], columns, generator=generator).to(matrix)
    basis = torch.linalg.qr(matrix @ start).Q
    captured = 0.0
    for _ in range(100):
        # two powers a step: a flat spectrum gains so little at one that the end would seem near
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
        basis = torch.linalg.qr(matrix @ (matrix.T @ basis)).Q
        energy = float(torch.linalg.svdvals(basis.T @ matrix)[:count].square().sum())
        if energy - captured <= 1e-4 * energy:
            break
        captured = energy
    left, sigma, _ = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return (basis @ left)[:, :count], sigma[:count]
