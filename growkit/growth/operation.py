"""The surgery of one growth event: carried out, verified, and taken back whatever stops it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import Extended, Initializer
from growkit.growth.event import SiteGrowth
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
    ) -> tuple[Edit | None, list[Refusal]]:
        """All sites at once; if that changes the outputs or fails, one more at a time, refusing those that do.

        Args:
            orders: one for each site.
            optimizer: its state grows along.
            inputs: on which the outputs must stay.
            before: of the model as it is, on these inputs.
            flops: forward per sample, of the model as it is.

        Returns:
            The edit, None where no site can grow and nothing is changed; and the sites that cannot.
        """
        outcome = self._tried(orders, optimizer, inputs, before, flops)
        if isinstance(outcome, Edit):
            return outcome, []
        kept, refused = [], []
        for order in orders:
            # together with those before it, not after them: the new slices are made for the shapes before the event
            if len(orders) > 1:
                outcome = self._tried([*kept, order], optimizer, inputs, before, flops)
            if isinstance(outcome, Edit):
                self.take_back()
                kept.append(order)
            else:
                refused.append(Refusal(order.site.name, order.site.width, outcome, order.site.location))
        if not kept:
            return None, refused
        edit = self._tried(kept, optimizer, inputs, before, flops)
        assert isinstance(edit, Edit), "it was tried a moment ago"
        return edit, refused

    def take_back(self) -> None:
        """The model and the optimizer as they were, whatever has been done so far."""
        if self._edit is not None and not self._edit.undone:
            self._edit.undo()
        self._rewriting.undo()

    def _tried(
        self, orders: Sequence[Order], optimizer: torch.optim.Optimizer, inputs: Inputs, before: Look, flops: int
    ) -> Edit | str:
        """The edit as it was ordered, or why it was taken back.

        Where the function is to change, it is first carried out with silent units, and verified.
        """
        change = self._change_by([order.kept for order in orders], optimizer, inputs, before, flops)
        if isinstance(change, float) and change > self.tolerance:
            limit = f"growth.tolerance {self.tolerance:g}"
            change = f"it changed the outputs by {change:.2e} of their size, more than {limit}"
        elif isinstance(change, float) and not all(order.initializer.preserves for order in orders):
            self.take_back()
            change = self._change_by(orders, optimizer, inputs, before, flops)
            change = "its new units make outputs that are not finite" if change == math.inf else change
        if isinstance(change, str):
            self.take_back()
            return change
        assert self._edit is not None, "it was carried out a moment ago"
        return self._edit

    def _change_by(
        self, orders: Sequence[Order], optimizer: torch.optim.Optimizer, inputs: Inputs, before: Look, flops: int
    ) -> float | str:
        """Carry out an edit: by how much that changed the outputs, or why it failed."""
        graph_flops = self.sites.graph.flops()
        try:
            self._edit = self._carry_out(orders, optimizer)
        except (SurgeryError, GrowthRefused) as error:
            return f"surgery cannot widen it: {error}"
        # one pass in eval and one in train mode; what the graph leaves out does not change with the widths
        self.flops_verifying += 2 * (flops + self.sites.graph.flops() - graph_flops)
        try:
            self.compute.place(self.model)
            align_state(optimizer)
            self.seen = observe(self.model, inputs)
            return function_change(before.observation, self.seen).worst
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            return f"the model fails at its new width: {type(error).__name__}: {error}"

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
