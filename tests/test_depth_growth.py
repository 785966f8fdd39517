"""Growth events that insert blocks: what holds at the event, and what is put back if it does not stand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from depth_cases import outputs, same, snapshot
from depth_growth_cases import start

from growkit.config.growth import BudgetSettings, FixedSettings, RoundRobinSettings
from growkit.cost import count_flops, count_params
from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.growth import deepening
from growkit.growth.base import Clock, History, Nothing
from growkit.growth.limits import train_flops
from growkit.optim import SAM, AdaBound

ROUND = RoundRobinSettings()


def test_an_event_inserts_a_block_at_every_place_and_keeps_the_function():
    run = start()
    before = outputs(run.model, *run.inputs.args)
    event = run.grow()
    assert [(g.place, g.old_depth, g.new_depth, g.modules) for g in event.deepened] == [
        ("blocks.0", 1, 2, ("blocks.1",)),
        ("blocks.1", 1, 2, ("blocks.3",)),
    ]
    assert torch.equal(outputs(run.model, *run.inputs.args), before)
    assert event.params_after == count_params(run.model) == event.params_before + sum(g.params for g in event.deepened)
    assert event.flops_after == count_flops(run.model, run.inputs.args[0]).total
    assert event.change.worst == 0.0 and event.loss_after == event.loss_before


def test_several_blocks_at_once_stand_in_a_row_with_weights_of_their_own():
    run = start(blocks=2)
    (first, _) = run.grow().deepened
    assert first.modules == ("blocks.1", "blocks.2") and len(set(first.seeds)) == 2
    one, two = (run.model.get_submodule(name).inner.weight for name in first.modules)  # type: ignore[union-attr]
    assert not torch.equal(one, two)  # type: ignore[arg-type]


def test_growth_ends_where_every_place_has_its_depth():
    run = start(target={"blocks.1": 2})
    assert [g.place for g in run.grow().deepened] == ["blocks.1"]
    run.history.step = 2
    assert not run.controller.due(run.history)
    assert run.history.ended == "every place that may grow has its target"


@pytest.mark.parametrize(
    "make",
    [
        lambda m: torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, fused=True),
        lambda m: torch.optim.AdamW(m.parameters(), lr=0.01),
        lambda m: AdaBound(m.parameters(), lr=0.01),
        lambda m: SAM(m.parameters(), torch.optim.SGD, rho=0.05, adaptive=True, model=m, lr=0.1, momentum=0.9),
        lambda m: SAM(m.parameters(), AdaBound, rho=0.05, model=m, lr=0.01),
    ],
    ids=["fused SGD", "AdamW", "AdaBound", "ASAM of fused SGD", "SAM of AdaBound"],
)
def test_new_parameters_are_trained_from_fresh_state_in_one_group(make: Any):
    run = start(make_optimizer=make)
    x, y = run.inputs.args[0], run.targets

    def closure() -> torch.Tensor:
        run.optimizer.zero_grad()
        loss = F.cross_entropy(run.model(x), y)
        loss.backward()
        return loss

    for _ in range(2):
        run.optimizer.step(closure)
    (growth, _) = run.grow().deepened
    new = list(run.model.get_submodule(growth.modules[0]).parameters())
    held = [id(one) for group in run.optimizer.param_groups for one in group["params"]]
    assert [held.count(id(one)) for one in new] == [1] * len(new)
    assert not any(bool(value.any()) for one in new for value in run.optimizer.state.get(one, {}).values())
    before = [one.detach().clone() for one in new]
    for _ in range(2):
        run.optimizer.step(closure)
    assert all(not torch.equal(one, old) for one, old in zip(new, before, strict=True))


def test_new_parameters_join_the_group_of_the_block_they_are_copied_from():
    def grouped(model: Any) -> torch.optim.Optimizer:
        first = list(model.blocks[0].parameters())
        rest = [one for one in model.parameters() if all(one is not other for other in first)]
        return torch.optim.SGD([{"params": first, "lr": 0.5}, {"params": rest}], lr=0.1)

    run = start(make_optimizer=grouped)
    run.grow()
    groups = [{id(one) for one in group["params"]} for group in run.optimizer.param_groups]
    for number, group in ((1, 0), (3, 1)):
        assert {id(one) for one in run.model.get_submodule(f"blocks.{number}").parameters()} <= groups[group]


def test_an_event_that_breaks_the_latency_is_undone_to_the_last_bit():
    run = start(budget=BudgetSettings(latency_ms=1e-9))
    run.train()
    before, sites = snapshot(run.model, run.optimizer), run.controller.sites
    event = run.grow()
    assert event.undone is not None and [refusal.name for refusal in event.refused] == [
        "depth/blocks.0",
        "depth/blocks.1",
    ]
    assert same(snapshot(run.model, run.optimizer), before)
    assert run.controller.sites is sites and not run.controller.edits and not run.history.growths
    assert run.controller.depths.depths == {"blocks.0": 1, "blocks.1": 1} and not run.controller.ground.states


@pytest.mark.parametrize("kind", ["ground.sites_again", "controller.count_params"])
def test_an_interrupt_at_any_point_puts_everything_back(kind: str, monkeypatch: pytest.MonkeyPatch):
    run = start("both", where=ROUND)
    run.controller.candidates.sites.clear()  # so that it is the places' turn
    run.train()
    before = snapshot(run.model, run.optimizer)

    def interrupt(*args: Any) -> None:
        if len(run.model.blocks) > 2:  # type: ignore[arg-type]
            raise KeyboardInterrupt

    monkeypatch.setattr(f"growkit.growth.{kind}", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run.grow()
    assert same(snapshot(run.model, run.optimizer), before)
    assert not run.controller.edits and not run.history.growths


def test_a_place_that_fails_is_given_up_and_the_others_grow(monkeypatch: pytest.MonkeyPatch):
    real = deepening.deepen

    def fails_at_the_first(model: Any, place: Any, **given: Any) -> Any:
        if place.name == "blocks.0":
            raise SurgeryError("a test")
        return real(model, place, **given)

    run = start()
    monkeypatch.setattr(deepening, "deepen", fails_at_the_first)
    event = run.grow()
    assert [g.place for g in event.deepened] == ["blocks.1"]
    assert [(one.name, one.reason) for one in event.refused] == [("depth/blocks.0", "surgery cannot deepen it: a test")]
    assert [state.name for state in run.controller.ground.states] == ["depth/blocks.1"]


def test_where_no_place_can_grow_the_event_is_an_error_and_nothing_has_changed(monkeypatch: pytest.MonkeyPatch):
    run = start()
    before = snapshot(run.model, run.optimizer)

    def fails(*args: Any, **given: Any) -> Any:
        raise GrowthRefused("a test")

    monkeypatch.setattr(deepening, "deepen", fails)
    with pytest.raises(SurgeryError, match=r"depth/blocks.0 \(depth 1\): surgery cannot deepen it: a test"):
        run.grow()
    assert same(snapshot(run.model, run.optimizer), before)


def test_the_gradient_of_new_blocks_is_watched():
    run = start()
    run.grow()
    run.train()
    norms = run.controller.first_step_gradients()
    block = run.model.get_submodule("blocks.1")
    squares = [one.grad.square().sum() for one in block.parameters() if one.grad is not None]
    assert norms["depth/blocks.0"] == pytest.approx(float(sum(squares)) ** 0.5) and norms["depth/blocks.0"] > 0


@pytest.mark.parametrize("of", ["params", "flops"])
def test_a_budget_holds_for_blocks(of: str):
    run = start(where=ROUND)
    cost = {"params": count_params(run.model), "flops": run.controller.counted.total}[of]
    more = getattr(run.controller.depths.costs()["depth/blocks.0"], of)
    tight = start(where=ROUND, budget=BudgetSettings(**{of: cost + 2 * more}))
    for step in (1, 2):
        tight.grow(step)
    tight.history.step = 3
    assert not tight.controller.due(tight.history)
    assert tight.history.ended is not None and f"growth.budget.{of} is" in tight.history.ended
    assert "with 1 more blocks" in tight.history.ended
    assert {"params": count_params(tight.model), "flops": tight.controller.costs.flops({})}[of] == cost + 2 * more


def test_training_flops_of_the_past_are_those_of_the_models_that_trained():
    run = start("both")
    history, spent = replace(run.history, clock=Clock(5, 20, 3.0)), 0
    run.history = history
    for step in (1, 2, 3):
        spent += count_flops(run.model, run.inputs.args[0]).total  # one step of the model before the event
        run.grow(step)
    now = count_flops(run.model, run.inputs.args[0]).total
    widths = {state.name: state.width for state in run.controller.ground.states}
    assert train_flops(run.controller.costs.flops, history, widths, widths) == 3 * (spent + 17 * now)
    assert History.from_json(history.to_json()) == history


def test_in_both_modes_sites_and_places_take_turns_under_names_that_stay():
    run = start("both")
    wide, deep, wider = (run.grow(step) for step in (1, 2, 3))
    assert [g.site for g in wide.grown] == ["blocks.0.inner", "blocks.1.inner"] and not wide.deepened
    assert [g.place for g in deep.deepened] == ["blocks.0", "blocks.1"] and not deep.grown
    assert [(g.site, g.old_width, g.new_width) for g in wider.grown] == [
        ("blocks.0.inner", 8, 10),
        ("blocks.0+1.inner", 8, 10),
        ("blocks.1.inner", 8, 10),
        ("blocks.1+1.inner", 8, 10),
    ]
    states = {
        state.name: (state.seed_width, state.target) for state in run.controller.ground.states if not state.is_place
    }
    assert set(states.values()) == {(6, 12)} and len(states) == 4
    assert run.controller.ground.widths == {name: 10 for name in states}


def test_places_take_turns():
    run = start(where=ROUND)
    assert [g.place for step in (1, 2, 3) for g in run.grow(step).deepened] == ["blocks.0", "blocks.1", "blocks.0"]
    assert list(run.history.growths[-1].widths.items()) == [("depth/blocks.0", (2, 3))]


def test_a_site_given_up_stays_given_up_in_new_blocks():
    run = start("both")
    run.controller.candidates.sites = [site for site in run.controller.tracked if site.name != "blocks.0.inner"]
    run.grow(1)
    run.grow(2)
    assert [site.name for site in run.controller.tracked] == ["blocks.1.inner", "blocks.1+1.inner"]


def test_a_policy_that_finds_no_room_says_so():
    run = start("both", target=2.0, how_many=FixedSettings(units=6))
    for step in (1, 2):
        run.grow(step)
    run.history.step = 3
    assert not run.controller.due(run.history)
    (note,) = run.controller.take_notes()
    assert isinstance(note, Nothing) and note.ends
    assert note.reason == "every site and every place that may grow has its target"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target": {"blocs.*": 3}},
            "growth.depth.target: every pattern must fit a place, got 'blocs.*'; did you mean",
        ),
        ({"target": {"stem": 3}}, "nothing may follow 'stem'|the places are blocks.0, blocks.1"),
        ({"target": 1.5}, "growth.depth.target must let a place have more blocks"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str):
    with pytest.raises(UserInputError, match=message):
        start(**settings)
