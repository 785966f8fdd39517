"""Which of two opposite fan-outs: both have the same first gradient, and lead to different units."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SHARE", "better_signs"]

SHARE = 4
"""One in so many samples of a growth batch decides on signs: what a wrong one costs is small where samples disagree."""


def better_signs(fan_outs: Tensor, gradients: Tensor) -> Tensor:
    """The sign of each fan-out whose unit lowers the loss more, once its zero fan-in has moved down its gradient: [K].

    The fan-in of fan-out u moves along -M^T u, that of -u along M^T u. A unit h that is read by u changes the loss by
    <dL/du of h, u>, to first order in what it adds.

    Args:
        fan_outs: u, [K, entries].
        gradients: of the fan-out of units with fan-in along M^T u, then of those along -M^T u, [2K, entries].
    """
    along, against = gradients.chunk(2)
    kept, turned = (against * fan_outs).sum(1), -(along * fan_outs).sum(1)
    alike = torch.isclose(kept, turned, rtol=1e-4, atol=0.0)  # as with an odd activation: rounding shall not decide
    return torch.where((turned < kept) & ~alike, -1.0, 1.0).to(fan_outs)
