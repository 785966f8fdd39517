"""The multi-layer perceptron."""

from __future__ import annotations

import math
from collections import OrderedDict
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
        self.hidden = nn.Sequential(*(_layer(settings, fan_in, fan_out) for fan_in, fan_out in pairwise(widths)))
        self.head = nn.Linear(widths[-1], num_outputs, bias=settings.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Inputs [B, ...] -> outputs [B, num_outputs]."""
        return self.head(self.hidden(x.flatten(1)))


def _layer(settings: MlpSettings, fan_in: int, fan_out: int) -> nn.Sequential:
    """In a row of their own, so that one more layer may stand behind the activation."""
    parts: dict[str, nn.Module] = {"linear": nn.Linear(fan_in, fan_out, bias=settings.bias)}
    if settings.norm == "batchnorm":
        parts["norm"] = nn.BatchNorm1d(fan_out)
    return nn.Sequential(OrderedDict(parts, activation=make_activation(settings.activation)))
