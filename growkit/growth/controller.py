"""The growth controller: decides, measures, initialises, operates, verifies, and writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from growkit.config.growth import GrowthSettings
from growkit.cost import LATENCY_CALLS, Flops, count_flops, count_params, measure_latency
from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, GrowthWaits, SurgeryError, UserInputError
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import Clock, GrowthDecision, GrowthRecord, History, Initializer, Nothing, Prospects
from growkit.growth.candidates import Candidates
from growkit.growth.decider import Decider
from growkit.growth.event import GrowthEvent, describe_refusals
from growkit.growth.initializers import build_initializer
from growkit.growth.limits import Limits
from growkit.growth.operation import Look, Operation, Order, describe_growth, look_at
from growkit.growth.plan import GrowthPlan, plan_growth
from growkit.growth.policy import Policy
from growkit.growth.statistics import Loss, Measurement
from growkit.surgery import EditRecord, Inputs, function_change, new_entries, untouched

__all__ = ["GrowthController"]


@dataclass
class GrowthController:
    """Grows one model through one run.

    Attributes:
        model: grown in place.
        sites: its graph.
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
    edits: list[EditRecord] = field(default_factory=list)
    measure: Callable[[], Prospects] | None = None

    def __post_init__(self) -> None:
        self.policy = Policy.build(self.settings, self.generator.initial_seed())
        graph = self.sites.graph
        limits = Limits(self.settings.budget, graph.params, graph.flops, self.settings.trial)
        self._decider = Decider(self.policy, limits)
        self.initializer = build_initializer(self.settings.initializer)
        self.fallback = None if self.settings.fallback is None else build_initializer(self.settings.fallback)
        self.candidates = Candidates.of(self.sites, self.settings)
        self.counted = Flops(self.sites.graph.flops(), ())  # of the seed, per sample
        self._watched: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        self._before: _Before | None = None  # the last event

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

        Args:
            inputs: an example batch of at least 2 samples.

        Raises:
            UserInputError: no site is left although growth is wanted.
        """
        self.counted = count_flops(self.model, inputs.args[0])
        graph, beyond = self.sites.graph, self.flops_beyond_graph
        self._decider.limits = replace(self._decider.limits, flops=lambda widths: graph.flops(widths) + beyond)
        self.candidates.give_up_untrainable(self.model)
        self.candidates.give_up_unserved(self._servers)
        self.candidates.try_out(self.model, inputs, self.sites, self.settings)
        if self.settings.target is None:
            self.candidates.let_budget_bound(self._decider.limits)
        if not self.tracked and self.settings.when.name != "never":
            raise UserInputError(
                f"growth needs at least one site that can grow, got none\n{describe_refusals(self.refusals)}"
            )

    @property
    def flops_beyond_graph(self) -> int:
        """FLOPs per sample of the seed that the graph has no formula for, taken as constant; may be negative."""
        return self.counted.total - self.sites.graph.flops({site.name: site.seed_width for site in self.sites})

    def plan(self, clock: Clock) -> GrowthPlan | None:
        """The events to come, if the trigger knows them in advance, and they will stand."""
        if self.settings.trial is not None:
            return None
        return plan_growth(self.policy, self.candidates.states(), clock, self._decider.limits)

    def due(self, history: History) -> bool:
        """Whether to grow now: the trigger fires, and a site has room within the budget.

        Asked again at the same step it gives the same answer; `history.ended` says once nothing will grow any more.
        """
        return self._decider.due(self.candidates.states(), history, self.measure)

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

    def grow(self, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor, history: History) -> GrowthEvent:
        """One growth event, in place: model and optimizer state widen, and the function stays.

        Where an initializer changes the function by design, it stays with silent new units; they are given their values
        after that was verified, and the event says so. Optimizer state of rewritten entries stays as it is.

        Args:
            optimizer: its state grows along.
            inputs: of the growth batch, on the model's device.
            targets: of the growth batch.
            history: gains a GrowthRecord.

        Raises:
            SurgeryError: every chosen site would have changed the outputs by more than `growth.tolerance`, or with the
                values of an initializer that changes them by design they are not finite; nothing is changed.
            GrowthRefused: an initializer cannot do what its settings ask for by name; nothing is changed.

        After any other exception, an interrupt included, nothing is changed either. An event that breaks a limit which
        only the grown model shows is taken back, and says so (`undone`); its sites are given up.
        """
        started = time.process_time()
        try:
            with self._all_or_nothing(history):
                event = self._judged(self._grow(optimizer, inputs, targets, history), inputs)
        except _Undone as undone:
            event = undone.event
            self.candidates.give_up(event.refused)
        return replace(event, cpu_seconds=time.process_time() - started)

    def _judged(self, event: GrowthEvent, inputs: Inputs) -> GrowthEvent:
        """The event, if it may stand.

        Raises:
            _Undone: it may not.
        """
        limit = self.settings.budget.latency_ms
        if limit is None:
            return event
        latency = self.latency_ms(inputs)
        spent = LATENCY_CALLS * self.settings.budget.latency_batch * event.flops_after
        event = replace(event, latency_ms=latency, flops_spent=event.flops_spent + spent)
        if latency <= limit:
            return event
        reason = f"a forward pass took {latency:.3g} ms, more than growth.budget.latency_ms {limit:g}"
        given_up = [Refusal(g.site, g.old_width, f"at width {g.new_width} {reason}", None) for g in event.grown]
        raise _Undone(replace(event, undone=reason, refused=(*event.refused, *given_up)))

    def _grow(self, optimizer: torch.optim.Optimizer, inputs: Inputs, targets: Tensor, history: History) -> GrowthEvent:
        decisions = self._decider.decisions(self.candidates.states(), history, self.measure)
        chosen = tuple(self.sites[decision.site] for decision in decisions)
        measurement = Measurement(self.model, self.loss, inputs, targets, chosen)
        orders, waiting = self._orders(decisions, measurement)
        before, params, flops = self._look(inputs, targets), count_params(self.model), self._flops(inputs)
        event = GrowthEvent(
            step=history.step,
            grown=(),
            refused=(),
            waiting=tuple(waiting),
            change=function_change(before.observation, before.observation),
            change_at_precision=before.rounded_change(before),
            loss_before=before.loss,
            loss_after=before.loss,
            params_before=params,
            params_after=params,
            flops_before=flops,
            flops_after=flops,
            flops_spent=round(len(targets) * (measurement.forwards + before.forwards) * flops),
            cpu_seconds=0.0,
            decisions=tuple(decisions),
        )
        if not orders:
            raise _Undone(replace(event, undone="no site could grow on this batch"))
        assert self._before is not None, "an event is under way"
        operation = self._before.operation
        edit, refused = operation.perform(orders, optimizer, inputs, before, flops)
        self.candidates.give_up(refused)
        after, grown_flops, by_site = self._look(inputs, targets), self._flops(inputs), {o.site.name: o for o in orders}
        change = function_change(before.observation, after.observation)
        if change.worst == float("inf"):  # checked with silent units only, where the change is by design
            raise SurgeryError("the growth event was rolled back, for its new units make outputs that are not finite")
        self._watched = new_entries(self.model, edit)
        self.edits += edit.records
        grown = {record.site: (record.old_width, record.new_width) for record in edit.records}
        history.growths.append(GrowthRecord(history.step, grown))
        looking = operation.flops_verifying + after.forwards * grown_flops
        return replace(
            event,
            grown=tuple(describe_growth(record, by_site[record.site]) for record in edit.records),
            refused=tuple(refused),
            change=change,
            change_at_precision=after.rounded_change(before),
            loss_after=after.loss,
            params_after=count_params(self.model),
            flops_after=grown_flops,
            flops_spent=event.flops_spent + len(targets) * looking,
        )

    def take_back(self, history: History) -> None:
        """Undo the last event, in place: model, optimizer state, sites, records and `history` as they were before it.

        Tensors that it has changed get the values from before it, whatever was trained since; all others keep theirs.
        """
        assert self._before is not None, "there must have been an event"
        self._restore(self._before, history)
        self._before = None

    @contextmanager
    def _all_or_nothing(self, history: History) -> Iterator[None]:
        """Put back all that an event changes if it does not come to its end, whatever stopped it."""
        before = self._before = _Before(
            Operation(self.model, self.sites, self.compute, self.settings.tolerance),
            [(site, site.width) for site in self.sites],
            self.candidates,
            self._watched,
            len(self.edits),
            len(history.growths),
        )
        self.candidates = replace(self.candidates, refusals=list(self.candidates.refusals))
        try:
            yield
        except BaseException:
            self._restore(before, history)
            raise

    def _restore(self, before: _Before, history: History) -> None:
        before.operation.take_back()
        for site, width in before.widths:  # copies that were measured share the sites
            site.resize(width)
        del self.edits[before.edits :], history.growths[before.growths :]
        self.candidates, self._watched = before.candidates, before.watched

    def first_step_gradients(self) -> dict[str, float]:
        """Gradient norm of each freshly grown site's new entries; asked after the first backward pass, then empty."""
        norms = {
            site: float(
                torch.stack(
                    [(p.grad * mask).norm() for p, mask in entries if p.grad is not None] or [torch.zeros(())]
                ).norm()
            )
            for site, entries in self._watched.items()
        }
        self._watched = {}
        return norms

    def _flops(self, inputs: Inputs) -> int:
        return count_flops(self.model, inputs.args[0]).total

    @property
    def _servers(self) -> list[Initializer]:
        return [self.initializer] if self.fallback is None else [self.initializer, self.fallback]

    def _orders(
        self, decisions: Sequence[GrowthDecision], measurement: Measurement
    ) -> tuple[list[Order], list[Refusal]]:
        """What is to be done at the sites, and which of them must wait, for what the batch shows."""
        orders, waiting = [], []
        for decision in decisions:
            site = self.sites[decision.site]
            try:
                orders.append(self._order(site, decision.num_new, measurement))
            except GrowthWaits as reason:
                waiting.append(Refusal(site.name, site.width, str(reason), site.location))
        return orders, waiting

    def _order(self, site: GrowthSite, num_new: int, measurement: Measurement) -> Order:
        first, *others = [server for server in self._servers if server.refuses(site) is None]
        try:
            return Order(site, num_new, first, first.extend(site, num_new, measurement, self.generator))
        except GrowthRefused as refused:  # facts that only a batch shows
            if not others:
                raise
            extended = others[0].extend(site, num_new, measurement, self.generator)
            return Order(site, num_new, others[0], replace(extended, reason=f"fallback, for {refused}"))

    def _look(self, inputs: Inputs, targets: Tensor) -> Look:
        return look_at(self.model, self.loss, self.compute, inputs, targets)


@dataclass(frozen=True)
class _Before:
    """All that an event changes, as it was before; `operation` knows of the model and the optimizer."""

    operation: Operation
    widths: list[tuple[GrowthSite, int]]
    candidates: Candidates
    watched: dict[str, list[tuple[nn.Parameter, Tensor]]]
    edits: int
    growths: int


class _Undone(Exception):
    """Carries an event that may not stand out of the transaction that puts everything back."""

    def __init__(self, event: GrowthEvent):
        super().__init__(event.undone)
        self.event = event
