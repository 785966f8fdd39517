"""Widening in place: all sites of a growth event as one transaction, undone to the last bit if anything goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import GrowthSite, TensorEdit
from growkit.surgery.attributes import change_attributes, restore_attributes, set_attributes
from growkit.surgery.records import AttributeChange, EditRecord, IndexMap, TensorChange
from growkit.surgery.tensors import grow_state, grow_values, neutral_fill, replace_data

__all__ = ["Edit", "Extension", "Growth", "grow", "lookup", "replay"]


@dataclass(frozen=True)
class Extension:
    """The new slices of one site's tensors, as an initializer wants them.

    Attributes:
        values: (tensor name, dimension) -> the entries in the new positions of that dimension, in order: the tensor's
            shape before the event with that dimension replaced by the number of new positions. Producers and consumers
            that are not named are filled with zeros.
    """

    values: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Growth:
    """An order to surgery: widen `site` by `num_new` units, filled from `extension`."""

    site: GrowthSite
    num_new: int
    extension: Extension = Extension()


class Edit:
    """A committed edit of one or more sites; `undo()` takes it back to the last bit.

    Attributes:
        records: one EditRecord per site, in the order they were applied.
    """

    def __init__(self, records: list[EditRecord], log: _UndoLog):
        self.records = records
        self._log: _UndoLog | None = log

    @property
    def record(self) -> EditRecord:
        """The record of an edit of a single site."""
        if len(self.records) != 1:
            raise ValueError(f"record is for edits of one site, this one has {len(self.records)}; use records")
        return self.records[0]

    def undo(self) -> None:
        """Restore, in place, every tensor, attribute, optimizer state and site width that the edit changed.

        Raises:
            SurgeryError: the edit was undone already.
        """
        if self._log is None:
            raise SurgeryError("an edit can be undone once, and this one has been")
        self._log.roll_back()
        self._log = None


@dataclass
class _UndoLog:
    model: nn.Module
    tensors: list[tuple[Tensor, Tensor, Tensor | None]] = field(
        default_factory=list
    )  # object, old values, old gradient
    states: list[tuple[torch.optim.Optimizer, nn.Parameter, dict[str, Any]]] = field(default_factory=list)
    attributes: list[AttributeChange] = field(default_factory=list)
    widths: list[tuple[GrowthSite, int]] = field(default_factory=list)

    def roll_back(self) -> None:
        for tensor, values, gradient in reversed(self.tensors):
            replace_data(tensor, values)
            tensor.grad = gradient
        for optimizer, parameter, state in reversed(self.states):
            optimizer.state[parameter] = state
        restore_attributes(self.model, self.attributes)
        for site, width in reversed(self.widths):
            site.resize(width)


def lookup(model: nn.Module, name: str, kind: str) -> Tensor:
    """The parameter or buffer called `name`."""
    return model.get_parameter(name) if kind == "parameter" else model.get_buffer(name)


def grow(model: nn.Module, growths: Sequence[Growth], *, optimizer: torch.optim.Optimizer | None = None) -> Edit:
    """Widen sites of `model` in place, with the optimizer's state; nothing is checked here beyond shapes.

    Args:
        model: the model the sites were found in, or a copy of it.
        growths: what to widen. Values are given for the shapes before the call; where two growths cross in one tensor
            the crossing entries are zero.
        optimizer: its state grows along; parameters stay the same objects.

    Returns:
        The committed edit.

    Raises:
        GrowthRefused: the model is wrapped (DDP, compiled), or a count is below 1.
        SurgeryError: something failed half-way; everything was rolled back.
    """
    _refuse_wrappers(model)
    log, records, since = _UndoLog(model), [], _MapsSinceStart()
    try:
        for growth in growths:
            records.append(_widen(model, growth, optimizer, log, since))
    except Exception as error:
        log.roll_back()
        if isinstance(error, SurgeryError | GrowthRefused):
            raise
        raise SurgeryError(f"widening failed and was rolled back: {type(error).__name__}: {error}") from error
    return Edit(records, log)


def _refuse_wrappers(model: nn.Module) -> None:
    name = type(model).__name__
    if name in ("DistributedDataParallel", "FullyShardedDataParallel", "OptimizedModule", "DataParallel"):
        raise GrowthRefused(
            f"a model must be unwrapped before it grows, got {name}, which remembers old sizes; "
            "grow the module inside and wrap it again"
        )


class _MapsSinceStart:
    """Index maps of every tensor dimension since the transaction began, to place values given for the old shapes."""

    def __init__(self) -> None:
        self._maps: dict[tuple[str, int], IndexMap] = {}

    def get(self, name: str, dim: int) -> IndexMap | None:
        return self._maps.get((name, dim))

    def compose(self, name: str, dim: int, index: IndexMap) -> None:
        before = self._maps.get((name, dim))
        if before is not None:
            index = np.where(index >= 0, before[np.maximum(index, 0)], -1)
        self._maps[name, dim] = index


def _widen(
    model: nn.Module, growth: Growth, optimizer: torch.optim.Optimizer | None, log: _UndoLog, since: _MapsSinceStart
) -> EditRecord:
    site, old_width = growth.site, growth.site.width
    if growth.num_new < 1:
        raise GrowthRefused(f"{site.name} must grow by at least 1 unit, got {growth.num_new}")
    changes = []
    literals = site.literal_changes(growth.num_new)
    for edit in site.tensor_edits(growth.num_new):
        changes.append(_resize(model, edit, growth.extension, optimizer, log, since))
    log.widths.append((site, old_width))
    site.resize(old_width + growth.num_new)
    attributes = change_attributes(model, literals)
    log.attributes += attributes
    return EditRecord(site.name, old_width, site.width, tuple(changes), tuple(attributes))


@torch.no_grad()
def _resize(
    model: nn.Module,
    edit: TensorEdit,
    extension: Extension,
    optimizer: torch.optim.Optimizer | None,
    log: _UndoLog,
    since: _MapsSinceStart,
) -> TensorChange:
    name = edit.names[0]
    tensor = lookup(model, name, edit.kind)
    old, fill = tensor.data, "zero"
    given = [dim for dim in range(old.dim()) if (name, dim) in extension.values]
    if edit.pass_through and not given:
        fill, value = neutral_fill(old, edit.kind, name, model.get_submodule(name.rpartition(".")[0]), edit.index_maps)
        values = grow_values(old, edit.index_maps, value)
    else:
        values = grow_values(old, edit.index_maps)
        for dim in sorted(given, key=lambda d: d in edit.consumer_dims):
            _place(values, extension.values[name, dim], name, dim, edit.index_maps, since)
            fill = "extension"
    log.tensors.append((tensor, old, tensor.grad))
    replace_data(tensor, values)
    if optimizer is not None and isinstance(tensor, nn.Parameter) and tensor in optimizer.state:
        log.states.append((optimizer, tensor, dict(optimizer.state[tensor])))
        grow_state(optimizer, tensor, old.shape, edit.index_maps)
    for dim, index in enumerate(edit.index_maps):
        if index is not None:
            since.compose(name, dim, index)
    return TensorChange(edit.names, edit.kind, tuple(old.shape), edit.index_maps, fill)


def _place(
    values: Tensor, given: Tensor, name: str, dim: int, index_maps: Sequence[IndexMap | None], since: _MapsSinceStart
) -> None:
    """Write `given` into the new positions of `dim` of `values`, in place; entries that cross another new dimension are 0."""
    index = index_maps[dim]
    assert index is not None, f"{name} does not change along dimension {dim}"
    across: list[IndexMap | None] = []
    for other in range(values.dim()):
        here = None if other == dim else index_maps[other]
        before = None if other == dim else since.get(name, other)
        if here is not None and before is not None:
            here = np.where(here >= 0, before[np.maximum(here, 0)], -1)
        across.append(here if here is not None else before)
    block = grow_values(given.to(values), across)
    positions = torch.from_numpy(np.flatnonzero(index < 0)).to(values.device)
    expected = tuple(len(positions) if d == dim else size for d, size in enumerate(values.shape))
    if tuple(block.shape) != expected:
        raise SurgeryError(
            f"new slices of {name} along dimension {dim} must have shape {expected}, got {tuple(block.shape)}"
        )
    values.index_copy_(dim, positions, block)


def replay(model: nn.Module, records: Sequence[EditRecord]) -> None:
    """Give a seed model, in place, the structure that recorded edits led to; new entries are 0 until weights are loaded.

    Raises:
        SurgeryError: a tensor of the model does not have the shape that the record starts from.
    """
    for record in records:
        for change in record.tensors:
            tensor = lookup(model, change.names[0], change.kind)
            if tuple(tensor.shape) != change.old_shape:
                raise SurgeryError(
                    f"replaying {record.site} {record.old_width} -> {record.new_width}: {change.names[0]} must have shape "
                    f"{change.old_shape}, got {tuple(tensor.shape)}; is this the seed model the run started from?"
                )
            replace_data(tensor, grow_values(tensor.data, change.index_maps))
        set_attributes(model, record.attributes)
