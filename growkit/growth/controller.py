"""The growth controller: decides, measures, initialises, operates, verifies, and writes down what happened."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from growkit.config.growth import GrowthSettings
from growkit.cost import LATENCY_CALLS, Flops, count_flops, count_params, measure_latency
from growkit.device import ComputePolicy
from growkit.errors import GrowkitError, GrowthRefused, SurgeryError
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import (
    Clock,
    GrowthDecision,
    GrowthRecord,
    History,
    Initializer,
    Nothing,
    Prospects,
)
from growkit.growth.candidates import Candidates
from growkit.growth.costs import Costs
from growkit.growth.decider import Decider
from growkit.growth.deepening import Deepening
from growkit.growth.depths import Depths, key_of
from growkit.growth.event import GrowthEvent, describe_refusals
from growkit.growth.ground import Ground
from growkit.growth.initializers import build_initializer
from growkit.growth.newborn import NewUnits
from growkit.growth.operation import Look, Operation, describe_growth, look_at
from growkit.growth.orders import orders_for
from growkit.growth.plan import GrowthPlan, plan_growth
from growkit.growth.policy import Policy
from growkit.growth.statistics import Loss, Measurement
from growkit.surgery import Inputs, Observation, Record, function_change, new_entries, untouched

__all__ = ["GrowthController"]

LOOKS = 3  # at a latency that breaks the budget, before the event is undone


@dataclass
class GrowthController:
    """Grows one model through one run.

    Attributes:
        model: grown in place.
        sites: its graph; another one after the model became deeper.
        settings: the policy.
        loss: data loss of (outputs, targets).
        compute: device and precision of the run.
        generator: the growth stream.
        edits: the record of every edit so far, for replay.
        measure: measures what growth promises, for policies that ask; None where nothing can.
    """

    model: nn.Module
    sites: Sites
    settings: GrowthSettings
    loss: Loss
    compute: ComputePolicy
    generator: torch.Generator
    edits: list[Record] = field(default_factory=list)
    measure: Callable[[], Prospects] | None = None

    def __post_init__(self) -> None:
        self.policy = Policy.build(self.settings, self.generator.initial_seed())
        self.ground = Ground.of(self.model, self.sites, self.settings, self.generator.initial_seed())
        self._decider = Decider(self.policy, self.ground.limits)
        self.initializer = build_initializer(self.settings.initializer)
        self.fallback = None if self.settings.fallback is None else build_initializer(self.settings.fallback)
        self.counted = Flops(self.sites.graph.flops(), ())  # of the seed, per sample
        self._newborn = NewUnits()
        self._before: _Before | None = None  # the last event, or the one under way

    @property
    def candidates(self) -> Candidates:
        """The sites that may grow, and the others."""
        return self.ground.candidates

    @property
    def depths(self) -> Depths:
        """The places that may become deeper, and the others."""
        return self.ground.depths

    @property
    def costs(self) -> Costs:
        """Of the model at other sizes."""
        return self.ground.costs

    @property
    def tracked(self) -> list[GrowthSite]:
        """The sites that may grow, in the order of the graph."""
        return self.candidates.sites

    @property
    def targets(self) -> dict[str, int]:
        """The widest that each of them may become, by name."""
        return self.candidates.targets

    @property
    def refusals(self) -> list[Refusal]:
        """Those that may not grow, with the reason."""
        return self.candidates.refusals

    def prepare(self, inputs: Inputs) -> None:
        """Give up sites that are frozen, that no initializer serves, or that on trial on a copy cannot grow safely.

        Places where one more block cannot stand are given up likewise.

        Args:
            inputs: an example batch of at least 2 samples.

        Raises:
            UserInputError: no site or no place is left although growth of that kind is wanted.
        """
        self.counted = count_flops(self.model, inputs.args[0])
        self._stand_on(self.ground.tried(self.model, inputs, self.counted, self._servers))

    @property
    def flops_beyond_graph(self) -> int:
        """FLOPs per sample that the graph has no formula for, taken as constant; may be negative."""
        return self.costs.beyond_graph

    def plan(self, clock: Clock) -> GrowthPlan | None:
        """The events to come, if the policy knows them in advance, and they will stand.

        None in mode "both": which sites a new block brings, and what they cost, is known when it stands.
        """
        if self.settings.trial is not None or (self.settings.mode == "both" and self.settings.when.name != "never"):
            return None
        return plan_growth(self.policy, self.ground.states, clock, self._decider.limits)

    def due(self, history: History) -> bool:
        """Whether to grow now: the trigger fires, and a site has room within the budget.

        Asked again at the same step it gives the same answer; `history.ended` says once nothing will grow any more.
        """
        return self._decider.due(self.ground.states, history, self.measure)

    def take_notes(self) -> list[Nothing]:
        """Why nothing grew although it was time, since this was last asked."""
        return self._decider.take_notes()

    def take_measuring_flops(self) -> int:
        """FLOPs spent on asking what growth promises, since this was last asked."""
        return self._decider.take_flops()

    def latency_ms(self, inputs: Inputs) -> float:
        """Milliseconds of a forward pass of `growth.budget.latency_batch` samples, in evaluation mode, here."""
        samples = torch.arange(self.settings.budget.latency_batch) % len(inputs.args[0])
        batch = inputs.args[0][samples.to(inputs.args[0].device)]
        with untouched(self.model), torch.no_grad(), self.compute.autocast():
            self.model.eval()
            return measure_latency(lambda: self.model(batch), self.compute.device)

    def latency_within(self, inputs: Inputs, limit: float) -> tuple[float, int]:
        """That latency, measured again while it lies above `limit`, for load may pass; and how often that was."""
        found: list[float] = []
        while len(found) < LOOKS and min(found, default=math.inf) > limit:
            found.append(self.latency_ms(inputs))
        return min(found), len(found)

    def grow(self, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor, history: History) -> GrowthEvent:
        """One growth event, in place: model and optimizer state widen, or blocks are inserted; the function stays.

        Where an initializer changes the function by design, it stays with silent new units; they are given their values
        after that was verified, and the event says so. Optimizer state of rewritten entries stays as it is.

        Args:
            optimizer: its state grows along.
            inputs: of the growth batch, on the model's device.
            targets: of the growth batch.
            history: gains a GrowthRecord.

        A site is given up that would change the outputs by more than `growth.tolerance`, that surgery or the model
        refuses, or for which an initializer cannot do what its settings ask for by name. Where that leaves none of the
        event's sites, or the event breaks a limit which only the grown model shows, it is taken back (`undone`).

        Raises:
            SurgeryError: the event was taken back, and no site is left that could grow later.
            GrowthRefused: likewise, where initializers alone refused.

        After these and any other exception, an interrupt included, the model is as it was.
        """
        started = time.process_time()
        try:
            with self._all_or_nothing(history):
                event = self._judged(self._grow(optimizer, inputs, targets, history), inputs)
        except _Undone as undone:
            event = undone.event
            self.give_up(event.refused)
            if undone.error is not None and not self.ground.states:
                raise undone.error(
                    f"no site is left that can grow: the growth event at step {event.step} was rolled back\n"
                    f"{describe_refusals(event.refused)}"
                ) from None
        return replace(event, cpu_seconds=time.process_time() - started)

    def _judged(self, event: GrowthEvent, inputs: Inputs) -> GrowthEvent:
        """The event, if it may stand.

        Raises:
            _Undone: it may not.
        """
        limit = self.settings.budget.latency_ms
        if limit is None:
            return event
        latency, looks = self.latency_within(inputs, limit)
        spent = looks * LATENCY_CALLS * self.settings.budget.latency_batch * event.flops_after
        event = replace(event, latency_ms=latency, flops_spent=event.flops_spent + spent)
        if latency <= limit:
            return event
        reason = f"a forward pass took {latency:.3g} ms, more than growth.budget.latency_ms {limit:g}"
        given_up = [Refusal(g.site, g.old_width, f"at width {g.new_width} {reason}", None) for g in event.grown]
        given_up += [
            Refusal(key_of(g.place), g.old_depth, f"with {g.new_depth} blocks {reason}", None) for g in event.deepened
        ]
        raise _Undone(replace(event, undone=reason, refused=(*event.refused, *given_up)))

    def _grow(self, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor, history: History) -> GrowthEvent:
        decisions = self._decider.decisions(self.ground.states, history, self.measure)
        before, flops = self._look(inputs, targets), self._flops(inputs)
        event = self._nothing_yet(history.step, decisions, before, flops, len(targets))
        act = self._deepen if decisions[0].site in self.depths else self._widen
        event = act(event, optimizer, inputs, targets, before)
        after, grown_flops = self._look(inputs, targets, self._operation.seen), self._flops(inputs)
        change = function_change(before.observation, after.observation)
        grown = {g.site: (g.old_width, g.new_width) for g in event.grown}
        grown |= {key_of(g.place): (g.old_depth, g.new_depth) for g in event.deepened}
        history.growths.append(GrowthRecord(history.step, grown, None if self.settings.mode == "width" else flops))
        if self.settings.mode != "width":
            deeper = bool(event.deepened)
            ground = self.ground.found_again(self.model, self.edits, self._servers, deeper=deeper)
            self._stand_on(ground.costing(count_flops(self.model, inputs.args[0])))
        return replace(
            event,
            change=change,
            change_at_precision=after.rounded_change(before),
            loss_after=after.loss,
            params_after=count_params(self.model),
            flops_after=grown_flops,
            flops_spent=event.flops_spent + len(targets) * after.forwards * grown_flops,
        )

    def _nothing_yet(
        self, step: int, decisions: Sequence[GrowthDecision], before: Look, flops: int, samples: int
    ) -> GrowthEvent:
        """The event as it begins."""
        params = count_params(self.model)
        return GrowthEvent(
            step=step,
            grown=(),
            refused=(),
            change=function_change(before.observation, before.observation),
            change_at_precision=before.rounded_change(before),
            loss_before=before.loss,
            loss_after=before.loss,
            params_before=params,
            params_after=params,
            flops_before=flops,
            flops_after=flops,
            flops_spent=round(samples * before.forwards * flops),
            cpu_seconds=0.0,
            decisions=tuple(decisions),
        )

    def _widen(
        self, event: GrowthEvent, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor, before: Look
    ) -> GrowthEvent:
        """The sites of the decisions, wider."""
        chosen = tuple(self.sites[decision.site] for decision in event.decisions)
        measurement = Measurement(self.model, self.loss, inputs, targets, chosen)
        orders = orders_for(event.decisions, self.sites, self._servers, measurement, self.generator)
        spent = event.flops_spent + round(len(targets) * measurement.forwards * event.flops_before)
        event = replace(event, waiting=tuple(orders.waiting), refused=tuple(orders.refused), flops_spent=spent)
        if not orders.given:
            raise _Undone(replace(event, undone="no site could grow on this batch"), GrowthRefused)
        operation, by_site = self._operation, {order.site.name: order for order in orders.given}
        edit, refused = operation.perform(orders.given, optimizer, inputs, before, event.flops_before)
        spent += len(targets) * operation.flops_verifying
        event = replace(event, refused=(*orders.refused, *refused), flops_spent=spent)
        if edit is None:
            raise _Undone(replace(event, undone="no site could grow"), SurgeryError)
        failed = {refusal.name for refusal in event.refused}
        unserved = [one for one in self.candidates.unserved(self._servers) if one.name not in failed]  # at new widths
        event = replace(event, refused=(*event.refused, *unserved))
        self.ground = self.ground.without(event.refused)
        self._newborn = NewUnits(event.step, new_entries(self.model, edit))
        self.edits += edit.records
        return replace(event, grown=tuple(describe_growth(record, by_site[record.site]) for record in edit.records))

    def take_back(self, history: History) -> GrowthRecord:
        """Undo the last event, in place: model, optimizer state, sites, records and `history` as they were before it.

        Tensors that it has changed get the values from before it, whatever was trained since; all others keep theirs.

        Returns:
            What the history held of it.
        """
        assert self._before is not None, "there must have been an event"
        record, before, self._before = history.growths[-1], self._before, None
        self._restore(before, history)
        return record

    def give_up(self, refusals: Sequence[Refusal]) -> None:
        """Never again grow the sites and places that the refusals name."""
        self.ground = self.ground.without(refusals)

    def _deepen(
        self, event: GrowthEvent, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor, before: Look
    ) -> GrowthEvent:
        """The places of the decisions, deeper."""
        orders = [self.depths.order(decision.site, decision.num_new) for decision in event.decisions]
        refused = self._deepening.perform(orders, optimizer, inputs, before.observation)
        spent = event.flops_spent + len(targets) * self._deepening.passes * event.flops_before
        event = replace(event, refused=tuple(refused), flops_spent=spent)
        deepened = self._deepening.growths()
        if not deepened:
            raise _Undone(replace(event, undone="no place could become deeper"), SurgeryError)
        self.ground = self.ground.without(refused)
        new = {
            place: [(one, torch.ones_like(one, dtype=torch.bool)) for one in new if one.requires_grad]
            for place, new in self._deepening.new_parameters().items()
        }
        self._newborn = NewUnits(event.step, new)
        self.edits += self._deepening.records
        depths = self.depths.deeper({growth.place: growth.new_depth for growth in deepened})
        self.ground = replace(self.ground, depths=depths)
        return replace(event, deepened=deepened)

    def _stand_on(self, ground: Ground) -> None:
        self.ground, self.sites, self._decider.limits = ground, ground.sites, ground.limits

    @contextmanager
    def _all_or_nothing(self, history: History) -> Iterator[None]:
        """Put back all that an event changes if it does not come to its end, whatever stopped it."""
        before = self._before = _Before(
            self._new_operation(),
            self._new_deepening(),
            [(site, site.width) for site in self.sites],
            self.ground,
            self._newborn,
            len(self.edits),
            len(history.growths),
        )
        self.ground = self.ground.copied()
        try:
            yield
        except BaseException:
            self._restore(before, history)
            raise

    def _restore(self, before: _Before, history: History) -> None:
        before.deepening.take_back()
        before.operation.take_back()
        for site, width in before.widths:  # copies that were measured share the sites
            site.resize(width)
        del self.edits[before.edits :], history.growths[before.growths :]
        self._newborn = before.newborn
        self._stand_on(before.ground)

    @property
    def _operation(self) -> Operation:
        return self._under_way.operation

    @property
    def _deepening(self) -> Deepening:
        return self._under_way.deepening

    @property
    def _under_way(self) -> _Before:
        assert self._before is not None, "an event is under way"
        return self._before

    def _new_operation(self) -> Operation:
        return Operation(self.model, self.sites, self.compute, self.settings.tolerance)

    def _new_deepening(self) -> Deepening:
        return Deepening(self.model, self.compute, self.settings.tolerance)

    def new_gradients(self, step: int) -> dict[str, float]:
        """Gradient norm of each site's new entries; asked after optimizer step `step`, its gradients still in place.

        Empty but 1, 2, 4, ... 128 steps after an event, as long as no other event follows.
        """
        norms = self._newborn.gradient_norms(step)
        if self._newborn.grown_up(step):
            self._newborn = NewUnits()
        return norms

    def _flops(self, inputs: Inputs) -> int:
        return count_flops(self.model, inputs.args[0]).total

    @property
    def _servers(self) -> list[Initializer]:
        return [self.initializer] if self.fallback is None else [self.initializer, self.fallback]

    def _look(self, inputs: Inputs, targets: Tensor, seen: Observation | None = None) -> Look:
        return look_at(self.model, self.loss, self.compute, inputs, targets, seen)


@dataclass(frozen=True)
class _Before:
    """All that an event changes, as it was before; `operation` and `deepening` know of model and optimizer."""

    operation: Operation
    deepening: Deepening
    widths: list[tuple[GrowthSite, int]]
    ground: Ground
    newborn: NewUnits
    edits: int
    growths: int


class _Undone(Exception):
    """Carries an event that may not stand out of the transaction that puts everything back.

    `error`: what it is where no site is left; None where that is no error.
    """

    def __init__(self, event: GrowthEvent, error: type[GrowkitError] | None = None):
        super().__init__(event.undone)
        self.event, self.error = event, error
