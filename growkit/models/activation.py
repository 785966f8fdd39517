"""Activations by name, and a ReLU that lets units born at zero learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import threshold

from growkit.config.models import Activation

__all__ = ["ReLU", "make_activation"]


class ReLU(nn.Module):
    """max(x, 0) with slope 1 at 0.

    Any slope in [0, 1] is a subgradient there. torch.relu takes 0, so a unit whose fan-in is zero has no gradient and
    is dead for ever; GradMax needs f'(0) = 1 (Evci et al., 2022). torch.threshold passes what lies above a bound, both
    ways, in one operator; with the largest negative normal number as the bound, 0 lies above it. (clamp(min=0) had
    slope 1 up to torch 2.13 and has 0 since 2.14; masking took a third of a WRN-16-1's training step on a CPU.)
    """

    def forward(self, x: Tensor) -> Tensor:
        """max(x, 0), of x's shape; NaN stays NaN."""
        return threshold(x, -torch.finfo(x.dtype).tiny, 0.0)


def make_activation(name: Activation) -> nn.Module:
    """The activation `name` with torch's own defaults, except that relu has slope 1 at 0."""
    makers: dict[str, type[nn.Module]] = {
        "relu": ReLU,
        "gelu": nn.GELU,
        "silu": nn.SiLU,
        "tanh": nn.Tanh,
        "elu": nn.ELU,
        "selu": nn.SELU,
        "softplus": nn.Softplus,
        "sigmoid": nn.Sigmoid,
    }
    return makers[name]()
