"""Resizing tensors: values, parameters in place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from growkit.graph import TensorEdit
from growkit.surgery.records import IndexMap

__all__ = [
    "fill_new",
    "grow_values",
    "is_new",
    "neutral_fill",
    "replace_data",
    "silence_padding",
]


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
    kept, apart = grown, []
    for dim, index in enumerate(index_maps):
        if index is None:
            continue
        start = _start_of_old(index, old.shape[dim])
        if start is None:
            apart.append((dim, index))
        else:
            kept = kept.narrow(dim, start, old.shape[dim])
    if not apart:
        kept.copy_(old)
    elif len(apart) == 1:
        _spread(kept, old, *apart[0])
    else:
        _scattered(grown, old, index_maps)
    return grown


def _start_of_old(index: IndexMap, size: int) -> int | None:
    """Where all `size` old positions stand side by side in their order, None where they do not."""
    start = int(index.argmax()) + 1 - size if len(index) else 0
    together = start >= 0 and np.array_equal(index[start : start + size], np.arange(size))
    return start if together and np.count_nonzero(index >= 0) == size else None


def fill_new(values: Tensor, dim: int, index: IndexMap, block: Tensor) -> None:
    """Write `block` into the new positions of `dim`, in place."""
    positions = np.flatnonzero(index < 0)
    if len(positions) and positions[-1] - positions[0] == len(positions) - 1:
        values.narrow(dim, int(positions[0]), len(positions)).copy_(block)
    else:
        values.index_copy_(dim, torch.from_numpy(positions).to(values.device), block)


def _spread(grown: Tensor, old: Tensor, dim: int, index: IndexMap) -> None:
    """Copy `old` to where its positions along `dim` went, in place."""
    places = np.flatnonzero(index >= 0)
    source = old.index_select(dim, torch.from_numpy(index[places]).to(old.device))
    grown.index_copy_(dim, torch.from_numpy(places).to(old.device), source)


def _scattered(grown: Tensor, old: Tensor, index_maps: Sequence[IndexMap | None]) -> None:
    """The same where the positions of several dimensions went apart."""
    maps = [np.arange(n) if index is None else index for n, index in zip(grown.shape, index_maps, strict=True)]
    places = [torch.from_numpy(np.flatnonzero(index >= 0)).to(old.device) for index in maps]
    source = old
    for dim, index in enumerate(maps):
        source = source.index_select(dim, torch.from_numpy(index[index >= 0]).to(old.device))
    grown[torch.meshgrid(*places, indexing="ij")] = source


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


def silence_padding(values: Tensor, old: Tensor, owners: Sequence[nn.Module]) -> None:
    """Keep the row of an embedding's padding token zero, in place, where it was: it never receives a gradient."""
    for owner in owners:
        row = getattr(owner, "padding_idx", None) if isinstance(owner, nn.Embedding | nn.EmbeddingBag) else None
        if row is not None and row < len(old) and not bool(old[row].any()):
            values[row] = 0.0
