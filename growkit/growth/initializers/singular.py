"""The largest singular triplets of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["EXACT_LIMIT", "top_singular"]

EXACT_LIMIT = 600  # the smaller side of a matrix up to which its Gram matrix is decomposed exactly
RANK_TOLERANCE = 1e-5  # singular values below this share of the largest count as 0


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
