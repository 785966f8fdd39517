"""The largest singular triplets of a matrix, or of an operator that is known by its products alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

__all__ = ["EXACT_LIMIT", "Products", "top_singular", "top_singular_of"]

EXACT_LIMIT = 600  # the smaller side of a matrix up to which its Gram matrix is decomposed exactly
RANK_TOLERANCE = 1e-5  # singular values below this share of the largest count as 0
NARROWEST = 16  # vectors in a block
MISSED = 7e-4  # largest share of the energy, by estimate, that may be left
ROUNDING = 1e-6  # share of the energy that is no gain


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
    """The same of an operator, from a block Krylov space of random vectors, once the captured energy has settled.

    All that the products gave is kept, so that the space holds every polynomial of M M^T and not its highest power
    alone; blocks are narrow, for it is their number that counts. Musco and Musco, "Randomized block Krylov methods",
    NeurIPS 2015, algorithm 2.

    Args:
        products: the operator.
        count: triplets.
        generator: of the random vectors.
        like: a tensor of the type and device of vectors.
    """
    rows, columns = products.shape
    width, confirmed = max(NARROWEST, count // 4), False
    basis, images = like.new_zeros(rows, 0), [like.new_zeros(columns, 0).double()]  # Q, M^T Q
    gram, energies = like.new_zeros(0, 0, dtype=torch.float64), list[float]()

    def fresh() -> Tensor:
        drawn = torch.randn(columns, min(width, rows - basis.shape[1]), generator=generator)
        return _orthonormal(products.times(drawn.to(like)), basis)

    block = fresh()
    while block.shape[1]:
        answer = products.transposed_times(block)
        basis, images = torch.cat([basis, block], 1), [*images, answer.double()]
        gram = _bordered(gram, torch.cat([one.T @ images[-1] for one in images]))
        if basis.shape[1] >= count:
            energies.append(float(torch.linalg.eigvalsh(gram.to(like))[-count:].sum()))
        settled = _settled(energies)
        if settled and confirmed:
            break
        block = like.new_zeros(rows, 0) if settled else _orthonormal(products.times(answer), basis)
        if not block.shape[1]:
            block, confirmed = fresh(), True  # of equal singular values a Krylov space has no more than the block had
    values, turn = torch.linalg.eigh(gram)
    sigma = values.flip(0)[:count].clamp_min(0.0).sqrt()
    sigma = sigma[: _rank(sigma)]
    turn = turn.flip(1)[:, : len(sigma)]
    right = torch.cat(images, 1).to(like) @ (turn / sigma).to(like)
    return basis @ turn.to(like), sigma.to(like), right


def _orthonormal(vectors: Tensor, basis: Tensor) -> Tensor:
    """Orthonormal columns for what `vectors` [R, K] add to the span of an orthonormal `basis`: [R, at most K]."""
    vectors = vectors[:, : basis.shape[0] - basis.shape[1]]
    least = 100 * torch.finfo(vectors.dtype).eps * float(vectors.norm())
    for _ in range(2):  # once leaves the rounding of what was taken off, which would grow from block to block
        vectors, triangle = torch.linalg.qr(vectors - basis @ (basis.T @ vectors))
        vectors, least = vectors[:, triangle.diagonal().abs() > least], 0.5
    return vectors


def _bordered(gram: Tensor, columns: Tensor) -> Tensor:
    """A Gram matrix with further columns, and the rows that they are by symmetry."""
    old = len(gram)
    return torch.cat([torch.cat([gram, columns[:old].T]), columns], 1)


def _settled(energies: list[float]) -> bool:
    """Whether little energy is missed, if each further gain is to the one before as the last one is."""
    if len(energies) < 3:
        return False
    first, second, third = energies[-3:]
    gain, before = third - second, second - first
    return gain <= ROUNDING * third or (gain < before and gain * gain <= MISSED * third * (before - gain))


def _rank(sigma: Tensor) -> int:
    return int((sigma > RANK_TOLERANCE * sigma[:1]).sum()) if len(sigma) and float(sigma[0]) > 0.0 else 0


class _Entries:
    def __init__(self, matrix: Tensor):
        self._matrix, self.shape = matrix, (matrix.shape[0], matrix.shape[1])

    def times(self, vectors: Tensor) -> Tensor:
        return self._matrix @ vectors

    def transposed_times(self, vectors: Tensor) -> Tensor:
        return self._matrix.T @ vectors
