"""The gradient matrix of GradMax: from a new unit's fan-out to the gradient of its zero fan-in.

Legend: B batch, O fan-out units, C fan-in units, V consumer kernel positions, U producer kernel positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growkit.errors import GrowthRefused
from growkit.growth.statistics.composed import composed_matrix, is_worth_composing, reached
from growkit.growth.statistics.tap import Call

__all__ = ["GradientMatrix", "check_pair", "gradient_matrix"]


@dataclass(frozen=True)
class GradientMatrix:
    """The linear map from a new unit's fan-out to the gradient of its zero fan-in, at unit slope.

    Attributes:
        matrix: [O*V, C*U] or [O*V, C*U + 1] where the producer has a bias (its gradient is the last column).
        fan_out_shape: shape of one unit's fan-out, (O, *kernel).
        fan_in_shape: of its fan-in, (C, *kernel).
    """

    matrix: Tensor
    fan_out_shape: tuple[int, ...]
    fan_in_shape: tuple[int, ...]


def gradient_matrix(
    producer: Call, consumer: Call, producer_weight: Tensor, consumer_weight: Tensor, *, centre: bool = False
) -> GradientMatrix:
    """The matrix M with dL/dw_in = M^T w_out for a unit of zero fan-in and unit slope between the two layers.

    Exact for any stride, padding and dilation, borders included: by the composed kernel, with what it forgets at the
    borders (`composed`), or where that does not pay by spreading the output gradient back to the hidden positions once
    per kernel position of the consumer. (The published composition is exact only for stride and dilation 1 away from
    borders; Evci et al., ICLR 2022, section 3.)

    Args:
        producer: the call of the layer that gains outputs.
        consumer: the call of the layer that gains inputs.
        producer_weight: [hidden, C, *kernel].
        consumer_weight: [O, hidden, *kernel].
        centre: a BatchNorm in train mode stands between: it removes the mean over batch and positions.
    """
    check_pair(producer, consumer)
    assert consumer.output_gradient is not None
    if not consumer.stride:
        x, dz = producer.input.flatten(0, -2), consumer.output_gradient.flatten(0, -2)
        spread = dz - dz.mean(0, keepdim=True) if centre else dz
        matrix, per_unit = spread.T @ x, spread.sum(0)
    elif is_worth_composing(producer, consumer, producer_weight.shape[2:], consumer_weight.shape[2:]):
        matrix, per_unit = _composed(producer, consumer, producer_weight, consumer_weight, centre)
    else:
        spread = _spread_back(producer, consumer, consumer_weight)
        if centre:
            spread = spread - spread.mean(dim=(0, *range(2, spread.dim())), keepdim=True)
        matrix = _weight_gradient(producer, spread, producer_weight).flatten(1)
        per_unit = spread.sum(dim=(0, *range(2, spread.dim())))
    if producer.bias is not None:
        matrix = torch.cat([matrix, per_unit[:, None]], dim=1)
    fan_out = (consumer_weight.shape[0], *consumer_weight.shape[2:])
    return GradientMatrix(matrix, fan_out, tuple(producer_weight.shape[1:]))


def check_pair(producer: Call, consumer: Call) -> None:
    """Raise GrowthRefused for layers between which there is no gradient matrix."""
    if consumer.output_gradient is None:
        raise GrowthRefused("the loss must depend on a layer for its units to have a gradient, and here it does not")
    if producer.stride and not consumer.stride:
        raise GrowthRefused("a convolution followed by a linear layer has no closed-form gradient matrix")


def _composed(
    producer: Call, consumer: Call, producer_weight: Tensor, consumer_weight: Tensor, centre: bool
) -> tuple[Tensor, Tensor]:
    """The matrix [O*V, C*U] and the gradients of a bias [O*V]."""
    kernels = producer_weight.shape[2:], consumer_weight.shape[2:]
    matrix = composed_matrix(producer, consumer, *kernels).flatten(0, len(kernels[1])).flatten(1)
    per_unit = reached(producer, consumer, *kernels).flatten()
    if centre:
        hidden = producer.output.new_ones(len(producer.output), 1, *producer.output.shape[2:])
        read = _weight_gradient(producer, hidden, producer_weight).flatten()  # sums of the input over hidden positions
        matrix = matrix - torch.outer(per_unit / hidden.numel(), read)
        per_unit = torch.zeros_like(per_unit)
    return matrix, per_unit


def _spread_back(producer: Call, consumer: Call, weight: Tensor) -> Tensor:
    """dL/d(hidden) for hidden units wired to one consumer weight each: [B, O*V, *hidden positions]."""
    kernel, dz = weight.shape[2:], consumer.output_gradient
    assert dz is not None
    outputs, positions = weight.shape[0], kernel.numel()
    one_hot = torch.eye(positions, dtype=dz.dtype, device=dz.device).view(1, positions, *kernel)
    hidden = producer.output.shape[2:]
    reach = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1
        for size, s, p, d, k in zip(
            dz.shape[2:], consumer.stride, consumer.padding, consumer.dilation, kernel, strict=True
        )
    ]
    spread = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(kernel)]
    full = spread(
        dz,
        one_hot.expand(outputs, *one_hot.shape[1:]).reshape(outputs, positions, *kernel),
        stride=consumer.stride,
        padding=consumer.padding,
        # the last hidden positions may be read by nobody, and uneven padding="same" reads one position beyond them
        output_padding=[max(0, h - r) for h, r in zip(hidden, reach, strict=True)],
        groups=outputs,
        dilation=consumer.dilation,
    )
    return full[(..., *(slice(size) for size in hidden))]


def _weight_gradient(producer: Call, hidden_gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a convolution like the producer with as many outputs as `hidden_gradient` has: [O*V, C, *kernel]."""
    shape = (hidden_gradient.shape[1], *weight.shape[1:])
    _, gradient, _ = torch.ops.aten.convolution_backward(
        hidden_gradient,
        producer.input,
        hidden_gradient.new_empty(shape),
        None,
        list(producer.stride),
        list(producer.padding),
        list(producer.dilation),
        False,
        [0] * len(producer.stride),
        1,
        [False, True, False],
    )
    return gradient
