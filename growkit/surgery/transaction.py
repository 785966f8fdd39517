"""Widening in place: all sites of a growth event as one transaction, undone to the last bit if anything goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.graph import GrowthSite, TensorEdit
from growkit.surgery.attributes import find_attribute_changes, restore_attributes, set_attributes
from growkit.surgery.records import AttributeChange, EditRecord, IndexMap, TensorChange
from growkit.surgery.tensors import grow_state, grow_values, neutral_fill, replace_data

__all__ = ["Edit", "Extension", "Growth", "grow", "lookup", "replay"]

# by name: some of them exist only in some builds of torch
_WRAPPERS = ("DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "OptimizedModule", "DataParallel")


@dataclass(frozen=True)
class Extension:
    """The new slices of one site's tensors, as an initializer wants them.

    Attributes:
        values: (tensor name, dimension) -> the entries in the new positions of that dimension, in order: the tensor's
            shape before the event with that dimension replaced by the number of new positions. Producers and consumers
            that are not named are filled with zeros. A name that the site does not change is an error.
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
        self._shapes = [(tensor, tensor.shape) for tensor, _, _ in log.tensors]
        self._begun = False

    @property
    def undone(self) -> bool:
        """Whether it has been taken back."""
        return self._log is None

    @property
    def record(self) -> EditRecord:
        """The record of an edit of a single site."""
        if len(self.records) != 1:
            raise ValueError(f"record is for edits of one site, this one has {len(self.records)}; use records")
        return self.records[0]

    def undo(self) -> None:
        """Restore, in place, every tensor, attribute, optimizer state and site width that the edit changed.

        Optimizer state that came up only after the edit, for a parameter that the edit changed, starts anew: it has the
        wrong shape. An undo that was interrupted may be asked for again.

        Raises:
            SurgeryError: the edit was undone already, or a later edit of the same tensors was not.
        """
        if self._log is None:
            raise SurgeryError("an edit can be undone once, and this one has been")
        if not self._begun and any(tensor.shape != shape for tensor, shape in self._shapes):
            raise SurgeryError("edits are undone last first, and a later one changed the same tensors; undo that first")
        self._begun = True
        self._log.roll_back()
        self._log = None


@dataclass
class _UndoLog:
    """What was, in the order of the changes. `tensors` holds (object, old values, old gradient)."""

    model: nn.Module
    tensors: list[tuple[Tensor, Tensor, Tensor | None]] = field(default_factory=list)
    states: list[tuple[torch.optim.Optimizer, nn.Parameter, dict[str, Any] | None]] = field(default_factory=list)
    attributes: list[AttributeChange] = field(default_factory=list)
    widths: list[tuple[GrowthSite, int]] = field(default_factory=list)

    def replace(self, tensor: Tensor, values: Tensor) -> None:
        self.tensors.append((tensor, tensor.data, tensor.grad))
        replace_data(tensor, values)

    def set(self, changes: Sequence[AttributeChange]) -> None:
        self.attributes += changes
        set_attributes(self.model, changes)

    def remember(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
        # copies: an optimizer counts its steps in place
        state = pytree.tree_map_only(Tensor, Tensor.clone, dict(optimizer.state.get(parameter, {})))
        self.states.append((optimizer, parameter, state if parameter in optimizer.state else None))

    def roll_back(self) -> None:
        try:
            self._restore()
        except BaseException:  # an interrupt on the way: all of it once more, for half an edit is worse than a delay
            self._restore()
            raise

    def _restore(self) -> None:
        for tensor, values, gradient in reversed(self.tensors):
            replace_data(tensor, values)
            tensor.grad = gradient
        for optimizer, parameter, state in reversed(self.states):
            if state is None:
                _forget(optimizer, parameter)
            else:
                optimizer.state[parameter] = state
        restore_attributes(self.model, self.attributes)
        for site, width in reversed(self.widths):
            site.resize(width)


def _forget(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
    """Drop the state that came up after an edit, the parameter having its old shape again."""
    dropped = optimizer.state.pop(parameter, {})
    if isinstance(optimizer, torch.optim.SGD) and dropped.get("momentum_buffer") is not None:
        # torch's fused SGD fails where some of its parameters have momentum and others none yet; 0 is the same as none
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter.data)


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
        return Edit(records, log)
    except BaseException as error:  # also an interrupt: a model is never left half-edited
        log.roll_back()
        if isinstance(error, SurgeryError | GrowthRefused) or not isinstance(error, Exception):
            raise
        raise SurgeryError(f"widening failed and was rolled back: {type(error).__name__}: {error}") from error


def _refuse_wrappers(model: nn.Module) -> None:
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS]
        if kinds:
            raise GrowthRefused(
                f"a model must be unwrapped before it grows, got {kinds[0]}{f' at {name}' if name else ''}, which "
                "remembers old sizes; grow the module inside and wrap it again"
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
    literals, edits = site.literal_changes(growth.num_new), site.tensor_edits(growth.num_new)
    _check_names(site, growth.extension, edits)
    for edit in edits:
        changes.append(_resize(model, edit, growth.extension, optimizer, log, since))
    log.widths.append((site, old_width))
    site.resize(old_width + growth.num_new)
    attributes = find_attribute_changes(model, literals)
    log.set(attributes)
    return EditRecord(site.name, old_width, site.width, tuple(changes), tuple(attributes))


def _check_names(site: GrowthSite, extension: Extension, edits: Sequence[TensorEdit]) -> None:
    changed = {(edit.names[0], dim) for edit in edits for dim, index in enumerate(edit.index_maps) if index is not None}
    unknown = sorted(set(extension.values) - changed)
    if unknown:
        raise SurgeryError(
            f"new slices must be for tensors and dimensions that {site.name} changes, got {unknown}; "
            f"it changes {sorted(changed)}"
        )


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
        fill, value = neutral_fill(old, edit, model.get_submodule(name.rpartition(".")[0]))
        values = grow_values(old, edit.index_maps, value)
    else:
        values = grow_values(old, edit.index_maps)
        for dim in sorted(given, key=lambda d: d in edit.consumer_dims):
            _place(values, extension.values[name, dim], name, dim, edit.index_maps, since)
            fill = "extension"
    log.replace(tensor, values)
    if optimizer is not None and isinstance(tensor, nn.Parameter) and _holds(optimizer, tensor):
        # also where there is no state yet: what comes up later has the new shape, and undo must drop it
        log.remember(optimizer, tensor)
        grow_state(optimizer, tensor, old.shape, edit.index_maps)
    for dim, index in enumerate(edit.index_maps):
        if index is not None:
            since.compose(name, dim, index)
    return TensorChange(edit.names, edit.kind, tuple(old.shape), edit.index_maps, fill)


def _holds(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    return parameter in optimizer.state or any(p is parameter for g in optimizer.param_groups for p in g["params"])


def _place(
    values: Tensor, given: Tensor, name: str, dim: int, index_maps: Sequence[IndexMap | None], since: _MapsSinceStart
) -> None:
    """Write `given` into the new positions of `dim` of `values`, in place; 0 where it crosses another new dimension."""
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


@torch.no_grad()
def replay(model: nn.Module, records: Sequence[EditRecord]) -> None:
    """Give a seed model, in place, the structure that recorded edits led to; new entries are 0 until weights come.

    Raises:
        UserInputError: the model is not the seed: a tensor or module is missing or has another shape than the record
            starts from; the model is left as it was.
        GrowthRefused: the model is wrapped.
    """
    _refuse_wrappers(model)
    log = _UndoLog(model)
    try:
        for record in records:
            _replay_one(record, log)
    except BaseException:
        log.roll_back()
        raise


def _replay_one(record: EditRecord, log: _UndoLog) -> None:
    what = f"replaying {record.site} {record.old_width} -> {record.new_width}"
    for change in record.tensors:
        name = change.names[0]
        try:
            tensor = lookup(log.model, name, change.kind)
        except AttributeError as error:
            raise UserInputError(
                f"{what}: the model must have the {change.kind} {name}, got none; is it the seed the run started from?"
            ) from error
        if tuple(tensor.shape) != change.old_shape:
            raise UserInputError(
                f"{what}: {name} must have shape {change.old_shape}, got {tuple(tensor.shape)}; "
                "is it the seed the run started from?"
            )
        log.replace(tensor, grow_values(tensor.data, change.index_maps))
    log.set(record.attributes)
