"""The gradient matrix between two layers as an operator: what it makes of vectors, without its entries.

The matrix of a pair of 3x3 convolutions between 512 channels has 21 million entries, and its singular vectors alone are
wanted. Its products cost no more than a pass through the two layers with as many units as there are vectors:

    M^T w_out: the output gradient is sent back through w_out, and correlated with the producer's input;
    M w_in:    the input is sent through w_in, and the output gradient correlated with what comes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growkit.growth.statistics.tap import Call

__all__ = ["GradientOperator"]


@dataclass(frozen=True)
class GradientOperator:
    """The gradient matrix M [O*V, C*U (+ 1)] of the mean loss over batches; see `gradient_matrix`.

    Attributes:
        calls: of producer and consumer, for each batch; convolutions, or linear layers.
        fan_in_shape, fan_out_shape: of one unit: (C, *kernel) and (O, *kernel).
        centre: a BatchNorm in train mode stands between.
    """

    calls: Sequence[tuple[Call, Call]]
    fan_in_shape: tuple[int, ...]
    fan_out_shape: tuple[int, ...]
    centre: bool

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        fan_in = torch.Size(self.fan_in_shape).numel() + (self.calls[0][0].bias is not None)
        return torch.Size(self.fan_out_shape).numel(), fan_in

    def times(self, fan_in: Tensor) -> Tensor:
        """M V: [C*U (+ 1), K] to [O*V, K]."""
        total = sum(self._times(producer, consumer, fan_in) for producer, consumer in self.calls)
        return total / len(self.calls)  # type: ignore[return-value, operator]

    def transposed_times(self, fan_out: Tensor) -> Tensor:
        """M^T U: [O*V, K] to [C*U (+ 1), K]."""
        total = sum(self._transposed_times(producer, consumer, fan_out) for producer, consumer in self.calls)
        return total / len(self.calls)  # type: ignore[return-value, operator]

    def _times(self, producer: Call, consumer: Call, fan_in: Tensor) -> Tensor:
        has_bias = producer.bias is not None
        weights = (fan_in[:-1] if has_bias else fan_in).T.reshape(-1, *self.fan_in_shape)
        hidden = _run(producer, producer.input, weights, fan_in[-1] if has_bias else None)
        if self.centre:
            hidden = hidden - hidden.mean(_all_but_units(hidden, consumer), keepdim=True)
        found = _weight_gradient(consumer, _as_read(hidden, consumer), self.fan_out_shape)  # [O, K, *V]
        return found.transpose(0, 1).flatten(1).T

    def _transposed_times(self, producer: Call, consumer: Call, fan_out: Tensor) -> Tensor:
        weights = fan_out.T.reshape(-1, *self.fan_out_shape).transpose(0, 1)  # [O, K, *V]
        spread = _sent_back(producer, consumer, weights)
        if self.centre:
            spread = spread - spread.mean(_all_but_units(spread, consumer), keepdim=True)
        found = _gradient_of_weight(producer, producer.input, spread, self.fan_in_shape).flatten(1)
        if producer.bias is not None:
            found = torch.cat([found, spread.sum(_all_but_units(spread, consumer))[:, None]], 1)
        return found.T


def _all_but_units(hidden: Tensor, layer: Call) -> list[int]:
    units = 1 if layer.stride else hidden.dim() - 1
    return [dim for dim in range(hidden.dim()) if dim != units]


CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def _run(layer: Call, inputs: Tensor, weights: Tensor, bias: Tensor | None) -> Tensor:
    if not layer.stride:
        return F.linear(inputs, weights, bias)
    convolution = CONVOLUTIONS[len(layer.stride)]
    return convolution(inputs, weights, bias, layer.stride, layer.padding, layer.dilation)


def _as_read(hidden: Tensor, consumer: Call) -> Tensor:
    """Hidden units as the consumer reads them: one zero longer where padding="same" is uneven."""
    extra = [read - own for read, own in zip(consumer.input.shape[2:], hidden.shape[2:], strict=True)]
    return F.pad(hidden, [one for size in reversed(extra) for one in (0, size)]) if consumer.stride else hidden


def _weight_gradient(layer: Call, inputs: Tensor, fan_out_shape: tuple[int, ...]) -> Tensor:
    """Gradient [O, K, *kernel] of the layer's weights that would read `inputs` of K channels."""
    assert layer.output_gradient is not None
    shape = (fan_out_shape[0], inputs.shape[1 if layer.stride else -1], *fan_out_shape[1:])
    return _gradient_of_weight(layer, inputs, layer.output_gradient, shape[1:])


def _gradient_of_weight(layer: Call, inputs: Tensor, gradient: Tensor, fan_in_shape: tuple[int, ...]) -> Tensor:
    """Gradient [K, *fan_in_shape] of weights with which `layer` would make K outputs of this gradient."""
    if not layer.stride:
        return gradient.flatten(0, -2).T @ inputs.flatten(0, -2)
    shape = (gradient.shape[1], *fan_in_shape)
    return _backward(layer, gradient, inputs, inputs.new_empty(shape), [False, True, False])[1]


def _sent_back(producer: Call, consumer: Call, weights: Tensor) -> Tensor:
    """Gradient of K hidden units that the consumer reads with `weights` [O, K, *kernel]."""
    gradient = consumer.output_gradient
    assert gradient is not None
    if not consumer.stride:
        return gradient @ weights
    read = consumer.input
    inputs = read.new_empty((len(read), weights.shape[1], *read.shape[2:]))
    found = _backward(consumer, gradient, inputs, weights.contiguous(), [True, False, False])[0]
    return found[(..., *(slice(size) for size in producer.output.shape[2:]))]


def _backward(layer: Call, gradient: Tensor, inputs: Tensor, weights: Tensor, mask: list[bool]) -> tuple[Tensor, ...]:
    spatial = len(layer.stride)
    settings = [list(layer.stride), list(layer.padding), list(layer.dilation), False, [0] * spatial, 1, mask]
    return torch.ops.aten.convolution_backward(gradient.contiguous(), inputs, weights, None, *settings)
