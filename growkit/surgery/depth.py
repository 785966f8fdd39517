"""Deepening in place: identity layers and silent copies of residual blocks, put into a container or taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import DepthPlace
from growkit.optim.displacement import refuse_displaced
from growkit.surgery.children import Sibling, build_children
from growkit.surgery.records import DepthRecord, NewTensor
from growkit.surgery.transaction import refuse_wrappers

__all__ = ["DepthEdit", "Insertion", "insert", "is_numbered"]


class Insertion:
    """New children of a container, put in and taken out; the container's other children stay the objects they are.

    Args:
        container: its children are called 0 to n - 1, and will be again, or have names that they keep.
        position: the place of the first new child.
        children: the new ones by name, in order.
    """

    def __init__(self, container: nn.Module, position: int, children: dict[str, nn.Module]):
        before = list(container._modules.items())
        after = [*before[:position], *children.items(), *before[position:]]
        if is_numbered(container):
            after = [(str(number), module) for number, (_, module) in enumerate(after)]
        self.container, self.children, self._before, self._after = container, list(children.values()), before, after

    def apply(self) -> None:
        """Put the children in; those behind them move up."""
        self._set(self._after)

    def roll_back(self) -> None:
        """Take the children out; names and order are as they were."""
        self._set(self._before)

    @property
    def stands(self) -> bool:
        """Whether the container is as the insertion left it."""
        now = list(self.container._modules.items())
        return len(now) == len(self._after) and all(
            name == other and module is another
            for (name, module), (other, another) in zip(now, self._after, strict=True)
        )

    def _set(self, items: list[tuple[str, nn.Module | None]]) -> None:
        self.container._modules.clear()
        self.container._modules.update(items)


def is_numbered(container: nn.Module) -> bool:
    """Whether its children are called 0 to n - 1."""
    return list(container._modules) == [str(number) for number in range(len(container._modules))]


class DepthEdit:
    """A committed insertion; `undo()` takes it back to the last bit.

    Attributes:
        record: what was inserted where.
        children: the new modules, in order.
    """

    def __init__(self, record: DepthRecord, insertion: Insertion, optimizer: torch.optim.Optimizer | None):
        self.record = record
        self.children = insertion.children
        self._insertion: Insertion | None = insertion
        self._optimizer = optimizer
        self._shapes = [(tensor, tensor.shape) for child in self.children for tensor in child.parameters()]
        self._begun = False

    @property
    def records(self) -> list[DepthRecord]:
        """The record, as a list, as for edits of several sites."""
        return [self.record]

    @property
    def undone(self) -> bool:
        """Whether it has been taken back."""
        return self._insertion is None

    def undo(self) -> None:
        """Take the new modules out, in place, and their parameters, with their state, out of the optimizer.

        Names, order, buffers and modes of all other modules are as before the edit; what training changed in them since
        stays. An undo that was interrupted may be asked for again.

        Raises:
            SurgeryError: the edit was undone already, or a later edit of the same modules was not.
            GrowthRefused: weights are between two passes of SAM.
        """
        if self._insertion is None:
            raise SurgeryError("an edit can be undone once, and this one has been")
        if not self._begun:
            refuse_displaced([*(tensor for tensor, _ in self._shapes), *self._insertion.container.parameters()])
        changed = not self._insertion.stands or any(tensor.shape != shape for tensor, shape in self._shapes)
        if not self._begun and changed:
            raise SurgeryError("edits are undone last first, and a later one changed the same modules; undo that first")
        self._begun = True
        _leave(self._optimizer, [tensor for tensor, _ in self._shapes])
        self._insertion.roll_back()
        self._insertion = None


def insert(
    model: nn.Module, place: DepthPlace, *, optimizer: torch.optim.Optimizer | None = None, seed: int = 0
) -> DepthEdit:
    """Insert a layer or block at a place of `model`, in place; nothing is checked of what the model computes.

    Args:
        model: the model the place was found in, or a copy of it.
        place: where.
        optimizer: each new parameter joins the group of the one it is built after, without state.
        seed: of the new weights.

    Raises:
        GrowthRefused: the model is wrapped, its weights are between two passes of SAM, its optimizer cannot take new
            parameters, or the block cannot be copied.
    """
    refuse_wrappers(model)
    refuse_displaced(model.parameters())
    record = _record_of(model, place, seed)
    children, siblings = build_children(model, record)
    insertion = Insertion(model.get_submodule(record.container), record.position, children)
    joining = _groups_for(optimizer, siblings)
    record = replace(record, tensors=_new_tensors(record, children))
    try:
        insertion.apply()
        for group, sibling, new in joining:
            group["params"].append(new)
            _start_state(optimizer, group, sibling, new)
        return DepthEdit(record, insertion, optimizer)
    except BaseException:  # also an interrupt: a model is never left half-edited
        _leave(optimizer, [new for _, new in siblings])
        insertion.roll_back()
        raise


def _record_of(model: nn.Module, place: DepthPlace, seed: int) -> DepthRecord:
    """The record of an insertion to come, its tensors not yet known."""
    sources = [place.name] if place.activation is None else [place.name, place.activation]
    container = model.get_submodule(place.container)
    names = [str(place.position + number) for number in range(len(sources))]
    if not is_numbered(container):
        names = [_unused(source.rpartition(".")[2], container) for source in sources]
    return DepthRecord(
        form=place.kind,
        container=place.container,
        position=place.position,
        children=tuple(names),
        source=place.name,
        activation=place.activation,
        norm=place.norm,
        zeroed=tuple(name for branch in place.branches for name in branch),
        seed=seed,
    )


def _unused(name: str, container: nn.Module) -> str:
    """`name` with the first number behind it that no child has."""
    return next(
        f"{name}_{number}"
        for number in range(2, len(container._modules) + 3)
        if f"{name}_{number}" not in container._modules
    )


def _new_tensors(record: DepthRecord, children: dict[str, nn.Module]) -> tuple[NewTensor, ...]:
    prefix = f"{record.container}." if record.container else ""
    return tuple(
        NewTensor(f"{prefix}{new}.{name}", kind, tuple(tensor.shape))
        for new, child in children.items()
        for kind, tensors in (("parameter", child.named_parameters()), ("buffer", child.named_buffers()))
        for name, tensor in tensors
    )


def _groups_for(
    optimizer: torch.optim.Optimizer | None, siblings: list[Sibling]
) -> list[tuple[dict[str, Any], nn.Parameter, nn.Parameter]]:
    """For each new parameter whose sibling the optimizer holds, the group it will join."""
    if optimizer is None:
        return []
    if isinstance(optimizer, torch.optim.LBFGS) and optimizer.state:
        raise GrowthRefused("an optimizer must keep its state per parameter to take new ones, got LBFGS in mid-run")
    joining = [
        (group, sibling, new)
        for sibling, new in siblings
        for group in optimizer.param_groups
        if any(held is sibling for held in group["params"])
    ]
    if not joining:
        raise GrowthRefused(
            "the optimizer must hold the weights that the new ones are built after, got none of them; "
            "was it built for another model?"
        )
    return joining


def _start_state(
    optimizer: torch.optim.Optimizer | None, group: dict[str, Any], sibling: nn.Parameter, new: nn.Parameter
) -> None:
    """Nothing to start from, but torch's fused SGD fails where only some have momentum; 0 is the same as none."""
    assert optimizer is not None
    momentum: Tensor | None = optimizer.state.get(sibling, {}).get("momentum_buffer")
    if isinstance(optimizer, torch.optim.SGD) and group.get("fused") and momentum is not None:
        optimizer.state[new]["momentum_buffer"] = torch.zeros_like(new.data)


def _leave(optimizer: torch.optim.Optimizer | None, parameters: list[Tensor] | list[nn.Parameter]) -> None:
    """Take parameters and their state out of the optimizer."""
    if optimizer is None:
        return
    leaving = {id(parameter) for parameter in parameters}
    for group in optimizer.param_groups:
        group["params"][:] = [parameter for parameter in group["params"] if id(parameter) not in leaving]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
