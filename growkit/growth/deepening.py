"""The surgery of a growth event in depth: blocks inserted at places, verified, and taken back whatever stops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import DepthPlace, Refusal, structure_of
from growkit.growth.depths import BlockOrder, key_of
from growkit.growth.event import PlaceGrowth
from growkit.surgery import (
    DepthEdit,
    DepthRecord,
    Inputs,
    Observation,
    align_state,
    deepen,
    function_change,
    observe,
)

__all__ = ["Deepening"]


@dataclass
class Deepening:
    """One event's insertions into one model.

    Attributes:
        model: operated on in place. compute: device and precision of the run.
        tolerance: largest relative change of the outputs.
        passes: forward passes over the growth batch that looking at the outputs took.
    """

    model: nn.Module
    compute: ComputePolicy
    tolerance: float
    passes: int = 0
    _done: list[tuple[BlockOrder, list[DepthEdit]]] = field(default_factory=list)

    @property
    def records(self) -> list[DepthRecord]:
        """Of all insertions that stand, in order."""
        return [edit.record for _, edits in self._done for edit in edits]

    def perform(
        self, orders: Sequence[BlockOrder], optimizer: torch.optim.Optimizer, inputs: Inputs, before: Observation
    ) -> list[Refusal]:
        """All orders, one after the other; those that change the outputs are taken back, and refused.

        Args:
            orders: one for each place.
            optimizer: each new parameter joins the group of the one it is built after, without state.
            inputs: on which the outputs must stay.
            before: the outputs of the model as it is.
        """
        refused = []
        for order in orders:
            reason = self._carry_out(order, optimizer, inputs, before)
            if reason is not None:
                refused.append(Refusal(key_of(order.name), order.depth, reason, order.place.location))
        return refused

    def take_back(self) -> None:
        """The model and the optimizer as they were, last insertion first."""
        while self._done:
            self._undo_last()

    def new_parameters(self) -> dict[str, list[nn.Parameter]]:
        """What the event brought, by place."""
        return {
            key_of(order.name): [one for edit in edits for child in edit.children for one in child.parameters()]
            for order, edits in self._done
        }

    def growths(self) -> tuple[PlaceGrowth, ...]:
        """What became of each place, on paper."""
        names = {id(module): name for name, module in self.model.named_modules()}
        return tuple(
            PlaceGrowth(
                place=order.name,
                kind=order.place.kind,
                old_depth=order.depth,
                new_depth=order.depth + len(edits),
                modules=tuple(names[id(edit.children[0])] for edit in edits),
                params=sum(one.numel() for edit in edits for child in edit.children for one in child.parameters()),
                zeroed=edits[0].record.zeroed,
                seeds=tuple(edit.record.seed for edit in edits),
            )
            for order, edits in self._done
        )

    def _carry_out(
        self, order: BlockOrder, optimizer: torch.optim.Optimizer, inputs: Inputs, before: Observation
    ) -> str | None:
        """Insert the blocks of one place; why that was taken back, None if it stands."""
        place = order.place
        for record in self.records:
            place = _moved(place, record)
        edits: list[DepthEdit] = []
        self._done.append((order, edits))
        try:
            for seed in order.seeds:
                place = replace(place, structure=structure_of(self.model))
                edits.append(deepen(self.model, place, optimizer=optimizer, seed=seed))
                place = _behind(place, edits[-1].record)
            self.compute.place(self.model)
            align_state(optimizer)
            self.passes += 2
            change = function_change(before, observe(self.model, inputs))
        except (SurgeryError, GrowthRefused) as error:
            self._undo_last()
            return f"surgery cannot deepen it: {error}"
        except Exception as error:  # the model's own code may fail in any way at a depth it did not expect
            self._undo_last()
            return f"the model fails at its new depth: {type(error).__name__}: {error}"
        if change.worst <= self.tolerance:
            return None
        self._undo_last()
        return (
            f"it changed the outputs by {change.worst:.2e} of their size, more than growth.tolerance {self.tolerance:g}"
        )

    def _undo_last(self) -> None:
        _, edits = self._done[-1]
        while edits:
            edits[-1].undo()
            edits.pop()
        self._done.pop()


def _moved(place: DepthPlace, record: DepthRecord) -> DepthPlace:
    """A place found before an insertion somewhere else, after it."""
    behind = place.container == record.container and place.position >= record.position
    return replace(
        place,
        name=record.renamed(place.name),
        container=record.renamed(place.container),
        position=place.position + len(record.children) * behind,
        activation=None if place.activation is None else record.renamed(place.activation),
        norm=None if place.norm is None else record.renamed(place.norm),
    )


def _behind(place: DepthPlace, record: DepthRecord) -> DepthPlace:
    """The place behind the block that was just inserted."""
    prefix = f"{record.container}." if record.container else ""
    first, *others = [prefix + child for child in record.children]
    return replace(
        place,
        name=first,
        position=record.position + len(record.children),
        activation=others[0] if others else None,
        norm=None,
    )
