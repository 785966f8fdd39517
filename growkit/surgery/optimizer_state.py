"""What an optimizer remembers grows with its parameters, or the optimizer is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.errors import GrowthRefused
from growkit.surgery.records import IndexMap
from growkit.surgery.tensors import grow_values

__all__ = ["Optimizers", "align_state", "forget_state", "grow_state", "refuse_optimizer", "several"]

Optimizers = torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None
"""What trains a model: one optimizer, several that share its parameters out, or none."""


def several(optimizer: Optimizers) -> tuple[torch.optim.Optimizer, ...]:
    """The optimizers, however many."""
    if optimizer is None:
        return ()
    return (optimizer,) if isinstance(optimizer, torch.optim.Optimizer) else tuple(optimizer)


def grow_state(
    optimizer: torch.optim.Optimizer,
    parameter: nn.Parameter,
    old_shape: torch.Size,
    index_maps: Sequence[IndexMap | None],
) -> None:
    """Resize in place what `optimizer` remembers of `parameter`: old entries keep their history, new ones start at 0.

    An optimizer with a method `resize_state(parameter, index_maps)` is asked, after the parameter took its new shape;
    it shall put new tensors into `state[parameter]` and leave the old ones alone, for undo puts those back. For others
    every state tensor of the parameter's old shape is resized by the parameter's own index maps.

    Raises:
        GrowthRefused: a state tensor has a shape that says nothing about how it would grow.
    """
    own = getattr(optimizer, "resize_state", None)
    if own is not None:
        own(parameter, index_maps)
        if parameter in optimizer.state:
            _align(optimizer.state[parameter], parameter)
        return
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        shapes = {tuple(one.shape) for one in pytree.tree_leaves(value) if isinstance(one, Tensor) and one.numel() != 1}
        if not shapes:
            continue
        if shapes != {tuple(old_shape)} or not isinstance(value, Tensor):
            held = tuple(value.shape) if isinstance(value, Tensor) else f"a {type(value).__name__} of tensors"
            raise GrowthRefused(
                f"optimizer state must have its parameter's shape to grow along, got {key} {held} "
                f"for a parameter {tuple(old_shape)} in {type(optimizer).__name__}; "
                "take one that keeps a number for each weight (SGD, Adam), or give it a method "
                "resize_state(parameter, index_maps)"
            )
        state[key] = grow_values(value, index_maps, _first_value(optimizer, parameter, key))
    _align(state, parameter)


def _first_value(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str) -> float:
    """What an entry of state starts from: 0, but a step size of its own (Rprop) from the learning rate."""
    if key != "step_size":
        return 0.0
    return next(float(g["lr"]) for g in optimizer.param_groups if any(p is parameter for p in g["params"]))


def forget_state(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Drop what `optimizer` remembers of `parameter`, the count of its steps too: it starts anew."""
    dropped = optimizer.state.pop(parameter, {})
    if isinstance(optimizer, torch.optim.SGD) and dropped.get("momentum_buffer") is not None:
        # torch's fused SGD fails where some of its parameters have momentum and others none yet; 0 is the same as none
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.data)


def refuse_optimizer(optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse an optimizer whose memory could not follow.

    Raises:
        GrowthRefused: it remembers all parameters as one vector, wraps another optimizer, remembers weights, or keeps
            what it remembers of a parameter in anything but a dict.
    """
    if optimizer is None:
        return
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise GrowthRefused(
            "LBFGS remembers all parameters as one vector, which cannot grow along; make a new optimizer after the edit"
        )
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, Tensor) and not isinstance(state, dict):
            raise GrowthRefused(
                f"what an optimizer remembers of a parameter must be a dict to grow along, as in torch's own, got a "
                f"{type(state).__name__} in {name}; keep it in state[parameter] under names"
            )
    if hasattr(optimizer, "resize_state"):
        return
    held = [one for one in pytree.tree_leaves(dict(vars(optimizer))) if isinstance(one, torch.optim.Optimizer)]
    inner = [one for one in held if one.state is not optimizer.state]  # SAM remembers nothing beside its base
    if inner:
        raise GrowthRefused(
            f"an optimizer must keep its own state to grow along, but {name} wraps {type(inner[0]).__name__}, of which "
            "nothing is known here; let both share one state, or give it a method resize_state(parameter, index_maps)"
        )
    for key in _copies_of_weights(optimizer):
        raise GrowthRefused(
            f"optimizer state must start from 0 for new weights, but {key!r} of {name} follows the weights themselves; "
            "keep averages outside (torch's AveragedModel, in copies=), or give it a method "
            "resize_state(parameter, index_maps)"
        )


def _copies_of_weights(optimizer: torch.optim.Optimizer) -> list[str]:
    """The kinds of state that lie nearer to the weights than half of their length, for every weight matrix."""
    near: dict[str, bool] = {}
    for parameter, state in optimizer.state.items():
        for key, value in state.items() if isinstance(parameter, Tensor) else ():
            if isinstance(value, Tensor) and value.dim() > 1 and value.shape == parameter.shape and value.numel() > 1:
                close = bool((value - parameter).norm() < 0.5 * parameter.norm())
                near[key] = near.get(key, True) and close
    return [key for key, always in near.items() if always]


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give optimizer state the memory layout of its parameters, in place.

    torch's fused CPU optimizers walk parameter, gradient and state side by side in memory and check neither shapes nor
    strides: a state that lies otherwise would pair wrong entries.
    """
    for parameter, state in optimizer.state.items():
        if isinstance(parameter, Tensor):  # some keep counts of all under a name
            _align(state, parameter)


def _align(state: dict[Any, Any], parameter: Tensor) -> None:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
            state[key] = torch.empty_like(parameter.data, dtype=value.dtype).copy_(value)
