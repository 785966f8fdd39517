"""mixup (Zhang et al., 2018): each sample of a batch becomes a mean of itself and another one, and so do the targets.

Legend: B batch, K classes.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from growkit.data.augment import send

__all__ = ["Mixture", "class_shares", "draw_mixture"]


@dataclass(frozen=True, eq=False)
class Mixture:
    """The chance in one mixed batch.

    Attributes:
        share: of every sample itself, in 0..1; the rest is its partner's.
        partner: [B] a permutation.
    """

    share: float
    partner: Tensor

    def to(self, device: torch.device) -> Mixture:
        """This mixture on `device`, without waiting for it."""
        return replace(self, partner=send(self.partner, device))

    def of(self, values: Tensor) -> Tensor:
        """Floats [B, ...] mixed."""
        return values.mul(self.share).add_(values[self.partner].mul_(1.0 - self.share))


def draw_mixture(alpha: float, batch: int, generator: torch.Generator) -> Mixture:
    """Draw one share and one permutation for a batch, as the released code of mixup does.

    Args:
        alpha: the share is of Beta(alpha, alpha); > 0.
        batch: B.
        generator: the CPU stream to draw from. torch has no Beta that takes one: it seeds NumPy's.
    """
    (seed,) = torch.randint(2**63 - 1, (1,), generator=generator).tolist()
    share = float(np.random.default_rng(seed).beta(alpha, alpha))
    return Mixture(share, torch.randperm(batch, generator=generator))


def class_shares(classes: Tensor, count: int) -> Tensor:
    """Classes [B] as shares float32 [B, K]: 1 for the class of a sample, 0 for others.

    `torch.nn.functional.one_hot` looks at the values, for which the host has to wait.
    """
    shares = torch.zeros(len(classes), count, device=classes.device)
    return shares.scatter_(1, classes[:, None], 1.0)
