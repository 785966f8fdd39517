"""Dropout left out: a wider layer draws another mask, so train-mode outputs could not be compared."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["WithoutDropout", "dropout_probability"]

_NAMES = ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
_DROPOUTS = {
    getattr(home, name)
    for home in (F, torch)
    for base in _NAMES
    for name in (base, f"{base}_")
    if callable(getattr(home, name, None))
}


_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")


_DROPOUT_OF_HEADS = list(inspect.signature(F.multi_head_attention_forward).parameters).index("dropout_p")
_DROPOUT_OF_ATTENTION = 4  # behind query, key, value and mask; a builtin, which has no signature to ask


class WithoutDropout(TorchFunctionMode):
    """Every torch dropout passes its input on, also the one inside attention; modules stay in train mode.

    The expectation of dropout's output is its input, so nothing that an edit could break is hidden. Other users of
    random numbers are left alone.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func in _DROPOUTS:
            return args[0] if args else given["input"]
        if getattr(func, "__name__", "") in _RECURRENT:
            return func(*(0.0 if _is_dropout_between_layers(arg) else arg for arg in args), **given)
        if func is F.multi_head_attention_forward:  # what it calls inside does not come by here
            return func(*args[:_DROPOUT_OF_HEADS], 0.0, *args[_DROPOUT_OF_HEADS + 1 :], **given)
        if func is F.scaled_dot_product_attention:
            return func(*args[:_DROPOUT_OF_ATTENTION], **(given | _without_dropout(args)))
        return func(*args, **given)


def dropout_probability(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
    """The probability that a call of torch drops entries with, None where it is no dropout or leaves it to torch."""
    if func in _DROPOUTS:
        given = args[1] if len(args) > 1 else kwargs.get("p")
    elif func is F.multi_head_attention_forward:
        given = args[_DROPOUT_OF_HEADS] if len(args) > _DROPOUT_OF_HEADS else kwargs.get("dropout_p")
    elif func is F.scaled_dot_product_attention:
        given = args[_DROPOUT_OF_ATTENTION] if len(args) > _DROPOUT_OF_ATTENTION else kwargs.get("dropout_p")
    elif getattr(func, "__name__", "") in _RECURRENT:
        given = next((arg for arg in args if _is_dropout_between_layers(arg)), None)
    else:
        return None
    return None if given is None else float(given)


def _is_dropout_between_layers(arg: Any) -> bool:
    """Of a recurrent call, whose one float it is, wherever a packed input moves it."""
    return type(arg) is float


def _without_dropout(args: tuple[Any, ...]) -> dict[str, Any]:
    """The keyword arguments of attention that stood behind the mask, dropout first."""
    names = ("dropout_p", "is_causal")
    return dict(zip(names, args[_DROPOUT_OF_ATTENTION:], strict=False)) | {"dropout_p": 0.0}
