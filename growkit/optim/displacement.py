"""Weights that are moved for a while, and come back bit for bit."""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from growkit.optim.ascent import Pull, WalkedPull

__all__ = ["Displacement"]


class Displacement:
    """Moves weights, remembers what they were, and puts them back by a copy: subtracting would not be exact.

    On a CPU the memory for the copies stays, for new memory costs more than the copy; elsewhere torch keeps it anyway.
    """

    def __init__(self) -> None:
        self.active = False  # whether weights are away from where they belong
        self._parameters: list[Tensor] = []
        self._kinds: list[Any] = []
        self._kept: list[Tensor] = []
        self._on_cpu = True

    def move(self, moves: Sequence[tuple[Pull | WalkedPull, float]]) -> None:
        """Add directions times factors, in place; without grad mode, as `restore`."""
        parameters: list[Tensor] = []
        for pull, _ in moves:
            parameters += pull.parameters
        self._make_room(parameters, [_kind_of(pull.parameters) for pull, _ in moves])
        if parameters:
            torch._foreach_copy_(self._kept, parameters)
        self._parameters, self.active = parameters, True
        for pull, factor in moves:
            if factor:
                pull.move(factor)

    def restore(self) -> None:
        """Put the weights back; nothing if they are where they belong."""
        if self._parameters:
            torch._foreach_copy_(self._parameters, self._kept)
        self._parameters, self.active = [], False  # only now: an interrupted copy can be made again
        if not self._on_cpu:
            self._kinds, self._kept = [], []

    def __getstate__(self) -> dict[str, Any]:
        return {"active": False, "_parameters": [], "_kinds": [], "_kept": [], "_on_cpu": True}

    def _make_room(self, parameters: list[Tensor], kinds: list[Any]) -> None:
        """Memory for the copies; the same as in the step before where it fits: kinds and shapes are as they were."""
        kinds += [one.shape for one in parameters]
        if kinds != self._kinds:
            self._kept = [torch.empty_like(one, requires_grad=False) for one in parameters]
            self._on_cpu = all(one.is_cpu for one in parameters)
            self._kinds = kinds


def _kind_of(alike: list[Tensor]) -> tuple[int, torch.dtype, torch.device]:
    return len(alike), alike[0].dtype, alike[0].device
