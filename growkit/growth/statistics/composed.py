"""The gradient matrix between two convolutions, from the correlations of output gradient and input.

A hidden unit reads the input at s1 q + d1 u - p1 and is read at q = s2 p + d2 v - p2, for positions u and v of the two
kernels. So an entry of the matrix depends on them by s1 d2 v + d1 u alone, and all of them stand in the weight gradient
of one convolution with the composed kernel, which has fewer positions than the two kernels have pairs: 25 and not 81
for 3x3 after 3x3. That forgets that hidden positions outside the map are zeros and read nothing. What they add is known
from the border of the output alone, and is taken off again, by inclusion and exclusion over the dimensions.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growkit.growth.statistics.tap import Call

__all__ = ["composed_matrix", "is_worth_composing", "reached"]

SMALL = 4  # hidden positions per dimension: below that borders are all there is


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of two convolutions in a row.

    Attributes:
        outputs, hidden: positions of the output and of the hidden map.
        first, second: kernel sizes.
        stride, dilation: of the composed kernel.
        step: of the first kernel's positions in it; jump: of the second's.
        padding: of the composed kernel, before the first position.
        s2, d2, p2: of the second convolution.
    """

    outputs: int
    hidden: int
    first: int
    second: int
    stride: int
    dilation: int
    step: int
    jump: int
    padding: int
    s2: int
    d2: int
    p2: int

    @property
    def size(self) -> int:
        """Positions of the composed kernel."""
        return self.jump * (self.second - 1) + self.step * (self.first - 1) + 1

    def read(self, v: int) -> range:
        """The outputs whose kernel position `v` lies on the hidden map."""
        low = -((self.d2 * v - self.p2) // self.s2)  # the first p with s2 p + d2 v - p2 >= 0, rounded up
        high = -(-(self.hidden + self.p2 - self.d2 * v) // self.s2)
        return range(min(max(low, 0), self.outputs), max(min(high, self.outputs), 0))

    def choices(self, v: int) -> list[tuple[int, range]]:
        """Ranges of outputs with signs that add up to `read(v)`: all, less those before it and those after it."""
        inside = self.read(v)
        if not inside:
            return []
        signed = [(1, range(self.outputs)), (-1, range(inside.start)), (-1, range(inside.stop, self.outputs))]
        return [(sign, one) for sign, one in signed if one]


def axes_of(producer: Call, consumer: Call, first: torch.Size, second: torch.Size) -> list[Axis]:
    """The spatial dimensions; `first` and `second` are the shapes of the two kernels."""
    assert consumer.output_gradient is not None
    outputs, hidden = consumer.output_gradient.shape[2:], producer.output.shape[2:]
    found = []
    for i in range(len(first)):
        s1, p1, d1 = producer.stride[i], producer.padding[i], producer.dilation[i]
        s2, p2, d2 = consumer.stride[i], consumer.padding[i], consumer.dilation[i]
        common = math.gcd(s1 * d2, d1)
        found.append(
            Axis(
                outputs=outputs[i],
                hidden=hidden[i],
                first=first[i],
                second=second[i],
                stride=s1 * s2,
                dilation=common,
                step=d1 // common,
                jump=s1 * d2 // common,
                padding=s1 * p2 + p1,
                s2=s2,
                d2=d2,
                p2=p2,
            )
        )
    return found


def is_worth_composing(producer: Call, consumer: Call, first: torch.Size, second: torch.Size) -> bool:
    """Whether the composed kernel has clearly fewer positions than the two have pairs, and the map a middle."""
    axes = axes_of(producer, consumer, first, second)
    pairs = math.prod(axis.first * axis.second for axis in axes)
    return math.prod(axis.size for axis in axes) <= 0.7 * pairs and min(axis.hidden for axis in axes) > SMALL


def composed_matrix(producer: Call, consumer: Call, first: torch.Size, second: torch.Size) -> Tensor:
    """M [O, *second kernel, C, *first kernel]: dL/dw_in = M^T w_out, exact, borders included."""
    dz, axes = consumer.output_gradient, axes_of(producer, consumer, first, second)
    assert dz is not None
    inputs = _padded(producer.input, axes)
    correlations: dict[tuple[range, ...], Tensor] = {}
    matrix = dz.new_zeros((dz.shape[1], *second, inputs.shape[1], *first))
    for place in itertools.product(*map(range, second)):
        rows = matrix[(slice(None), *place)]
        for sign, ranges in _signed([axis.choices(v) for axis, v in zip(axes, place, strict=True)]):
            if ranges not in correlations:
                correlations[ranges] = _correlation(inputs, dz, axes, ranges)
            rows.add_(_lags(correlations[ranges], axes, place), alpha=sign)
    return matrix


def reached(producer: Call, consumer: Call, first: torch.Size, second: torch.Size) -> Tensor:
    """Sum of the output gradient over the outputs that read a hidden position: [O, *second kernel]."""
    dz, axes = consumer.output_gradient, axes_of(producer, consumer, first, second)
    assert dz is not None
    sums = dz.sum(0)
    found = dz.new_zeros((dz.shape[1], *second))
    for place in itertools.product(*map(range, second)):
        ranges = [axis.read(v) for axis, v in zip(axes, place, strict=True)]
        part = sums[(slice(None), *(slice(one.start, one.stop) for one in ranges))]
        found[(slice(None), *place)] = part.flatten(1).sum(1)
    return found


def _signed(choices: list[list[tuple[int, range]]]) -> Iterator[tuple[int, tuple[range, ...]]]:
    for combination in itertools.product(*choices):
        yield math.prod(sign for sign, _ in combination), tuple(one for _, one in combination)


def _padded(inputs: Tensor, axes: list[Axis]) -> Tensor:
    """The input with zeros around it, of exactly the length that the composed kernel walks over."""
    widths = []
    for axis, size in zip(reversed(axes), reversed(inputs.shape[2:]), strict=True):
        needed = axis.stride * (axis.outputs - 1) + axis.dilation * (axis.size - 1) + 1
        widths += [axis.padding, needed - axis.padding - size]  # a negative one cuts off what nothing reads
    return F.pad(inputs, widths)


def _correlation(inputs: Tensor, dz: Tensor, axes: list[Axis], ranges: tuple[range, ...]) -> Tensor:
    """[O, C, *composed kernel], of the outputs in `ranges` alone: the weight gradient of a convolution."""
    for dim, (axis, one) in enumerate(zip(axes, ranges, strict=True), start=2):
        if len(one) < axis.outputs:
            dz = dz.narrow(dim, one.start, len(one))
            reach = axis.stride * (len(one) - 1) + axis.dilation * (axis.size - 1) + 1
            inputs = inputs.narrow(dim, axis.stride * one.start, reach)
    shape = (dz.shape[1], inputs.shape[1], *(axis.size for axis in axes))
    _, gradient, _ = torch.ops.aten.convolution_backward(
        dz.contiguous(),
        inputs.contiguous(),
        dz.new_empty(shape),
        None,
        [axis.stride for axis in axes],
        [0] * len(axes),
        [axis.dilation for axis in axes],
        False,
        [0] * len(axes),
        1,
        [False, True, False],
    )
    return gradient


def _lags(correlation: Tensor, axes: list[Axis], place: tuple[int, ...]) -> Tensor:
    """The entries [O, C, *first kernel] for one position of the second kernel."""
    window = []
    for axis, v in zip(axes, place, strict=True):
        start = axis.jump * v
        window.append(slice(start, start + axis.step * (axis.first - 1) + 1, axis.step))
    return correlation[(slice(None), slice(None), *window)]
