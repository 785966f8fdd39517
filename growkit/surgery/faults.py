"""What went wrong in a user's forward at another width: where, and the remedy if it is a known one."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from growkit.surgery.look import first_line

__all__ = ["fault_of"]

ADVICE = {
    "is invalid for input of size": "; write flatten, -1 or an attribute for a size that is written or computed there",
    "don't multiply up to the size": "; write -1 or an attribute for a size that is computed from another one there",
    "split_with_sizes expects split_sizes": "; keep the sizes of the split in an attribute of their own",
}
"""What to do about errors that sizes written into a forward lead to."""

MULTI_HEAD = (
    "; in nn.MultiheadAttention the number of heads times their size must equal embed_dim, the width of the stream, so "
    "that they grow only along with it"
)

_TORCH, _HERE = Path(torch.__path__[0]), Path(__file__).parent
_NOT_THE_USERS = (*(f"{folder}/" for folder in (_TORCH, _HERE, _HERE.parent / "graph")), "<")
_MODULES = f"{_TORCH}/nn/modules/"


def fault_of(error: BaseException) -> tuple[str, str | None]:
    """What an error says, with advice, and the innermost "file:line" of the user's that led to it."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [number for number, frame in enumerate(frames) if not frame.filename.startswith(_NOT_THE_USERS)]
    place = f"{frames[own[-1]].filename}:{frames[own[-1]].lineno}" if own else None
    text = first_line(error)
    return f"{type(error).__name__}: {text}{_advice(text, frames[own[-1] + 1 :] if own else frames)}", place


def _advice(text: str, below: Sequence[traceback.FrameSummary]) -> str:
    """`below` are the frames under the user's line: nobody is told to edit torch's own modules."""
    if any(frame.name == "multi_head_attention_forward" for frame in below):
        return MULTI_HEAD
    if any(frame.filename.startswith(_MODULES) for frame in below):
        return ""
    return next((advice for sign, advice in ADVICE.items() if sign in text), "")
