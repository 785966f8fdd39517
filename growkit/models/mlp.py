"""The multi-layer perceptron."""

from __future__ import annotations

import math
from itertools import pairwise

from torch import Tensor, nn

from growkit.config.models import MlpSettings
from growkit.models.activation import make_activation

__all__ = ["MLP"]


class MLP(nn.Module):
    """Linear, norm, activation for each hidden layer, then a linear head; torch's own initial weights.

    Args:
        settings: hidden widths, activation, norm and whether there are biases (of the head too).
        input_shape: of one input, flattened if it has several dimensions.
        num_outputs: classes or regression targets.
    """

    def __init__(self, settings: MlpSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        widths = (math.prod(input_shape), *settings.hidden)
        self.hidden = nn.ModuleList(
            nn.Linear(fan_in, fan_out, bias=settings.bias) for fan_in, fan_out in pairwise(widths)
        )
        self.norms = nn.ModuleList(
            nn.BatchNorm1d(width) if settings.norm == "batchnorm" else nn.Identity() for width in settings.hidden
        )
        self.activation = make_activation(settings.activation)
        self.head = nn.Linear(widths[-1], num_outputs, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [B, ...] -> outputs [B, num_outputs]."""
        x = x.flatten(1)
        for linear, norm in zip(self.hidden, self.norms, strict=True):
            x = self.activation(norm(linear(x)))
        return self.head(x)
