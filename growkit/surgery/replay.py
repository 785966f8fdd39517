"""Recorded edits made again on a seed: its structure comes back without the graph that found it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from growkit.errors import GrowthRefused, UserInputError
from growkit.optim.displacement import refuse_displaced
from growkit.surgery.children import build_children
from growkit.surgery.depth import Insertion, is_numbered
from growkit.surgery.records import DepthRecord, EditRecord, Record
from growkit.surgery.tensors import grow_values
from growkit.surgery.transaction import refuse_wrappers
from growkit.surgery.undo import UndoLog
from growkit.surgery.values import lookup

__all__ = ["replay"]


@torch.no_grad()
def replay(model: nn.Module, records: Sequence[Record]) -> None:
    """Give a seed model, in place, the structure that recorded edits led to.

    Until weights come, new entries of widened tensors are 0, and inserted modules are as they were when inserted.

    Raises:
        UserInputError: the model is not the seed: a tensor or module is missing or has another shape than the record
            starts from; the model is left as it was.
        GrowthRefused: the model is wrapped, or its weights are between two passes of SAM.
    """
    refuse_wrappers(model)
    refuse_displaced(model.parameters())
    done: list[UndoLog | Insertion] = []
    try:
        for record in records:
            if isinstance(record, DepthRecord):
                _insert(model, record, done)
            else:
                done.append(log := UndoLog(model))
                _widen(record, log)
    except BaseException:
        try:
            _take_back(done)
        except BaseException:  # an interrupt on the way: the rest too, for half an edit is worse than a delay
            _take_back(done)
            raise
        raise


def _take_back(done: list[UndoLog | Insertion]) -> None:
    """Undo in reverse: what a step changed has the names that it had then."""
    while done:
        done[-1].roll_back()
        done.pop()


def _widen(record: EditRecord, log: UndoLog) -> None:
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


def _insert(model: nn.Module, record: DepthRecord, done: list[UndoLog | Insertion]) -> None:
    what = f"replaying the {record.form} after {record.source}"
    try:
        container = model.get_submodule(record.container)
        children, _ = build_children(model, record)
    except (AttributeError, ValueError, GrowthRefused) as error:
        raise UserInputError(f"{what}: {error}; is it the seed the run started from?") from error
    there, numbered = list(container._modules), record.children[0] == str(record.position)
    taken = [] if numbered else set(record.children) & set(there)
    if record.position > len(there) or numbered != is_numbered(container) or taken:
        raise UserInputError(
            f"{what}: {record.container or 'the model'} must have room for {', '.join(record.children)} at "
            f"{record.position} of its children, got {there}; is it the seed the run started from?"
        )
    insertion = Insertion(container, record.position, children)
    done.append(insertion)
    insertion.apply()
    for tensor in record.tensors:
        try:
            shape = tuple(lookup(model, tensor.name, tensor.kind).shape)
        except AttributeError as error:
            raise UserInputError(f"{what}: {error}; is it the seed the run started from?") from error
        if shape != tensor.shape:
            raise UserInputError(
                f"{what}: {tensor.name} must have shape {tensor.shape}, got {shape}; "
                "is it the seed the run started from?"
            )
