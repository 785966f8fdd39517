"""FLOPs of operators that torch's counter has no formula for: 2 per multiply-accumulate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import sdpa_flop_count

__all__ = ["FORMULAS"]


def _recurrent(input_shape: Sequence[int], weights: Sequence[Sequence[int]]) -> int:
    """Each matrix of a recurrent layer meets each time step of each sample once; packed inputs are [steps, I]."""
    return 2 * prod(input_shape[:-1]) * sum(prod(shape) for shape in weights if len(shape) == 2)


def _mkldnn_rnn(x: Sequence[int], w0: Sequence[int], w1: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return _recurrent(x, (w0, w1))


def _fused_rnn(x: Sequence[int], weights: Sequence[Sequence[int]], *args: Any, **kwargs: Any) -> int:
    return _recurrent(x, weights)


def _attention(q: Sequence[int], k: Sequence[int], v: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _bilinear(x: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Sequence[int], **kwargs: Any) -> int:
    """x1 W x2 per output, the inner product with W first: [out, in1, in2] against x1, then against x2."""
    samples, (num_out, first, second) = prod(out_shape[:-1]), weight[-3:]
    return 2 * samples * num_out * second * (first + 1)


def _matrix_vector(matrix: Sequence[int], vector: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _add_matrix_vector(bias: Sequence[int], matrix: Sequence[int], *args: Any, **kwargs: Any) -> int:
    return 2 * prod(matrix)


def _add_batched_product(
    bias: Sequence[int], left: Sequence[int], right: Sequence[int], *args: Any, **kwargs: Any
) -> int:
    return 2 * prod(left) * right[-1]


aten = torch.ops.aten
FORMULAS: dict[Any, Callable[..., int]] = {
    aten.mkldnn_rnn_layer: _mkldnn_rnn,
    aten._cudnn_rnn: _fused_rnn,
    aten.miopen_rnn: _fused_rnn,
    aten._scaled_dot_product_flash_attention_for_cpu: _attention,  # missing from older flop counters
    aten._trilinear: _bilinear,
    aten.dot: _matrix_vector,
    aten.mv: _matrix_vector,
    aten.addmv: _add_matrix_vector,
    aten.addbmm: _add_batched_product,
}
