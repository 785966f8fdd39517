"""Arguments of optimizers, checked with the rule and the value in the message."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

from growkit.errors import UserInputError

__all__ = ["MOMENTS", "Range", "check_choice", "check_mapping", "check_ranges", "check_state", "check_whole"]


@dataclass(frozen=True)
class Range:
    """From `least`, which belongs to it unless `open_below`, up to but without `below`."""

    least: float
    below: float = math.inf
    open_below: bool = False

    def __contains__(self, value: float) -> bool:
        return (self.least < value if self.open_below else self.least <= value) and value < self.below

    def __str__(self) -> str:
        lower = f"> {self.least:g}" if self.open_below else f">= {self.least:g}"
        return lower if self.below == math.inf else f"{lower} and < {self.below:g}"


def check_ranges(owner: str, values: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Refuse values out of their ranges.

    Args:
        owner: the optimizer, for the message.
        values: by name; more than the ranges name may stand there.
        ranges: by name.

    Raises:
        UserInputError: with the name, the rule and the value.
    """
    for name, wanted in ranges.items():
        value = values[name]
        number = value.item() if isinstance(value, Tensor) and value.numel() == 1 else value
        if isinstance(number, bool) or not isinstance(number, Real) or float(number) not in wanted:
            raise UserInputError(f"{owner}: {name} must be a number {wanted}, got {value!r}")


def check_choice(owner: str, name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse what is none of a few values.

    Raises:
        UserInputError: with the name, the choice and the value.
    """
    if not any(type(value) is type(one) and value == one for one in known):
        raise UserInputError(f"{owner}: {name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def check_whole(owner: str, name: str, value: Any) -> None:
    """Refuse what is no whole number from 1 on.

    Raises:
        UserInputError: with the name, the rule and the value.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:  # type: ignore[operator]
        raise UserInputError(f"{owner}: {name} must be a whole number >= 1, got {value!r}")


def check_mapping(owner: str, state_dict: Any) -> None:
    """Refuse a state that is no dict.

    Raises:
        UserInputError: with its type.
    """
    if not isinstance(state_dict, Mapping):
        raise UserInputError(f"{owner}: a state must be a dict that state_dict() gave, got {type(state_dict).__name__}")


NOT_SAVED = {"param_names", "initial_lr", "rho", "adaptive", "eta", "by"}  # that may have come up since, also from SAM
# what torch's optimizers, and those here, keep for every weight
MOMENTS = {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg"} | {
    *("grad_avg", "acc_delta", "sum", "ax", "prev", "step_size")
}


def check_state(owner: str, optimizer: torch.optim.Optimizer, state_dict: Mapping[str, Any]) -> None:
    """Refuse a saved state that does not fit, before it is taken over: torch compares numbers of parameters only.

    Args:
        owner: the optimizer, for the message.
        optimizer: whose parameters the state is for.
        state_dict: what its `state_dict` gave, perhaps for other parameters.

    Raises:
        UserInputError: another number of groups or parameters, or what was saved for a parameter has another shape.
    """
    if not {"state", "param_groups"} <= {*state_dict}:
        raise UserInputError(
            f"{owner}: a state must have the keys state and param_groups, got {', '.join(map(str, state_dict))}"
        )
    groups, states = state_dict["param_groups"], state_dict["state"]
    sound = isinstance(groups, list | tuple) and all(isinstance(one, Mapping) and "params" in one for one in groups)
    if not (sound and isinstance(states, Mapping)):
        raise UserInputError(
            f"{owner}: a state must have groups that are dicts with params, and a dict of what was kept, got "
            f"{reprlib.repr(groups)} and {reprlib.repr(states)}"
        )
    ours = [group["params"] for group in optimizer.param_groups]
    saved = [group["params"] for group in state_dict["param_groups"]]
    if [*map(len, ours)] != [*map(len, saved)]:
        raise UserInputError(
            f"{owner}: a state must have the groups of the optimizer, {[*map(len, ours)]} parameters, "
            f"got {[*map(len, saved)]}"
        )
    for group, known in zip(optimizer.param_groups, state_dict["param_groups"], strict=True):
        lacking = sorted({*group} - {*known} - NOT_SAVED)
        if lacking:
            raise UserInputError(
                f"{owner}: a state must have the settings of the optimizer, got none of {', '.join(lacking)}; "
                f"was it saved by another kind?"
            )
    known = MOMENTS if _keeps_moments(optimizer) else set[str]()
    for number, (parameter, key) in enumerate(zip(chain(*ours), chain(*saved), strict=True)):
        kept, present = _by_name(state_dict["state"].get(key, {})), _by_name(optimizer.state.get(parameter, {}))
        for name, shape in _misfits(parameter, kept, present, known).items():
            raise UserInputError(
                f"{owner}: {name} of parameter {number} must have its shape {tuple(parameter.shape)}, got "
                f"{tuple(shape)}; a state fits the widths that it was saved at"
            )


def _keeps_moments(optimizer: torch.optim.Optimizer) -> bool:
    """Whether names say what it keeps: others keep means over rows, or of some entries, under the names of torch."""
    kinds = [kind for kind in type(optimizer).__mro__ if kind is not torch.optim.Optimizer]
    return any(kind.__module__.startswith(("torch.optim.", "growkit.")) for kind in kinds)


def _by_name(kept: Any) -> Mapping[str, Any]:
    """What an optimizer keeps for a parameter; torch's save and load it too where it is no dict."""
    return kept if isinstance(kept, Mapping) else {"state": kept}


def _misfits(
    parameter: Tensor, saved: Mapping[str, Any], present: Mapping[str, Any], moments: Collection[str]
) -> dict[str, torch.Size]:
    """The shapes of what was saved that belong to another parameter.

    Those of `moments` have that of their parameter. Optimizers may keep tensors of shapes of their own, as means over
    rows. So one of another name is refused only where none has the parameter's shape, and it differs from the present
    one, or from all that its extents allow.
    """
    shapes = {name: one.shape for name, one in saved.items() if isinstance(one, Tensor) and one.dim()}
    wrong = {name: shape for name, shape in shapes.items() if name in moments and shape != parameter.shape}
    if wrong or parameter.shape in shapes.values():
        return wrong
    for name, shape in shapes.items():
        known = present.get(name)
        explained = len(shape) != parameter.dim() or {*shape} <= {1, *parameter.shape}
        if not (known.shape == shape if isinstance(known, Tensor) else explained):
            wrong[name] = shape
    return wrong
