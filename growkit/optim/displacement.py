"""Weights that are moved for a while, and come back bit for bit."""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growkit.optim.ascent import Pull

__all__ = ["Displacement"]


class Displacement:
    """Moves weights, remembers what they were, and puts them back by a copy: subtracting would not be exact.

    On a CPU the memory for the copies stays, for new memory costs more than the copy; elsewhere torch keeps it anyway.
    """

    def __init__(self) -> None:
        self._parameters: list[Tensor] | None = None
        self._shapes: list[torch.Size] = []
        self._kept: list[Tensor] = []

    @property
    def active(self) -> bool:
        """Whether weights are away from where they belong."""
        return self._parameters is not None

    @torch.no_grad()
    def move(self, moves: Sequence[tuple[Pull, float]]) -> None:
        """Add directions times factors, in place."""
        parameters = [parameter for pull, _ in moves for parameter in pull.parameters]
        self._make_room(parameters)
        if parameters:
            torch._foreach_copy_(self._kept, parameters)
        self._parameters = parameters
        for pull, factor in moves:
            if factor:
                torch._foreach_add_(pull.parameters, pull.direction, alpha=factor)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the weights back; nothing if they are where they belong."""
        parameters, self._parameters = self._parameters, None
        if parameters:
            torch._foreach_copy_(parameters, self._kept)
            if any(one.device.type != "cpu" for one in self._kept):
                self._shapes, self._kept = [], []

    def __getstate__(self) -> dict[str, Any]:
        return {"_parameters": None, "_shapes": [], "_kept": []}

    def _make_room(self, parameters: list[Tensor]) -> None:
        """Memory for the copies; the same as in the step before where it fits."""
        fits = [one.shape for one in parameters] == self._shapes and all(
            one.dtype == other.dtype and one.device == other.device and one.stride() == other.stride()
            for one, other in zip(parameters, self._kept, strict=True)
        )
        if not fits:
            self._kept = [torch.empty_like(one, requires_grad=False) for one in parameters]
            self._shapes = [one.shape for one in parameters]
