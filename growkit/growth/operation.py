"""The surgery of one growth event: carried out, verified, and taken back whatever stops it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from growkit.device import ComputePolicy
from growkit.errors import SurgeryError
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import Extended, Initializer
from growkit.growth.event import SiteGrowth, describe_refusals
from growkit.growth.rewriting import Rewriting
from growkit.growth.statistics import Loss
from growkit.surgery import (
    Edit,
    EditRecord,
    Extension,
    Growth,
    Inputs,
    Observation,
    align_state,
    function_change,
    grow,
    observe,
    untouched,
)

__all__ = ["Look", "Operation", "Order", "describe_growth", "look_at"]


@dataclass(frozen=True)
class Order:
    """What is to be done at one site, and by whom."""

    site: GrowthSite
    num_new: int
    initializer: Initializer
    extended: Extended

    @property
    def kept(self) -> Order:
        """What of it keeps the function: all, or that with silent units where the function is to change."""
        if self.initializer.preserves:
            return self
        return replace(self, extended=self.extended.silenced(self.site, self.num_new))


@dataclass(frozen=True)
class Look:
    """What a model does with the growth batch.

    Attributes:
        observation: its outputs, in fp32.
        loss: data loss, eval mode.
        rounded: outputs under the run's autocast, eval mode; None in fp32.
        forwards: passes it took, for the FLOPs ledger.
    """

    observation: Observation
    loss: float
    rounded: list[Tensor] | None
    forwards: int

    def rounded_change(self, before: Look) -> float | None:
        """Relative change of the outputs under autocast since `before`; None in fp32."""
        if before.rounded is None or self.rounded is None:
            return None
        return function_change(Observation(before.rounded, []), Observation(self.rounded, [])).eval


def look_at(
    model: nn.Module,
    loss: Loss,
    compute: ComputePolicy,
    inputs: Inputs,
    targets: Tensor,
    seen: Observation | None = None,
) -> Look:
    """Outputs and loss of `model` on a batch; it is left as it was. `seen`: its outputs, where they are known."""
    with untouched(model), torch.no_grad():
        model.eval()
        value = float(loss(model(*inputs.args, **(inputs.kwargs or {})), targets))
        rounded = None
        if compute.precision != "fp32":
            with compute.autocast():
                rounded = [output.float() for output in inputs.call(model)]
    forwards = 1 + (rounded is not None) + 2 * (seen is None)
    return Look(observe(model, inputs) if seen is None else seen, value, rounded, forwards)


@dataclass
class Operation:
    """One event's surgery on one model.

    Attributes:
        model: operated on in place. sites: its graph. compute: device and precision of the run.
        tolerance: largest relative change of the outputs.
        flops_verifying: spent so far on looking at the outputs, per sample.
        seen: the outputs after the edit that stands; None where nobody looked.
    """

    model: nn.Module
    sites: Sites
    compute: ComputePolicy
    tolerance: float
    flops_verifying: int = 0
    seen: Observation | None = None
    _edit: Edit | None = None  # under way
    _rewriting: Rewriting = field(default_factory=Rewriting)  # what was written before it

    def perform(
        self,
        orders: list[Order],
        optimizer: torch.optim.Optimizer,
        inputs: Inputs,
        before: Look,
        flops: int,
    ) -> tuple[Edit, list[Refusal]]:
        """All sites at once; if that changes the outputs, one more at a time, refusing those that do.

        Args:
            orders: one for each site.
            optimizer: its state grows along.
            inputs: on which the outputs must stay.
            before: of the model as it is, on these inputs.
            flops: forward per sample, of the model as it is.

        Raises:
            SurgeryError: no site can grow; nothing is changed.
        """
        outcome = first = self._verified(orders, optimizer, inputs, before, flops)
        if isinstance(outcome, Edit):
            return self._as_designed(orders, outcome, optimizer), []
        kept, refused = [], []
        for order in orders:
            # together with those before it, not after them: the new slices are made for the shapes before the event
            outcome = self._verified([*kept, order], optimizer, inputs, before, flops)
            if isinstance(outcome, Edit):
                self.take_back()
                kept.append(order)
            else:
                refused.append(Refusal(order.site.name, order.site.width, outcome, order.site.location))
        if not kept:
            raise SurgeryError(f"the growth event was rolled back, for {first}\n{describe_refusals(refused)}")
        edit = self._verified(kept, optimizer, inputs, before, flops)
        assert isinstance(edit, Edit), "it was verified a moment ago"
        return self._as_designed(kept, edit, optimizer), refused

    def take_back(self) -> None:
        """The model and the optimizer as they were, whatever has been done so far."""
        if self._edit is not None and not self._edit.undone:
            self._edit.undo()
        self._rewriting.undo()

    def _verified(
        self, orders: Sequence[Order], optimizer: torch.optim.Optimizer, inputs: Inputs, before: Look, flops: int
    ) -> Edit | str:
        """The edit, or why it was taken back."""
        graph_flops = self.sites.graph.flops()
        try:
            self._edit = self._carry_out([order.kept for order in orders], optimizer)
        except SurgeryError as error:
            self.take_back()
            return f"surgery cannot widen it: {error}"
        # one pass in eval and one in train mode; what the graph leaves out does not change with the widths
        self.flops_verifying += 2 * (flops + self.sites.graph.flops() - graph_flops)
        try:
            self.compute.place(self.model)
            align_state(optimizer)
            self.seen = observe(self.model, inputs)
            change = function_change(before.observation, self.seen)
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            self.take_back()
            return f"the model fails at its new width: {type(error).__name__}: {error}"
        if change.worst <= self.tolerance:
            return self._edit
        self.take_back()
        return (
            f"it changed the outputs by {change.worst:.2e} of their size, more than growth.tolerance {self.tolerance:g}"
        )

    def _as_designed(self, orders: Sequence[Order], verified: Edit, optimizer: torch.optim.Optimizer) -> Edit:
        """The same event with the values of units that were verified while silent."""
        if all(order.initializer.preserves for order in orders):
            return verified
        self.take_back()
        self._edit, self.seen = self._carry_out(orders, optimizer), None
        self.compute.place(self.model)
        align_state(optimizer)
        return self._edit

    def _carry_out(self, orders: Sequence[Order], optimizer: torch.optim.Optimizer) -> Edit:
        self._rewriting.write(self.model, {order.site.name: order.extended.rewrites for order in orders})
        growths = [Growth(order.site, order.num_new, Extension(order.extended.values)) for order in orders]
        return grow(self.model, growths, optimizer=optimizer)


def describe_growth(record: EditRecord, order: Order) -> SiteGrowth:
    """What became of one site, on paper."""
    extended, initializer = order.extended, order.initializer
    return SiteGrowth(
        record.site,
        record.old_width,
        record.new_width,
        initializer.name,
        extended.form,
        extended.reason,
        extended.facts,
        initializer.preserves,
    )
