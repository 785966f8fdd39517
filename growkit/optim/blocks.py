"""Large tensors on a CPU, block by block: what one operation writes is still in the cache for the next."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

__all__ = ["are_even", "blocks", "flat", "is_dense", "scratch"]

BLOCK = 65_536  # entries; smaller blocks stay in nearer caches, but every operation on one costs a call
SCRATCH = threading.local()


def scratch(size: int, dtype: torch.dtype) -> Tensor:
    """Memory for one block: the same every time, for new memory costs more than what is computed in it.

    Args:
        size: entries, at most BLOCK.
        dtype: of the entries.
    """
    if not hasattr(SCRATCH, "of"):
        SCRATCH.of = {}
    if dtype not in SCRATCH.of:
        with torch.inference_mode(False):
            SCRATCH.of[dtype] = torch.empty(BLOCK, dtype=dtype, device="cpu")
    return SCRATCH.of[dtype][:size]


def are_even(tensors: Sequence[Tensor]) -> bool:
    """Whether all tensors are of one type and fill a stretch of memory each, in the same order."""
    first, contiguous = tensors[0], True
    for one in tensors:
        if one.dtype != first.dtype:
            return False
        contiguous = contiguous and one.is_contiguous()
    return contiguous or (is_dense(first) and all(one.stride() == first.stride() for one in tensors))


def flat(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Even tensors as one dimension, in the order of their memory."""
    return tuple(one.as_strided((one.numel(),), (1,)) for one in tensors)


def blocks(tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of even tensors, one after the other."""
    return zip(*(one.split(BLOCK) for one in flat(tensors)), strict=True)


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills a stretch of memory, in any order; not asked of one without entries."""
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return span == tensor.numel()
