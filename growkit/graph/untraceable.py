"""Why a module could not be traced: what its example lacks, what export cannot follow, and where that stands."""

from __future__ import annotations

import inspect
import traceback
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils import _pytree as pytree

__all__ = ["inside_torch", "why_untraceable"]

_TORCH_FOLDER = torch.__path__[0] + "/"

PACKING = (
    "the sizes in a packed sequence depend on values. The widths are the same without it: let the forward leave out "
    "pack_padded_sequence (`if self.packs:`) while find_sites runs; to verify and to widen, it may pack"
)


def inside_torch(path: str) -> bool:
    """Whether a file is of torch, or no file at all."""
    return path.startswith((_TORCH_FOLDER, "<"))


def why_untraceable(
    model: nn.Module, args: tuple, kwargs: dict[str, Any], mode: str, errors: tuple[BaseException, BaseException]
) -> str:
    """One message.

    Args:
        model: the module.
        args: what it was called with.
        kwargs: likewise, by name.
        mode: "train" or "eval".
        errors: of `export` and of `draft_export`.
    """
    first, second = errors
    name = type(model).__name__
    if unfit := _unfit(model, args, kwargs):
        return unfit
    if _reads_packed(first):
        return f"{name} cannot be traced{_user_frame(first)}: {PACKING}."
    return (
        f"{name} cannot be traced in {mode} mode: {_summary(second)}{_user_frame(second)} (torch.export: "
        f"{_summary(first)}). {_advice(first)}"
    )


def _unfit(model: nn.Module, args: tuple, kwargs: dict[str, Any]) -> str | None:
    """How an example fails to be one batch of the arguments that the forward takes."""
    leaves = pytree.tree_leaves((args, kwargs))
    if leaves and not any(isinstance(leaf, Tensor) for leaf in leaves):
        shape = all(type(size) is int for size in args) and not kwargs
        remedy = f"a shape is none: pass torch.zeros{tuple(args)}" if shape else "pass one batch of inputs"
        return f"An example must hold tensors, got {args or kwargs!r:.80}; {remedy}."
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # a forward that tells none
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        given = [f"{len(args)} positional"] if args else []
        given += [f"the keyword arguments {', '.join(map(repr, kwargs))}"] if kwargs else []
        got = " and ".join(given) or "nothing"
        return (
            f"An example must fit forward{_plain(signature)} of {type(model).__name__}, got {got} ({error}). "
            "Pass a tensor, the tuple of positional arguments or the dictionary of keyword arguments."
        )
    return None


def _plain(signature: inspect.Signature) -> inspect.Signature:
    """Without annotations."""
    parameters = [one.replace(annotation=one.empty) for one in signature.parameters.values()]
    return signature.replace(parameters=parameters, return_annotation=signature.empty)


def _reads_packed(error: BaseException) -> bool:
    """Whether it arose in a recurrent layer of torch's that was given a packed sequence."""
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    layers = [frame for frame in frames if frame.f_code.co_filename == nn.modules.rnn.__file__]
    return any(isinstance(value, PackedSequence) for frame in layers for value in frame.f_locals.values())


def _advice(error: BaseException) -> str:
    if "constant" in str(error) and "fake tensor" in str(error):
        return (
            "A forward must not leave the trace: not by .data, where .detach() gives the same, nor by "
            "torch.autograd.grad or backward(); for find_sites, let it return what it differentiates (the widths are "
            "the same)."
        )
    return "Check that the model runs on the example by itself."


def _summary(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"


def _user_frame(error: BaseException) -> str:
    """Where in the user's code the error arose, as a clause of a sentence."""
    own = __file__.rsplit("/", 1)[0]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not inside_torch(frame.filename)]
    frames = [frame for frame in frames if not frame.filename.startswith(own)]
    return f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
