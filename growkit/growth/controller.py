"""The growth controller: decides, measures, initialises, operates, verifies, and writes down what happened."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from growkit.config.growth import GrowthSettings
from growkit.cost import LATENCY_CALLS, Flops, count_flops, count_params, measure_latency
from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import (
    Clock,
    Extended,
    GrowthDecision,
    GrowthRecord,
    History,
    Initializer,
    Nothing,
    Prospects,
    SiteState,
)
from growkit.growth.decider import Decider
from growkit.growth.event import GrowthEvent, SiteGrowth, describe_refusals
from growkit.growth.initializers import build_initializer
from growkit.growth.limits import Limits
from growkit.growth.plan import GrowthPlan, joint_target, plan_growth, resolve_targets, select_sites
from growkit.growth.policy import Policy
from growkit.growth.rewriting import Rewriting
from growkit.growth.statistics import Loss, Measurement
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
    lookup,
    new_entries,
    observe,
    untouched,
    verify_sites,
)

__all__ = ["GrowthController", "GrowthEvent", "SiteGrowth", "describe_refusals"]


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
        tracked: the sites that may grow, in the order of the graph. refusals: those that may not, with the reason.
        edits: the record of every edit so far, for replay.
        measure: measures what growth promises, for policies that ask; None where nothing can.
    """

    model: nn.Module
    sites: Sites
    settings: GrowthSettings
    loss: Loss
    compute: ComputePolicy
    generator: torch.Generator
    tracked: list[GrowthSite] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    edits: list[EditRecord] = field(default_factory=list)
    measure: Callable[[], Prospects] | None = None

    def __post_init__(self) -> None:
        self.policy = Policy.build(self.settings, self.generator.initial_seed())
        graph = self.sites.graph
        self._decider = Decider(self.policy, Limits(self.settings.budget, graph.params, graph.flops))
        self.initializer = build_initializer(self.settings.initializer)
        self.fallback = None if self.settings.fallback is None else build_initializer(self.settings.fallback)
        self.tracked = select_sites(list(self.sites), self.settings.sites)
        self.targets = resolve_targets(self.tracked, self.settings.target)
        self.refusals = list(self.sites.refusals)
        self.counted = Flops(self.sites.graph.flops(), ())  # of the seed, per sample
        self.not_checked: tuple[str, ...] = ()  # what the trial of the sites left out
        self._watched: dict[str, list[tuple[nn.Parameter, Tensor]]] = {}
        self._open: Edit | None = None  # the edit of the event under way
        self._rewriting = Rewriting()  # and what it wrote before
        self._flops_verifying = 0  # per sample, of the event under way

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
        self._give_up([refusal for site in self.tracked if (refusal := _frozen(self.model, site)) is not None])
        unserved = [
            Refusal(site.name, site.width, f"{reason} (growth.fallback names what would serve it)", site.location)
            for site in self.tracked
            if self._server(site) is None and (reason := self.initializer.refuses(site))
        ]
        self._give_up(unserved)
        self._try_out(inputs)
        if not self.tracked and self.settings.when.name != "never":
            raise UserInputError(
                f"growth needs at least one site that can grow, got none\n{describe_refusals(self.refusals)}"
            )

    def _try_out(self, inputs: Inputs) -> None:
        """Keep the sites that a trial on a copy shows to be safe; some of them are joint from then on."""
        verdict = verify_sites(self.model, self.tracked, inputs)
        self.refusals += verdict.refusals
        self.not_checked = verdict.not_checked
        joint = [site for site in verdict.sites if site not in self.tracked]
        given, names = self.targets, {site.name for site in self.sites}
        self.targets = {name: target for name, target in given.items() if name in names}
        for site in joint:
            if isinstance(self.settings.target, Mapping):  # final sizes are given for the sites as they were found
                self.targets[site.name] = joint_target(site, given)
            else:
                self.targets |= resolve_targets([site], self.settings.target)
        self.tracked = list(verdict.sites)
        self._give_up([refusal for site in self.tracked if (refusal := self._short_of_a_copy(site)) is not None])

    def _short_of_a_copy(self, site: GrowthSite) -> Refusal | None:
        """A site that could only be doubled, where the target asks for more units but not for so many."""
        wanted = self.settings.target
        if isinstance(wanted, Mapping) or not site.by_copies or not 1 < wanted < 2:
            return None
        reason = f"can only grow by whole copies of its units, and growth.target {wanted:g} asks for less than one"
        return Refusal(site.name, site.width, reason, site.location)

    @property
    def flops_beyond_graph(self) -> int:
        """FLOPs per sample of the seed that the graph has no formula for, taken as constant; may be negative."""
        return self.counted.total - self.sites.graph.flops({site.name: site.seed_width for site in self.sites})

    def plan(self, clock: Clock) -> GrowthPlan | None:
        """The events to come, if the trigger knows them in advance."""
        return plan_growth(self.policy, self._states(), clock, self._decider.limits)

    def due(self, history: History) -> bool:
        """Whether to grow now: the trigger fires, and a site has room within the budget.

        Asked again at the same step it gives the same answer; `history.ended` says once nothing will grow any more.
        """
        return self._decider.due(self._states(), history, self.measure)

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
            self._give_up(event.refused)
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
        decisions = self._decider.decisions(self._states(), history, self.measure)
        chosen = tuple(self.sites[decision.site] for decision in decisions)
        measurement = Measurement(self.model, self.loss, inputs, targets, chosen)
        orders = [self._order(self.sites[d.site], d, measurement) for d in decisions]
        before, params, flops = self._look(inputs, targets), count_params(self.model), self._flops(inputs)
        edit, refused = self._operate(orders, optimizer, inputs, before, flops)
        after, records, grown_flops = self._look(inputs, targets), edit.records, self._flops(inputs)
        change, by_site = function_change(before.observation, after.observation), {o.site.name: o for o in orders}
        if change.worst == float("inf"):  # checked with silent units only, where the change is by design
            raise SurgeryError("the growth event was rolled back, for its new units make outputs that are not finite")
        event = GrowthEvent(
            step=history.step,
            grown=tuple(_describe(record, by_site[record.site]) for record in records),
            refused=tuple(refused),
            change=change,
            change_at_precision=None if before.rounded is None else _eval_change(before.rounded, after.rounded),
            loss_before=before.loss,
            loss_after=after.loss,
            params_before=params,
            params_after=count_params(self.model),
            flops_before=flops,
            flops_after=grown_flops,
            flops_spent=round(
                len(targets) * ((measurement.forwards + before.forwards) * flops + self._flops_verifying)
                + len(targets) * after.forwards * grown_flops
            ),
            cpu_seconds=0.0,
            decisions=tuple(decisions),
        )
        self._watched = new_entries(self.model, edit)
        self.edits += records
        history.growths.append(GrowthRecord(history.step, {r.site: (r.old_width, r.new_width) for r in records}))
        return event

    @contextmanager
    def _all_or_nothing(self, history: History) -> Iterator[None]:
        """Put back all that an event changes if it does not come to its end, whatever stopped it."""
        self._open, self._rewriting, self._flops_verifying = None, Rewriting(), 0
        widths = [(site, site.width) for site in self.sites]
        refusals, tracked, watched = list(self.refusals), list(self.tracked), self._watched
        edits, growths = len(self.edits), len(history.growths)
        try:
            yield
        except BaseException:
            self._take_back()
            for site, width in widths:  # copies that were measured share the sites
                site.resize(width)
            del self.edits[edits:], history.growths[growths:]
            self.refusals, self.tracked, self._watched = refusals, tracked, watched
            raise

    def _take_back(self) -> None:
        if self._open is not None and not self._open.undone:
            self._open.undo()
        self._rewriting.undo()

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

    def _states(self) -> list[SiteState]:
        return [
            SiteState(site.name, site.seed_width, site.width, self.targets[site.name], site.by_copies)
            for site in self.tracked
        ]

    def _server(self, site: GrowthSite) -> Initializer | None:
        candidates = [self.initializer] if self.fallback is None else [self.initializer, self.fallback]
        return next((initializer for initializer in candidates if initializer.refuses(site) is None), None)

    def _order(self, site: GrowthSite, decision: GrowthDecision, measurement: Measurement) -> _Order:
        server = self._server(site)
        assert server is not None, "prepare() gives up sites without an initializer"
        try:
            extended = server.extend(site, decision.num_new, measurement, self.generator)
        except GrowthRefused as refused:  # facts that only a batch shows
            if self.fallback is None or server is self.fallback:
                raise
            server, extended = self.fallback, self.fallback.extend(site, decision.num_new, measurement, self.generator)
            extended = replace(extended, reason=f"fallback, for {refused}")
        return _Order(site, decision.num_new, server, extended)

    def _operate(
        self, orders: list[_Order], optimizer: torch.optim.Optimizer, inputs: Inputs, before: _Look, flops: int
    ) -> tuple[Edit, list[Refusal]]:
        """All sites at once; if that changes the outputs, one more at a time, giving up those that do."""
        outcome = first = self._verified(orders, optimizer, inputs, before, flops)
        if isinstance(outcome, Edit):
            return self._as_designed(orders, outcome, optimizer), []
        kept, refused = [], []
        for order in orders:
            # together with those before it, not after them: the new slices are made for the shapes before the event
            outcome = self._verified([*kept, order], optimizer, inputs, before, flops)
            if isinstance(outcome, Edit):
                self._take_back()
                kept.append(order)
            else:
                refused.append(Refusal(order.site.name, order.site.width, outcome, order.site.location))
        if not kept:
            raise SurgeryError(f"the growth event was rolled back, for {first}\n{describe_refusals(refused)}")
        edit = self._verified(kept, optimizer, inputs, before, flops)
        assert isinstance(edit, Edit), "it was verified a moment ago"
        self._give_up(refused)
        return self._as_designed(kept, edit, optimizer), refused

    def _verified(
        self, orders: Sequence[_Order], optimizer: torch.optim.Optimizer, inputs: Inputs, before: _Look, flops: int
    ) -> Edit | str:
        graph_flops = self.sites.graph.flops()
        try:
            self._open = self._carry_out([order.kept for order in orders], optimizer)
        except SurgeryError as error:
            self._take_back()
            return f"surgery cannot widen it: {error}"
        # one pass in eval and one in train mode; what the graph leaves out does not change with the widths
        self._flops_verifying += 2 * (flops + self.sites.graph.flops() - graph_flops)
        try:
            self.compute.place(self.model)
            align_state(optimizer)
            change = function_change(before.observation, observe(self.model, inputs))
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            self._take_back()
            return f"the model fails at its new width: {type(error).__name__}: {error}"
        if change.worst <= self.settings.tolerance:
            return self._open
        self._take_back()
        return (
            f"it changed the outputs by {change.worst:.2e} of their size, "
            f"more than growth.tolerance {self.settings.tolerance:g}"
        )

    def _as_designed(self, orders: Sequence[_Order], verified: Edit, optimizer: torch.optim.Optimizer) -> Edit:
        """The same event with the values of units that were verified while silent."""
        if all(order.initializer.preserves for order in orders):
            return verified
        self._take_back()
        self._open = self._carry_out(orders, optimizer)
        self.compute.place(self.model)
        align_state(optimizer)
        return self._open

    def _carry_out(self, orders: Sequence[_Order], optimizer: torch.optim.Optimizer) -> Edit:
        self._rewriting.write(self.model, {order.site.name: order.extended.rewrites for order in orders})
        growths = [Growth(order.site, order.num_new, Extension(order.extended.values)) for order in orders]
        return grow(self.model, growths, optimizer=optimizer)

    def _look(self, inputs: Inputs, targets: Tensor) -> _Look:
        with untouched(self.model), torch.no_grad():
            self.model.eval()
            loss = float(self.loss(self.model(*inputs.args, **(inputs.kwargs or {})), targets))
            rounded = None
            if self.compute.precision != "fp32":
                with self.compute.autocast():
                    rounded = [output.float() for output in inputs.call(self.model)]
        return _Look(observe(self.model, inputs), loss, rounded, forwards=3 if rounded is None else 4)

    def _give_up(self, refusals: Sequence[Refusal]) -> None:
        names = {refusal.name for refusal in refusals}
        self.refusals += refusals
        self.tracked = [site for site in self.tracked if site.name not in names]


class _Undone(Exception):
    """Carries an event that may not stand out of the transaction that puts everything back."""

    def __init__(self, event: GrowthEvent):
        super().__init__(event.undone)
        self.event = event


@dataclass(frozen=True)
class _Order:
    """What is to be done at one site, and by whom."""

    site: GrowthSite
    num_new: int
    initializer: Initializer
    extended: Extended

    @property
    def kept(self) -> _Order:
        """What of it keeps the function: all, or that with silent units where the function is to change."""
        if self.initializer.preserves:
            return self
        return replace(self, extended=self.extended.silenced(self.site, self.num_new))


@dataclass(frozen=True)
class _Look:
    observation: Observation
    loss: float
    rounded: list[Tensor] | None
    forwards: int  # passes it took, for the FLOPs ledger


def _eval_change(before: list[Tensor], after: list[Tensor] | None) -> float:
    assert after is not None
    return function_change(Observation(before, []), Observation(after, [])).eval


def _frozen(model: nn.Module, site: GrowthSite) -> Refusal | None:
    """A refusal for a site with a frozen weight: new units in it would never train. Biases may be frozen."""
    ends = {m.names[0]: lookup(model, m.names[0], m.kind) for m in (*site.producers, *site.consumers)}
    weights = {name: tensor for name, tensor in ends.items() if tensor.dim() > 1} or ends
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    if not frozen:
        return None
    reason = f"its weights are frozen (requires_grad=False), so new units would not train: {', '.join(frozen)}"
    return Refusal(site.name, site.width, reason, site.location)


def _describe(record: EditRecord, order: _Order) -> SiteGrowth:
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
