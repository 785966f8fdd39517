"""Resizing tensors: values, parameters in place, optimizer state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from growkit.errors import SurgeryError
from growkit.graph import TensorEdit
from growkit.surgery.records import IndexMap

__all__ = ["align_state", "grow_state", "grow_values", "is_new", "neutral_fill", "replace_data"]


def is_new(index_maps: Sequence[IndexMap | None], shape: Sequence[int], device: torch.device) -> Tensor:
    """Boolean mask of `shape`: which entries lie in a new position of at least one dimension."""
    mask = torch.zeros((), dtype=torch.bool, device=device)
    for dim, index in enumerate(index_maps):
        if index is not None:
            view = [1] * len(shape)
            view[dim] = -1
            mask = mask | torch.from_numpy(index < 0).to(device).view(view)
    return mask.expand(tuple(shape))


def grow_values(old: Tensor, index_maps: Sequence[IndexMap | None], fill: Tensor | float = 0.0) -> Tensor:
    """Copy `old` to its new shape; entries in new positions take `fill` (a scalar or a tensor of the new shape).

    The memory layout (channels-last or not) of `old` is kept.
    """
    shape = [n if index is None else len(index) for n, index in zip(old.shape, index_maps, strict=True)]
    grown = torch.empty(shape, dtype=old.dtype, device=old.device, memory_format=_layout(old))
    if isinstance(fill, Tensor):
        grown.copy_(fill)
    else:
        grown.fill_(fill)
    kept = grown
    for dim, index in enumerate(index_maps):
        if index is None:
            continue
        places = np.flatnonzero(index >= 0)
        if len(places) == old.shape[dim] and _consecutive(places) and _consecutive(index[places]):
            kept = kept.narrow(dim, int(places[0]) if len(places) else 0, len(places))
        else:
            return _scattered(grown, old, index_maps)
    kept.copy_(old)
    return grown


def _consecutive(positions: IndexMap) -> bool:
    return len(positions) == 0 or bool((np.diff(positions) == 1).all())


def _scattered(grown: Tensor, old: Tensor, index_maps: Sequence[IndexMap | None]) -> Tensor:
    """Copy old entries to where they are now, in place, for maps that take dimensions apart."""
    maps = [np.arange(n) if index is None else index for n, index in zip(grown.shape, index_maps, strict=True)]
    places = [torch.from_numpy(np.flatnonzero(index >= 0)).to(old.device) for index in maps]
    source = old
    for dim, index in enumerate(maps):
        source = source.index_select(dim, torch.from_numpy(index[index >= 0]).to(old.device))
    grown[torch.meshgrid(*places, indexing="ij")] = source
    return grown


def _layout(tensor: Tensor) -> torch.memory_format:
    if tensor.dim() == 4 and not tensor.is_contiguous() and tensor.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def replace_data(tensor: Tensor, values: Tensor) -> None:
    """Give `tensor` new values of another shape in place: the object stays, so optimizers and ties still hold it."""
    tensor.grad = None
    if isinstance(tensor, nn.Parameter):
        # While a loss of an earlier step is alive, autograd keeps the node that accumulates this gradient together with
        # the old shape, and the next backward fails. Only a change of type makes torch drop that node.
        other = torch.float32 if values.dtype != torch.float32 else torch.float64
        tensor.data = torch.empty(0, dtype=other, device=values.device)
    tensor.data = values


def neutral_fill(old: Tensor, edit: TensorEdit, module: nn.Module) -> tuple[str, Tensor | float]:
    """The value of new entries in a tensor that no initializer serves: what leaves a new unit's signal as it is.

    Shifts (biases, running means) 0; normalisation weights and running variances 1; other scales (PReLU slopes, layer
    scales) the mean of the old entries; other buffers grow only if all their entries are equal, and stay so.

    Args:
        old: the tensor before.
        edit: how it changes, and whether it scales or shifts.
        module: the one that owns it.

    Returns:
        The name of the rule, as recorded, and the value.
    """
    if edit.neutral == 0.0:
        return "zero", 0.0
    if edit.kind == "buffer" and edit.neutral != 1.0:
        return "mean", edit.neutral
    if edit.kind == "buffer" or "Norm" in type(module).__name__:
        return "one", 1.0
    return "mean", float(old.mean())


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
        SurgeryError: a state tensor has a shape that says nothing about how it would grow.
    """
    own = getattr(optimizer, "resize_state", None)
    if own is not None:
        own(parameter, index_maps)
        if parameter in optimizer.state:
            _align(optimizer.state[parameter], parameter)
        return
    state = optimizer.state.get(parameter, {})
    for key, value in state.items():
        if not isinstance(value, Tensor) or value.numel() == 1:
            continue
        if value.shape != old_shape:
            raise SurgeryError(
                f"optimizer state must have its parameter's shape to grow along, got {key} {tuple(value.shape)} "
                f"for a parameter {tuple(old_shape)} in {type(optimizer).__name__}; "
                "give the optimizer a method resize_state(parameter, index_maps)"
            )
        state[key] = grow_values(value, index_maps)
    _align(state, parameter)


def align_state(optimizer: torch.optim.Optimizer) -> None:
    """Give optimizer state the memory layout of its parameters, in place.

    torch's fused CPU optimizers walk parameter, gradient and state side by side in memory and check neither shapes nor
    strides: a state that lies otherwise would pair wrong entries.
    """
    for parameter, state in optimizer.state.items():
        _align(state, parameter)


def _align(state: dict[Any, Any], parameter: Tensor) -> None:
    for key, value in state.items():
        if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
            state[key] = torch.empty_like(parameter.data, dtype=value.dtype).copy_(value)
