"""The growth controller: sites, events, plans, doubt."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from controller_cases import CLOCK, Careless, Chain, Fixed, Unwilling, start, traced
from torch import Tensor, nn

from growkit.config.growth import (
    BudgetSettings,
    GradMaxSettings,
    NeverSettings,
    RandomSettings,
    RoundRobinSettings,
    ZeroSettings,
)
from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.growth import operation as operation_module
from growkit.growth.base import GrowthRecord
from growkit.growth.event import describe_refusals
from growkit.growth.initializers import any_graph
from growkit.surgery import function_change, observe, replay

# before training


def test_sites_that_no_initializer_serves_are_given_up_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_graph, "LARGEST_FAN_OUT", 3)
    run = start(initializer=GradMaxSettings()).prepare()
    assert [site.name for site in run.controller.tracked] == ["inner"]
    (refusal,) = [r for r in run.controller.refusals if r.name == "stem"]
    assert (
        "gradmax measures units that at most 3 entries read" in refusal.reason and "growth.fallback" in refusal.reason
    )
    assert f"stem (width 4): {refusal.reason}, at " in describe_refusals(run.controller.refusals)


def test_a_fallback_serves_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_graph, "LARGEST_FAN_OUT", 3)
    run = start(initializer=GradMaxSettings(), fallback=ZeroSettings()).prepare()
    event = run.grow()
    assert [(g.site, g.initializer, g.form) for g in event.grown] == [
        ("stem", "zero", "zero_fan_out"),
        ("inner", "gradmax", "zero_fan_in"),
    ]


def test_a_site_that_growth_takes_beyond_its_initializer_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(any_graph, "LARGEST_FAN_OUT", 10)  # stem is read by 9 entries, and by 11 when inner has grown
    run = start(initializer=GradMaxSettings()).prepare()
    first, second = run.grow(step=1), run.grow(step=2)
    assert [refusal.name for refusal in first.refused] == ["stem"]
    assert "these are read by 11" in first.refused[0].reason and "growth.fallback" in first.refused[0].reason
    assert [grown.site for grown in second.grown] == ["inner"]


def test_growth_without_any_site_is_an_error_that_lists_the_refusals() -> None:
    with pytest.raises(UserInputError, match=r"at least one site that can grow, got none\n  0 \(width 3\)"):
        start(Fixed).prepare()
    start(Fixed, when=NeverSettings()).prepare()


def test_only_the_sites_asked_for_are_tracked() -> None:
    run = start(sites=("inn*",), fallback=ZeroSettings()).prepare()
    assert [site.name for site in run.controller.tracked] == ["inner"]
    with pytest.raises(UserInputError, match="did you mean 'inner'"):
        start(sites=("iner",))


# events


def test_an_event_keeps_the_function_and_says_what_it_did() -> None:
    run = start(fallback=ZeroSettings()).prepare()
    run.train()
    before, params = observe(run.model, run.inputs), sum(p.numel() for p in run.model.parameters())
    event = run.grow(step=3)
    assert function_change(before, observe(run.model, run.inputs)).worst == event.change.worst <= 1e-5
    assert event.loss_after == pytest.approx(event.loss_before, rel=1e-5)
    assert [(g.site, g.old_width, g.new_width) for g in event.grown] == [("stem", 4, 6), ("inner", 6, 8)]
    assert (event.params_before, event.params_after) == (params, sum(p.numel() for p in run.model.parameters()))
    assert event.flops_after > event.flops_before and event.flops_spent > 0 and event.change_at_precision is None
    assert run.history.growths == [GrowthRecord(3, {"stem": (4, 6), "inner": (6, 8)})]
    run.train()


def test_new_units_learn_from_the_first_step_on() -> None:
    run = start(fallback=ZeroSettings()).prepare()
    run.grow(step=1)
    run.train()
    norms = run.controller.new_gradients(2)
    assert norms.keys() == {"stem", "inner"} and all(norm > 0 for norm in norms.values())


def test_new_units_are_watched_at_doubling_steps_until_they_are_grown_up() -> None:
    run = start(fallback=ZeroSettings()).prepare()
    run.grow(step=7)
    run.train()
    watched = [step for step in range(8, 8 + 600) if run.controller.new_gradients(step)]
    assert watched == [7 + 2**power for power in range(8)]


def test_the_gradient_of_new_units_is_that_of_the_entries_that_are_new() -> None:
    run = start(Chain).prepare()
    run.grow(step=1)
    run.train()
    fan_in, fan_out = run.model[0].weight.grad[4:], run.model[2].weight.grad[:, 4:]
    expected = torch.cat([fan_in.flatten(), run.model[0].bias.grad[4:], fan_out.flatten()]).norm()
    assert run.controller.new_gradients(2)["0"] == pytest.approx(float(expected))


def test_the_edits_rebuild_the_grown_model() -> None:
    run = start(Chain).prepare()
    for step in (1, 2, 3):
        run.train()
        run.grow(step)
    seed = copy.deepcopy(traced(Chain)[0])
    replay(seed, run.controller.edits)
    seed.load_state_dict(run.model.state_dict())
    assert torch.equal(seed(*run.inputs.args), run.model(*run.inputs.args))


def test_equal_streams_grow_equal_models() -> None:
    grown = []
    for _ in range(2):
        run = start(fallback=ZeroSettings(), initializer=RandomSettings()).prepare()
        run.grow()
        grown.append({name: tensor.clone() for name, tensor in run.model.state_dict().items()})
    assert all(torch.equal(grown[0][name], grown[1][name]) for name in grown[0])


def test_an_event_at_low_precision_records_its_change_there() -> None:
    run = start(compute=ComputePolicy("cpu", "bf16", False, "a test")).prepare()
    event = run.grow()
    assert event.change.worst <= 1e-5 and event.change_at_precision is not None and event.change_at_precision < 0.05


# the plan and the limits


@pytest.mark.parametrize("budget", [{}, {"params": 100}, {"flops": 170}], ids=str)
@pytest.mark.parametrize("where", [{}, {"where": RoundRobinSettings()}], ids=["all", "round robin"])
def test_the_plan_is_what_the_controller_does(budget: dict[str, int], where: dict[str, Any]) -> None:
    run = start(Chain, target=2.5, budget=BudgetSettings(**budget), **where).prepare()
    plan = run.controller.plan(CLOCK)
    assert plan is not None and plan.events
    done = []
    for step in range(1, CLOCK.total_steps + 1):
        run.history.step = step
        if run.controller.due(run.history):
            run.grow(step)
            done.append((step, {site.name: site.width for site in run.controller.tracked}))
        graph = run.controller.sites.graph
        assert graph.params() <= budget.get("params", graph.params())
        assert graph.flops() <= budget.get("flops", graph.flops())
    assert [(event.step, dict(event.widths)) for event in plan.events] == done
    assert plan.reaches_target == (not budget)


def test_growth_stops_where_the_next_event_would_break_the_budget() -> None:
    seed = sum(p.numel() for p in Chain().parameters())
    run = start(Chain, budget=BudgetSettings(params=seed)).prepare()
    run.history.step = 1
    assert not run.controller.due(run.history)
    assert run.history.ended == "; ".join(
        f"{name} with 2 more units: growth.budget.params is 79, and {needed} would be needed"
        for name, needed in (("0", 99), ("2", 97), ("4", 95))
    )
    roomy = start(Chain, budget=BudgetSettings(params=seed + 30)).prepare()
    roomy.history.step = 1
    assert roomy.controller.due(roomy.history)


@pytest.mark.parametrize("wrong", ["0", "2", "4"])
def test_a_site_that_would_change_the_outputs_is_rolled_back_and_given_up(wrong: str) -> None:
    """Its neighbours share weights with it and still grow, as at an event without it."""
    run = start(Chain).prepare()
    run.controller.initializer = Careless((wrong,))
    run.train()
    before = observe(run.model, run.inputs)
    event = run.grow()
    others = [name for name in ("0", "2", "4") if name != wrong]
    assert [grown.site for grown in event.grown] == others and run.history.growths[0].widths.keys() == set(others)
    assert [(refusal.name, refusal.width) for refusal in event.refused] == [(wrong, 4)]
    assert "more than growth.tolerance 1e-05" in event.refused[0].reason
    assert [site.name for site in run.controller.tracked] == others and run.controller.sites[wrong].width == 4
    assert function_change(before, observe(run.model, run.inputs)).worst <= 1e-5
    run.train()
    assert run.controller.new_gradients(2).keys() == set(others)
    assert [grown.site for grown in run.grow(2).grown] == others


def test_an_event_that_keeps_no_site_is_an_error_and_changes_nothing() -> None:
    run = start(Chain).prepare()
    run.controller.initializer = Careless(("0", "2", "4"))
    run.train()
    before = copy.deepcopy(run.model.state_dict())
    momentum = [run.optimizer.state[p]["momentum_buffer"].clone() for p in run.model.parameters()]
    told = r"no site is left that can grow: .* at step 1 was rolled back\n  0 \(width 4\): it changed the outputs by"
    with pytest.raises(SurgeryError, match=told):
        run.grow()
    after = run.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    now = [run.optimizer.state[p]["momentum_buffer"] for p in run.model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(momentum, now, strict=True))
    assert not run.history.growths and not run.controller.edits


def test_a_site_that_surgery_refuses_is_given_up_and_the_others_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    run, real = start(Chain).prepare(), operation_module.grow

    def refuses_one(model: Any, growths: Any, **given: Any) -> Any:
        if any(growth.site.name == "2" for growth in growths):
            raise GrowthRefused("a test")
        return real(model, growths, **given)

    monkeypatch.setattr(operation_module, "grow", refuses_one)
    event = run.grow()
    assert [(one.name, one.reason) for one in event.refused] == [("2", "surgery cannot widen it: a test")]
    assert [grown.site for grown in event.grown] == ["0", "4"] and event.undone is None
    assert [site.name for site in run.controller.tracked] == ["0", "4"]


def test_a_site_whose_initializer_refuses_is_given_up_and_the_others_grow() -> None:
    run = start(Chain).prepare()
    run.controller.initializer = Unwilling(run.controller.initializer, ("2",), because=GrowthRefused)
    event = run.grow()
    assert [(one.name, one.reason) for one in event.refused] == [("2", "no gradient on this batch")]
    assert [grown.site for grown in event.grown] == ["0", "4"] and event.waiting == ()
    assert [grown.site for grown in run.grow(2).grown] == ["0", "4"]


@pytest.mark.parametrize("refused", ["by surgery", "by its initializer"])
def test_an_event_of_one_site_that_is_refused_leaves_the_others_their_events(refused: str) -> None:
    run = start(Chain, where=RoundRobinSettings()).prepare()
    served = run.controller.initializer
    because = Careless(("0",)) if refused == "by surgery" else Unwilling(served, ("0",), because=GrowthRefused)
    run.controller.initializer = because
    event = run.grow()
    assert event.undone is not None and [one.name for one in event.refused] == ["0"] and event.flops_spent > 0
    assert event.flops_after == event.flops_before and run.history.growths == []
    assert [[grown.site for grown in run.grow(step).grown] for step in (2, 3, 4)] == [["2"], ["4"], ["2"]]


class Brittle(Chain):
    """Fails where its second hidden layer is wider than it was."""

    def forward(self, x: Tensor) -> Tensor:
        if self[2].weight.shape[0] > 4:
            raise RuntimeError("too wide for me")
        return super().forward(x)


def test_a_model_that_fails_at_its_new_width_is_rolled_back() -> None:
    run = start(Chain, fallback=ZeroSettings(), initializer=RandomSettings(form="zero_fan_out")).prepare()
    run.model.__class__ = Brittle
    event = run.grow()
    assert [refusal.name for refusal in event.refused] == ["2"]
    assert "RuntimeError: too wide for me" in event.refused[0].reason
    assert [site.width for site in run.controller.sites] == [6, 4, 6]


class ReluChain(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3))


def test_what_only_a_batch_shows_is_refused_or_left_to_the_fallback() -> None:
    by_name = GradMaxSettings(form="zero_fan_in")
    run = start(ReluChain, initializer=by_name).prepare()
    with pytest.raises(GrowthRefused, match=r"no site is left that can grow: .*\n.*form zero_fan_in needs"):
        run.grow()
    assert run.controller.sites["0"].width == 4
    event = start(ReluChain, initializer=by_name, fallback=ZeroSettings()).prepare().grow()
    assert [(grown.initializer, grown.form) for grown in event.grown] == [("zero", "zero_fan_out")]


# frozen weights


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("initializer", [GradMaxSettings(), ZeroSettings()], ids=["gradmax", "zero"])
def test_sites_with_a_frozen_weight_are_given_up(layer: int, initializer: Any) -> None:
    run = start(Chain, initializer=initializer)
    run.model[layer].weight.requires_grad_(False)
    run.prepare()
    beside = {"0", "2"} if layer == 2 else {"0"}
    reasons = {r.name: r.reason for r in run.controller.refusals if r.name in ("0", "2", "4")}
    assert reasons.keys() == beside
    assert all(
        f"its weights are frozen (requires_grad=False), so new units would not train: {layer}.weight" == reason
        for reason in reasons.values()
    )
    assert {grown.site for grown in run.grow().grown} == {"0", "2", "4"} - beside
    run.train()


def test_a_frozen_bias_is_no_reason_to_refuse() -> None:
    run = start(Chain)
    run.model[0].bias.requires_grad_(False)
    run.prepare()
    assert {grown.site for grown in run.grow().grown} == {"0", "2", "4"}
    run.train()


def test_a_model_that_is_frozen_throughout_says_so() -> None:
    run = start(Chain)
    run.model.requires_grad_(False)
    with pytest.raises(UserInputError, match=r"at least one site that can grow, got none\n(.*\n)*.*weights are frozen"):
        run.prepare()


# costs


def test_verifying_is_paid_for() -> None:
    """An event without measurements: 3 looks before, 2 passes per attempt at its widths, and the loss after."""
    run = start(Chain).prepare()
    run.controller.initializer = Careless(())
    event = run.grow()
    assert event.flops_spent == 12 * (3 * event.flops_before + (2 + 1) * event.flops_after)
    again = start(Chain).prepare()
    again.controller.initializer = Careless(("2",))
    event, graph = again.grow(), again.controller.sites.graph
    tried = [{"0": 6, "2": 6, "4": 6}, {"0": 6}, {"0": 6, "2": 6}, {"0": 6, "4": 6}, {"0": 6, "4": 6}]
    attempts = sum(2 * graph.flops({"0": 4, "2": 4, "4": 4} | widths) for widths in tried)
    assert event.flops_spent == 12 * (3 * event.flops_before + attempts + event.flops_after)


def test_a_site_that_the_batch_does_not_serve_waits_for_a_later_event() -> None:
    run = start(Chain).prepare()
    served = run.controller.initializer
    run.controller.initializer = Unwilling(served, ("2",))
    event = run.grow()
    assert [(one.name, one.reason) for one in event.waiting] == [("2", "no gradient on this batch")]
    assert [one.site for one in event.grown] == ["0", "4"] and event.refused == () and event.undone is None
    run.controller.initializer = served
    assert [one.site for one in run.grow(2).grown] == ["0", "2", "4"]


def test_an_event_whose_sites_all_wait_changes_nothing_and_says_so() -> None:
    run = start(Chain).prepare()
    served, widths = run.controller.initializer, [site.width for site in run.controller.sites]
    run.controller.initializer = Unwilling(served, ("0", "2", "4"))
    event = run.grow()
    assert event.undone == "no site could grow on this batch" and len(event.waiting) == 3 and event.flops_spent > 0
    assert [site.width for site in run.controller.sites] == widths and run.history.growths == []
    run.controller.initializer = served
    assert len(run.grow(2).grown) == 3
