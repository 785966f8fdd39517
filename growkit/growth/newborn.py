"""The units of the latest growth event, watched while they learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

__all__ = ["WATCHED", "NewUnits"]

WATCHED = (1, 2, 4, 8, 16, 32, 64, 128)  # steps after an event: doubling, for most happens early and each look costs


@dataclass(frozen=True)
class NewUnits:
    """What an event added, valid until the next edit.

    Attributes:
        step: optimizer steps before the event.
        entries: per site, parameters with the masks of their new entries.
    """

    step: int = 0
    entries: Mapping[str, Sequence[tuple[nn.Parameter, Tensor]]] = field(default_factory=dict)

    def gradient_norms(self, step: int) -> dict[str, float]:
        """Gradient norm of each site's new entries after optimizer step `step`; empty where that is not watched."""
        if step - self.step not in WATCHED:
            return {}
        return {site: _norm(entries) for site, entries in self.entries.items()}

    def grown_up(self, step: int) -> bool:
        """Whether nothing is left to watch after optimizer step `step`."""
        return step - self.step >= WATCHED[-1]


def _norm(entries: Sequence[tuple[nn.Parameter, Tensor]]) -> float:
    norms = [(parameter.grad * mask).norm() for parameter, mask in entries if parameter.grad is not None]
    return float(torch.stack(norms or [torch.zeros(())]).norm())
