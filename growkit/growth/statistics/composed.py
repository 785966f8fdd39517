"""The gradient matrix between two convolutions, from the correlations of output gradient and input.

A hidden unit reads the input at s1 q + d1 u - p1 and is read at q = s2 p + d2 v - p2, for positions u and v of the two
kernels. So an entry of the matrix depends on them by s1 d2 v + d1 u alone, and all of them stand in the weight gradient
of one convolution with the composed kernel, which has fewer positions than the two kernels have pairs: 25 and not 81
for 3x3 after 3x3. That forgets that hidden positions outside the map are zeros and read nothing. What they add is taken
off again, by inclusion and exclusion over the dimensions: outside the map few lines of the output meet few lines of the
input (for 3x3 after 3x3 with padding 1 the first meets the first and the last the last), and along the other dimensions
it is the same correlation again.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from growkit.growth.statistics.tap import Call

__all__ = ["composed_matrix", "is_worth_composing", "reached"]

SMALL = 4  # hidden positions per dimension: below that borders are all there is


@dataclass(frozen=True)
class Meeting:
    """An output and an input line of one dimension that meet at a hidden position outside the map, at v and u."""

    v: int
    u: int
    output: int
    input: int


@dataclass(frozen=True)
class Axis:
    """One spatial dimension of two convolutions in a row.

    Attributes:
        inputs, outputs, hidden: positions of the input, of the output and of the hidden map.
        first, second: kernel sizes.
        stride, dilation: of the composed kernel.
        step: of the first kernel's positions in it; jump: of the second's.
        padding: of the composed kernel, before the first position.
        s1, d1, p1: of the first convolution; s2, d2, p2: of the second.
    """

    inputs: int
    outputs: int
    hidden: int
    first: int
    second: int
    stride: int
    dilation: int
    step: int
    jump: int
    padding: int
    s1: int
    d1: int
    p1: int
    s2: int
    d2: int
    p2: int

    @property
    def size(self) -> int:
        """Positions of the composed kernel."""
        return self.jump * (self.second - 1) + self.step * (self.first - 1) + 1

    @property
    def widths(self) -> tuple[int, int]:
        """Zeros before and behind the input, of exactly the length that the composed kernel walks over."""
        needed = self.stride * (self.outputs - 1) + self.dilation * (self.size - 1) + 1
        return self.padding, needed - self.padding - self.inputs  # a negative one cuts off what nothing reads

    @property
    def is_even(self) -> bool:
        """Whether that is what a convolution with `padding` zeros on both sides walks over."""
        before, behind = self.widths
        return 0 <= before - behind < self.stride

    def read(self, v: int) -> range:
        """The outputs whose kernel position `v` lies on the hidden map."""
        low = -((self.d2 * v - self.p2) // self.s2)  # the first p with s2 p + d2 v - p2 >= 0, rounded up
        high = -(-(self.hidden + self.p2 - self.d2 * v) // self.s2)
        return range(min(max(low, 0), self.outputs), max(min(high, self.outputs), 0))

    def lags(self, v: int) -> slice:
        """The positions of the composed kernel that belong to position `v` of the second one."""
        start = self.jump * v
        return slice(start, start + self.step * (self.first - 1) + 1, self.step)

    def outside(self) -> list[Meeting]:
        """All that meets outside the hidden map."""
        found = []
        for v in range(self.second):
            for output in set(range(self.outputs)) - set(self.read(v)):
                start = self.s1 * (self.s2 * output + self.d2 * v - self.p2) - self.p1
                places = ((u, start + self.d1 * u) for u in range(self.first))
                found += [Meeting(v, u, output, place) for u, place in places if 0 <= place < self.inputs]
        return found


def axes_of(producer: Call, consumer: Call, first: torch.Size, second: torch.Size) -> list[Axis]:
    """The spatial dimensions; `first` and `second` are the shapes of the two kernels."""
    assert consumer.output_gradient is not None
    inputs, outputs, hidden = (x.shape[2:] for x in (producer.input, consumer.output_gradient, producer.output))
    found = []
    for i in range(len(first)):
        s1, p1, d1 = producer.stride[i], producer.padding[i], producer.dilation[i]
        s2, p2, d2 = consumer.stride[i], consumer.padding[i], consumer.dilation[i]
        common = math.gcd(s1 * d2, d1)
        found.append(
            Axis(
                inputs=inputs[i],
                outputs=outputs[i],
                hidden=hidden[i],
                first=first[i],
                second=second[i],
                stride=s1 * s2,
                dilation=common,
                step=d1 // common,
                jump=s1 * d2 // common,
                padding=s1 * p2 + p1,
                s1=s1,
                d1=d1,
                p1=p1,
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
    matrix = dz.new_zeros((dz.shape[1], *second, producer.input.shape[1], *first))
    known: dict[tuple[tuple[int, int] | None, ...], Tensor] = {}
    for met in itertools.product(*([None, *axis.outside()] for axis in axes)):
        lines = tuple(None if one is None else (one.output, one.input) for one in met)
        if lines not in known:
            known[lines] = _correlation(producer.input, dz, axes, lines)
        sign = (-1) ** sum(one is not None for one in met)
        for rows, lags in _places(axes, met):
            matrix[rows].add_(known[lines][lags], alpha=sign)
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


def _places(axes: Sequence[Axis], met: Sequence[Meeting | None]) -> Iterator[tuple[tuple, tuple]]:
    """Where a correlation goes in [O, *second kernel, C, *first kernel], and which of its lags go there."""
    everything = slice(None)
    places = [range(axis.second) if one is None else (one.v,) for axis, one in zip(axes, met, strict=True)]
    columns = [everything if one is None else one.u for one in met]
    for rows in itertools.product(*places):
        lags = [axis.lags(v) for axis, v, one in zip(axes, rows, met, strict=True) if one is None]
        yield (everything, *rows, everything, *columns), (everything, everything, *lags)


def _correlation(inputs: Tensor, dz: Tensor, axes: Sequence[Axis], lines: Sequence[tuple[int, int] | None]) -> Tensor:
    """[O, C, *composed kernel] in the dimensions of which no lines are given, with the rest of them at these lines."""
    for dim, line in reversed(list(enumerate(lines, start=2))):
        if line is not None:
            dz, inputs = dz.select(dim, line[0]), inputs.select(dim, line[1])
    axes = [axis for axis, line in zip(axes, lines, strict=True) if line is None]
    if not axes:
        return dz.T @ inputs
    padding = [axis.padding for axis in axes]
    if not all(axis.is_even for axis in axes):
        inputs, padding = F.pad(inputs, [width for axis in reversed(axes) for width in axis.widths]), [0] * len(axes)
    shape = (dz.shape[1], inputs.shape[1], *(axis.size for axis in axes))
    _, gradient, _ = torch.ops.aten.convolution_backward(
        dz.contiguous(),
        inputs.contiguous(),
        dz.new_empty(shape),
        None,
        [axis.stride for axis in axes],
        padding,
        [axis.dilation for axis in axes],
        False,
        [0] * len(axes),
        1,
        [False, True, False],
    )
    return gradient
