"""What growth promises, site by site: the spectrum of the gradient matrix, and what of it may be chance."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.growth.base import Prospect, Prospects
from growkit.growth.statistics.fan_map import sketched
from growkit.growth.statistics.measurement import Measurement

__all__ = ["BATCHES", "measure_prospects"]

PROBES = 64  # fan-outs of a site that is measured through its graph: one backward pass on each batch
BATCHES = 4  # of which the spectrum is the mean's, and what is left of them with random signs is chance

NormOf = Callable[[GrowthSite, Measurement], float]


def measure_prospects(measurement: Measurement, norm_of: NormOf, flops: int) -> Prospects:
    """The prospects of the sites of a measurement.

    The signal is the same in all batches, what they give by chance is not: with as many signs of either kind the signal
    cancels out and chance stays as large as in the mean. It is parallel analysis by sign flips (Hong, Sheng and
    Dobriban, "Selecting the number of components in PCA via random signflips", arXiv 2012.02985, 2020), of the signs of
    whole batches in place of single entries, for the entries of one batch depend on each other.

    Args:
        measurement: of an even number of batches, at least 2.
        norm_of: the norm that a new slice of a site gets.
        flops: of the model, forward per sample.

    Raises:
        TrainingError: a gradient is not finite.
    """
    found, square = {}, measurement.gradient_square()
    for site in measurement.sites:
        try:
            matrices = _matrices(measurement, site)
        except GrowthRefused:  # its units cannot be probed, or the loss does not depend on them
            continue
        found[site.name] = _prospect(matrices, site, norm_of(site, measurement))
    samples = sum(len(targets) for _, targets in measurement.batches)
    passes = measurement.forwards * len(measurement.targets) / samples
    return Prospects(found, square, samples, flops, passes)


def _matrices(measurement: Measurement, site: GrowthSite) -> Tensor:
    """The gradient matrix of each batch: [batches, R, S]; measured through a graph, R is at most PROBES.

    Random combinations of the fan-out's entries then stand for all. They keep squared norms in the mean, to about 18 %
    for a matrix of rank 1; the noise floor is measured with the same ones.
    """
    if site.chain is not None:
        return torch.stack([one.matrix for one in measurement.gradient_matrices(site)])
    if site.by_copies:
        raise GrowthRefused("new units are copies, which have no directions of their own")
    matrices, probes = [], sketched(site, PROBES)
    for inputs, targets in measurement.batches:
        alone = replace(measurement, inputs=inputs, targets=targets, more=(), forwards=0.0)
        matrices.append(alone.fan_map(site, probes=probes).matrix)
        measurement.forwards += alone.forwards
    return torch.stack(matrices)


def _prospect(matrices: Tensor, site: GrowthSite, norm: float) -> Prospect:
    gains = _squares(matrices.mean(0))
    chance = torch.stack([_squares(one) for one in _signed_means(matrices)]).mean(0)
    return Prospect(
        gains=tuple(gains.tolist()),
        noise=float(chance[0]),
        standard_error=_jackknife(matrices),
        params_per_unit=site.params_per_unit,
        flops_per_unit=site.flops_per_unit,
        norm=norm,
        chance=tuple(chance.tolist()),
    )


def _squares(matrix: Tensor) -> Tensor:
    """Squared singular values, largest first, by the smaller Gram matrix."""
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    return torch.linalg.eigvalsh(wide @ wide.T).flip(0).clamp_min(0.0)


def _signed_means(matrices: Tensor) -> Iterator[Tensor]:
    """The means with half of the signs turned, in all ways that differ by more than the sign of all."""
    count = len(matrices)
    for turned in itertools.combinations(range(1, count), count // 2):
        signs = torch.ones(count).to(matrices)
        signs[list(turned)] = -1.0
        yield torch.tensordot(signs, matrices, 1) / count


def _jackknife(matrices: Tensor) -> float:
    """Standard error of the largest gain over the batches."""
    count, total = len(matrices), matrices.sum(0)
    left_out = torch.stack([_squares((total - one) / (count - 1))[0] for one in matrices])
    return float(((count - 1) * left_out.var(correction=0)).sqrt())
