"""What widening and deepening a user's model share: the example, what passes for rounding, and taking an edit back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.errors import SurgeryError, UserInputError
from growkit.graph import arguments_of
from growkit.surgery.verify import Inputs

__all__ = ["example_for", "rounding_of", "taken_back"]


class Undoable(Protocol):
    """An edit of any kind."""

    def undo(self) -> None: ...


def example_for(
    model: nn.Module, traced: tuple[tuple, dict[str, Any]], example: Tensor | tuple | dict | None
) -> Inputs:
    """What to compare outputs on, where the model is now: `example`, or else what the model was traced with."""
    inputs = traced if example is None else arguments_of(example)
    device = next((parameter.device for parameter in model.parameters()), None)
    return Inputs(*pytree.tree_map_only(Tensor, lambda x: x.to(device), inputs))


def rounding_of(model: nn.Module) -> float:
    """The largest relative change of an output taken for rounding."""
    types = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    return max([1e-5, *(8 * torch.finfo(dtype).eps for dtype in types)])


@contextmanager
def taken_back(what: str, location: str | None, advice: str) -> Iterator[list[Any]]:
    """Undo the edits that the block appends to the list if it does not come to its end, whatever stopped it.

    Args:
        what: was edited, for the message.
        location: the user's "file:line" of it, if known.
        advice: what to do about it.

    Raises:
        SurgeryError: the block failed; the cause is in the message.
        UserInputError: the block raised one, which says itself what to do.
    """
    edits: list[Undoable] = []
    try:
        yield edits
    except BaseException as error:  # also an interrupt
        for edit in reversed(edits):
            edit.undo()
        if not isinstance(error, Exception) or isinstance(error, UserInputError):
            raise
        cause = str(error) if isinstance(error, SurgeryError) else f"the model fails: {type(error).__name__}: {error}"
        where = f" ({location})" if location else ""
        raise SurgeryError(f"{what}{where} was taken back: {cause}; {advice}") from error
