"""The largest singular triplets of a matrix, or of an operator that is known by its products alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["EXACT_LIMIT", "Products", "top_singular", "top_singular_of"]

EXACT_LIMIT = 600  # the smaller side of a matrix up to which its Gram matrix is decomposed exactly
RANK_TOLERANCE = 1e-5  # singular values below this share of the largest count as 0
OVERSAMPLING = 16
SETTLED = 1e-4  # share of the energy by which two powers more change what is captured


class Products(Protocol):
    """A matrix [R, S] by its products."""

    @property
    def shape(self) -> tuple[int, int]:
        """(R, S)."""
        ...

    def times(self, vectors: Tensor, /) -> Tensor:
        """[S, K] to [R, K]."""
        ...

    def transposed_times(self, vectors: Tensor, /) -> Tensor:
        """[R, K] to [S, K]."""
        ...


def top_singular(matrix: Tensor, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` largest singular triplets of `matrix` [R, S], fewer where its rank is lower.

    Up to 600 rows or columns by the eigenvectors of the smaller Gram matrix in float64; above by `top_singular_of`.

    Returns:
        left [R, k], sigma [k] (largest first), right [S, k], in the matrix's own type.
    """
    wide = matrix.double()
    if wide.shape[0] > wide.shape[1]:
        right, sigma, left = top_singular(matrix.T, count, generator)
        return left, sigma, right
    if wide.shape[0] > EXACT_LIMIT:
        return top_singular_of(_Entries(matrix), count, generator, matrix)
    values, vectors = torch.linalg.eigh(wide @ wide.T)
    left = vectors.flip(1)[:, :count]
    sigma = values.flip(0)[:count].clamp_min(0.0).sqrt()
    rank = _rank(sigma)
    left, sigma = left[:, :rank], sigma[:rank]
    right = wide.T @ left / sigma
    return left.to(matrix), sigma.to(matrix), right.to(matrix)


def top_singular_of(
    products: Products, count: int, generator: torch.Generator, like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The same of an operator: subspace iteration from random vectors until the captured energy settles to about 1e-3.

    Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 2011, algorithm 4.4.

    Args:
        products: the operator.
        count: triplets.
        generator: of the random start.
        like: a tensor of the type and device of vectors.
    """
    rows, columns = products.shape
    size = min(count + OVERSAMPLING, rows, columns)
    basis = torch.linalg.qr(products.times(torch.randn(columns, size, generator=generator).to(like))).Q
    captured, image = 0.0, products.transposed_times(basis)  # M^T Q
    for _ in range(100):
        values = torch.linalg.eigvalsh((image.T @ image).double()).flip(0)
        energy = float(values[:count].sum())
        if energy - captured <= SETTLED * energy:
            break
        captured = energy
        basis = torch.linalg.qr(products.times(torch.linalg.qr(image).Q)).Q
        image = products.transposed_times(basis)
    right, sigma, turned = torch.linalg.svd(image.double(), full_matrices=False)
    left = basis.double() @ turned.T
    rank = _rank(sigma[:count])
    return left[:, :rank].to(like), sigma[:rank].to(like), right[:, :rank].to(like)


def _rank(sigma: Tensor) -> int:
    return int((sigma > RANK_TOLERANCE * sigma[:1]).sum()) if len(sigma) and float(sigma[0]) > 0.0 else 0


class _Entries:
    def __init__(self, matrix: Tensor):
        self._matrix, self.shape = matrix, (matrix.shape[0], matrix.shape[1])

    def times(self, vectors: Tensor) -> Tensor:
        return self._matrix @ vectors

    def transposed_times(self, vectors: Tensor) -> Tensor:
        return self._matrix.T @ vectors
