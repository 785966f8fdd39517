"""Weights that are moved for a while, and come back bit for bit."""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Self
from weakref import WeakSet

import torch
from torch import Tensor

from growkit.errors import GrowthRefused, UserInputError
from growkit.optim.ascent import Pull, WalkedPull

__all__ = ["Displacement", "refuse_displaced"]

EVERY: WeakSet[Displacement] = WeakSet()


class Displacement:
    """Moves weights, remembers what they were, and puts them back by a copy: subtracting would not be exact.

    On a CPU the memory for the copies stays, for new memory costs more than the copy; elsewhere torch keeps it anyway.
    """

    def __new__(cls) -> Self:  # also what a copy begins with
        made = super().__new__(cls)
        EVERY.add(made)
        return made

    def __init__(self) -> None:
        self.active = False  # whether weights are away from where they belong
        self._parameters: list[Tensor] = []
        self._kinds: list[Any] = []
        self._kept: list[Tensor] = []
        self._thin: list[int] = []  # places of copies that torch would spread over larger weights
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
        """Put the weights back; nothing if they are where they belong.

        Raises:
            UserInputError: some were resized meanwhile; all others are put back.
        """
        resized: Sequence[Tensor] = ()
        if self._parameters:
            try:
                if self._thin:
                    self._check_thin()
                torch._foreach_copy_(self._parameters, self._kept)
            except RuntimeError:  # as of shapes that differ
                resized = self._put_others_back()
        self._parameters, self.active = [], False  # only now: an interrupted copy can be made again
        if not self._on_cpu:
            self._kinds, self._kept, self._thin = [], [], []
        if resized:
            shapes = ", ".join(str(tuple(one.shape)) for one in resized[:5])
            raise UserInputError(
                f"SAM cannot put back weights that were resized between its two passes, got {len(resized)} of them, "
                f"now {shapes}; resize before first_step or after second_step"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"active": False, "_parameters": [], "_kinds": [], "_kept": [], "_thin": [], "_on_cpu": True}

    def _check_thin(self) -> None:
        """Refuse copies as torch does that of other shapes, where it would not."""
        for place in self._thin:
            if self._parameters[place].shape != self._kept[place].shape:
                raise RuntimeError("a weight was resized")

    def _put_others_back(self) -> list[Tensor]:
        """Put back what was not resized; what was is returned."""
        pairs = list(zip(self._parameters, self._kept, strict=True))
        for parameter, value in pairs:
            if parameter.shape == value.shape:
                parameter.copy_(value)
        return [parameter for parameter, value in pairs if parameter.shape != value.shape]

    def _make_room(self, parameters: list[Tensor], kinds: list[Any]) -> None:
        """Memory for the copies; the same as in the step before where it fits: kinds and shapes are as they were."""
        kinds += [one.shape for one in parameters]
        if kinds != self._kinds:
            self._kept = [torch.empty_like(one, requires_grad=False) for one in parameters]
            self._thin = [place for place, one in enumerate(parameters) if 1 in one.shape]
            self._on_cpu = all(one.is_cpu for one in parameters)
            self._kinds = kinds


def _kind_of(alike: list[Tensor]) -> tuple[int, torch.dtype, torch.device]:
    return len(alike), alike[0].dtype, alike[0].device


def refuse_displaced(tensors: Iterable[Tensor]) -> None:
    """Refuse to edit weights that are between two passes, whichever optimizer moved them.

    Raises:
        GrowthRefused: one is.
    """
    moved = {id(one) for each in EVERY if each.active for one in each._parameters}
    if moved and any(id(one) in moved for one in tensors):
        raise GrowthRefused(
            "weights cannot be grown between the two passes of SAM, while they are moved; call second_step() or "
            "restore() first"
        )
