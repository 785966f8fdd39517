"""Widening in place: all sites of a growth event as one transaction, undone to the last bit if anything goes wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import (
    AttributeEdit,
    Average,
    Copy,
    GrowthSite,
    Scale,
    Share,
    Silence,
    TensorEdit,
    ValueEdit,
    refuse_wrappers,
)
from growkit.graph.dimensions import size
from growkit.surgery.attributes import find_attribute_changes
from growkit.surgery.caches import Emptied, caches_of
from growkit.surgery.optimizer_state import Optimizers, grow_state, refuse_optimizer, several
from growkit.surgery.records import AttributeChange, EditRecord, IndexMap, TensorChange
from growkit.surgery.tensors import fill_new, grow_values, neutral_fill, silence_padding
from growkit.surgery.undo import Edit, UndoLog
from growkit.surgery.values import Directory, edited, gradient_after
from growkit.surgery.verify import Inputs

AFTERWARDS = (Silence, Average, Copy, Share)  # changes of values under the new sizes

__all__ = ["Extension", "Growth", "grow", "inside_of", "refuse_stale", "refuse_wrappers"]


@dataclass(frozen=True)
class Extension:
    """The new slices of one site's tensors, as an initializer wants them.

    Attributes:
        values: (tensor name, dimension) -> the entries in the new positions of that dimension, in order: the tensor's
            shape before the event with that dimension replaced by the number of new positions. Producers and consumers
            that are not named are filled with zeros. A name that the site does not change is an error.
    """

    values: Mapping[tuple[str, int], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", dict(self.values))  # what is chosen late is chosen before anything changes


@dataclass(frozen=True)
class Growth:
    """An order to surgery: widen `site` by `num_new` units, filled from `extension`.

    `remedied=False` leaves out the site's remedies. The function then changes, which is what a control needs.
    """

    site: GrowthSite
    num_new: int
    extension: Extension = Extension()
    remedied: bool = True


@torch.no_grad()
def grow(
    model: nn.Module,
    growths: Sequence[Growth],
    *,
    optimizer: Optimizers = None,
    copies: Sequence[nn.Module] = (),
    caches: Sequence[Emptied] | None = None,
) -> Edit:
    """Widen sites of `model` in place, with the optimizer's state; nothing is checked here beyond shapes.

    Args:
        model: the model the sites were found in, or a copy of it.
        growths: what to widen. Values are given for the shapes before the call; where two growths cross in one tensor
            the crossing entries are zero.
        optimizer: its state grows along, or that of several; parameters stay the same objects, and their gradients
            grow with zeros.
        copies: copies of the model that grow along, such as an average of its weights (torch's `AveragedModel` or one
            of your own): the same new entries, and remedies worked out from their own values.
        caches: what to empty of tensors in plain attributes of the model, from `caches_of`; None asks it, which runs
            the forward a few times on the example if there are any.

    Returns:
        The committed edit.

    Raises:
        GrowthRefused: the model is wrapped (DDP, compiled), a site is stale, or a count is below 1.
        SurgeryError: something failed half-way; everything was rolled back.
    """
    for one in several(optimizer):
        refuse_optimizer(one)
    patients = [_Patient(model, optimizer), *(_Patient(inside_of(copy)) for copy in copies)]
    _refuse_shared([patient.model for patient in patients])
    names = [None, *(f"copies[{number}]" for number in range(len(copies)))]
    for patient, name in zip(patients, names, strict=True):
        refuse_wrappers(patient.model)
        _refuse_stale(patient.directory, [growth.site for growth in growths], name)
    try:
        for patient in patients:
            known = caches if patient is patients[0] else None
            patient.log.clear_caches(_caches(patient.model, growths) if known is None else known)
        return Edit([_widen(patients, growth) for growth in growths], [patient.log for patient in patients])
    except BaseException as error:  # also an interrupt: a model is never left half-edited
        for patient in reversed(patients):
            patient.log.roll_back()
        if isinstance(error, SurgeryError | GrowthRefused) or not isinstance(error, Exception):
            raise
        raise SurgeryError(f"widening failed and was rolled back: {type(error).__name__}: {error}") from error


def _caches(model: nn.Module, growths: Sequence[Growth]) -> Sequence[Emptied]:
    return caches_of(model, Inputs(*growths[0].site.graph.inputs)) if growths else ()


def inside_of(copy: nn.Module) -> nn.Module:
    """The module that a copy of a model holds, or is.

    Raises:
        GrowthRefused: it is no module.
    """
    if not isinstance(copy, nn.Module):
        raise GrowthRefused(f"copies must be modules, got {type(copy).__name__}; an average of weights is one")
    return copy.module if isinstance(copy, AveragedModel) else copy


def _refuse_shared(models: Sequence[nn.Module]) -> None:
    tensors = [id(tensor) for model in models for tensor in {id(one): one for one in model.parameters()}.values()]
    if len(set(tensors)) < len(tensors):
        raise GrowthRefused("copies must have parameters of their own, but one shares some with the model or a copy")


def refuse_stale(model: nn.Module, sites: Sequence[GrowthSite], copy: str | None = None) -> None:
    """Raise GrowthRefused where a site was found in another model, or in this one before it changed.

    Args:
        model: the model.
        sites: to be widened.
        copy: what the model is called if it is but a copy of the one that the sites were found in.
    """
    _refuse_stale(Directory(model), sites, copy)


def _refuse_stale(directory: Directory, sites: Sequence[GrowthSite], copy: str | None = None) -> None:
    names = [name for name in directory.modules if name]
    graphs = {site.graph for site in sites}
    changed = {graph for graph in graphs if [name for name, _ in graph.structure] != names}
    rule = f"{copy} must be a copy of the model" if copy else "a site must be found in the model"
    remedy = "copy the model anew" if copy else "call find_sites again"
    for site in sites:
        if site.graph in changed:
            raise GrowthRefused(
                f"{rule} as it is, but modules were added or removed since {site.name} was found, or it is a site of "
                f"another model; {remedy}"
            )
        for use in {id(use): use for use, _ in site.uses}.values():
            tensor = directory.find(use.names[0], use.kind)
            expected, found = tuple(size(dim) for dim in use.dims), None if tensor is None else tuple(tensor.shape)
            if found != expected:
                raise GrowthRefused(
                    f"{rule} as it is, but for {site.name} the {use.kind} {use.names[0]!r} must have shape {expected}, "
                    f"got {found or 'none'}; {remedy}"
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


class _Patient:
    """A model under the knife: its optimizers, what was, and where its positions have gone."""

    def __init__(self, model: nn.Module, optimizer: Optimizers = None):
        self.model, self.optimizers = model, several(optimizer)
        self.directory = Directory(model)
        self.log, self.since = UndoLog(model), _MapsSinceStart()

    def resize(self, growth: Growth, edits: Sequence[TensorEdit], values: Sequence[ValueEdit]) -> list[TensorChange]:
        """Tensors and optimizer state; the attributes come when the site has its new width."""
        self._change([one for one in values if not isinstance(one, AFTERWARDS)])
        changes = [_resize(self, edit, growth.extension) for edit in edits]
        self._change([one for one in values if isinstance(one, AFTERWARDS)])
        return changes

    def set_sizes(self, edits: Sequence[AttributeEdit], tensors: Sequence[str]) -> list[AttributeChange]:
        """The attributes that follow."""
        changes = find_attribute_changes(self.model, edits, tensors)
        self.log.set(changes)
        return changes

    def _change(self, edits: Sequence[ValueEdit]) -> None:
        for edit in edits:
            tensor = self.directory[edit.name, edit.kind if isinstance(edit, Scale | Copy) else "parameter"]
            gradient = tensor.grad
            self.log.replace(tensor, edited(self.model, tensor, edit))
            tensor.grad = None if gradient is None else gradient_after(gradient, edit)


def _widen(patients: Sequence[_Patient], growth: Growth) -> EditRecord:
    site, old_width = growth.site, growth.site.width
    if growth.num_new < 1:
        raise GrowthRefused(f"{site.name} must grow by at least 1 unit, got {growth.num_new}")
    edits = site.tensor_edits(growth.num_new)
    values = site.value_edits(growth.num_new) if growth.remedied else ()
    sizes = site.attribute_edits(growth.num_new)
    _check_names(site, growth.extension, edits)
    changes = [patient.resize(growth, edits, values) for patient in patients]
    patients[0].log.widths.append((site, old_width))
    site.resize(old_width + growth.num_new)
    names = [name for edit in edits for name in edit.names]
    attributes = [patient.set_sizes(sizes, names) for patient in patients]
    return EditRecord(site.name, old_width, site.width, tuple(changes[0]), tuple(attributes[0]))


def _check_names(site: GrowthSite, extension: Extension, edits: Sequence[TensorEdit]) -> None:
    changed = {(edit.names[0], dim) for edit in edits for dim, index in enumerate(edit.index_maps) if index is not None}
    unknown = sorted(set(extension.values) - changed)
    if unknown:
        raise SurgeryError(
            f"new slices must be for tensors and dimensions that {site.name} changes, got {unknown}; "
            f"it changes {sorted(changed)}"
        )


def _resize(patient: _Patient, edit: TensorEdit, extension: Extension) -> TensorChange:
    name = edit.names[0]
    tensor = patient.directory[name, edit.kind]
    old, fill = tensor.data, "zero"
    given = [dim for dim in range(old.dim()) if (name, dim) in extension.values]
    if edit.pass_through and not given:
        fill, value = neutral_fill(old, edit, patient.directory.modules[name.rpartition(".")[0]])
        values = grow_values(old, edit.index_maps, value)
    else:
        values = grow_values(old, edit.index_maps)
        for dim in sorted(given, key=lambda d: d in edit.consumer_dims):
            _place(values, extension.values[name, dim], name, dim, edit.index_maps, patient.since)
            fill = "extension"
    silence_padding(values, old, [patient.directory.modules[one.rpartition(".")[0]] for one in edit.names])
    gradient = tensor.grad
    patient.log.replace(tensor, values)
    if gradient is not None:
        tensor.grad = grow_values(gradient.to_dense(), edit.index_maps)
    if isinstance(tensor, nn.Parameter):
        for optimizer in (one for one in patient.optimizers if _holds(one, tensor)):
            # also where there is no state yet: what comes up later has the new shape, and undo must drop it
            patient.log.remember(optimizer, tensor)
            grow_state(optimizer, tensor, old.shape, edit.index_maps)
    for dim, index in enumerate(edit.index_maps):
        if index is not None:
            patient.since.compose(name, dim, index)
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
    count = int(np.count_nonzero(index < 0))
    block = _repeated(given, dim, count).to(values)
    if any(one is not None for one in across):
        block = grow_values(block, across)
    expected = tuple(count if d == dim else size for d, size in enumerate(values.shape))
    if tuple(block.shape) != expected:
        raise SurgeryError(
            f"new slices of {name} along dimension {dim} must have shape {expected}, got {tuple(block.shape)}"
        )
    fill_new(values, dim, index, block)


def _repeated(given: Tensor, dim: int, count: int) -> Tensor:
    """`given` with `count` slices along `dim`.

    Where another site of the same event grew along the same dimension (heads, and their size), one new unit has more
    new positions than before the event. They take the slices over again, each time rolled on, so that no two are equal.
    """
    have = given.shape[dim]
    if have == 0 or count <= have:
        return given
    other = max((d for d in range(given.dim()) if d != dim), key=lambda d: given.shape[d], default=dim)
    rounds = [given.roll(number, other) for number in range(-(-count // have))]
    return torch.cat(rounds, dim).narrow(dim, 0, count)
