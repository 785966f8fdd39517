"""Sums, norms and means over units: zeros leave them alone, or a weight makes up for what they do."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_cases.kit import ByCopies, image, tokens, vector, weight


class ResponseNorm(nn.Module):
    """Every channel's norm over positions, compared with the mean of all channels'."""

    def __init__(self, width: int, axes: tuple[int, int, int], *, fused: bool = False):
        super().__init__()
        self.gain, self.shift = nn.Parameter(torch.randn(width)), nn.Parameter(torch.randn(width))
        self.axes, self.fused, self.eps = axes, fused, 1e-2

    def forward(self, x: Tensor) -> Tensor:
        rows, columns, channel = self.axes
        size = x.norm(p=2, dim=(rows, columns), keepdim=True)
        ratio = size / (size.mean(dim=channel, keepdim=True) + self.eps)
        shape = [-1 if axis == channel % x.dim() else 1 for axis in range(x.dim())]
        gain, shift = self.gain.view(shape), self.shift.view(shape)
        return x + (torch.addcmul(shift, gain, x * ratio) if self.fused else gain * (x * ratio) + shift)


class MeanNorm(nn.Module):
    """Divided by the mean size, a gain for each unit; `twice` reads the eps in a second place."""

    def __init__(self, width: int, *, twice: bool = False):
        super().__init__()
        self.gain, self.eps, self.twice = nn.Parameter(torch.randn(width)), 1e-2, twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.gain * x / (x.abs().mean(-1, keepdim=True) + self.eps)
        return x * self.eps if self.twice else x


def _ratio(h: Tensor) -> Tensor:
    return h / h.abs().mean(1, keepdim=True)


MEANS = {
    "response_norm": image(lambda m, h: m.n(F.gelu(h)), 8, n=lambda: ResponseNorm(8, (2, 3, 1))),
    "response_norm_fused": image(lambda m, h: m.n(h), 8, n=lambda: ResponseNorm(8, (-2, -1, 1), fused=True)),
    "mean_norm": tokens(lambda m, h: m.n(h), 8, n=lambda: MeanNorm(8)),
    "mean_norm_without_gain": vector(lambda m, h: _ratio(h), 8),
    "root_mean_square_without_eps": vector(lambda m, h: h * h.square().mean(1, keepdim=True).rsqrt(), 8),
    "mean_of_units_as_gate": vector(lambda m, h: h * h.mean(1, keepdim=True), 8),
    "mean_of_units_behind_sigmoid": vector(
        lambda m, h: h * h.mean(1, keepdim=True).sigmoid(),
        ByCopies("mean runs over it, and sigmoid reads that before"),
    ),
    "mean_of_units_added": vector(lambda m, h: h + h.mean(1, keepdim=True), ByCopies("not 0 where linear reads them")),
    "mean_of_units_mixed": vector(
        lambda m, h: h + h * h.mean(1, keepdim=True), ByCopies("add mixes that with what does not")
    ),
    "mean_with_a_number": vector(
        lambda m, h: h / (h.abs().mean(1, keepdim=True) + 1e-2),
        ByCopies("keep the number in an attribute called eps"),
    ),
    "mean_with_a_shared_eps": tokens(
        lambda m, h: m.n(h), ByCopies("that nothing else reads"), n=lambda: MeanNorm(8, twice=True)
    ),
    "mean_with_a_gain_read_twice": vector(
        lambda m, h: m.w * _ratio(h) + m.w * h,
        ByCopies("'w', which could make up for that, is read elsewhere"),
        w=weight(8),
    ),
    "mean_of_a_weight": vector(lambda m, h: h * m.w / m.w.abs().mean(), "mean runs over it", w=weight(8)),
}

SUMS = {
    "l1_normalised": vector(lambda m, h: F.normalize(h, p=1.0, dim=1), 8),
    "largest_normalised": vector(lambda m, h: F.normalize(h, p=float("inf"), dim=1), "linalg_vector_norm runs over it"),
    "sum_of_units": vector(lambda m, h: h * h.sum(1, keepdim=True), 8),
    "sum_off_zero": vector(lambda m, h: h * h.cos().sum(1, keepdim=True), "new units are not 0 where sum reads them"),
    "sum_shifted": vector(lambda m, h: h * (h + 1).sum(1, keepdim=True), "new units are not 0 where sum reads them"),
    "sum_of_products": vector(lambda m, h: h * (h * h.tanh()).sum(1, keepdim=True), "sum runs over it"),
}
