"""Deeper and back again: the optimizer, undo, edits in any order."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from depth_cases import CASES, OPTIMIZERS, fresh, groups_of, outputs, same, snapshot, through_json, train, widen
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import growkit
from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import find_places
from growkit.surgery import (
    deepen,
    replay,
)

# --- the optimizer, and undo


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "vgg-like", "transformer", "post-activation"])
def test_the_optimizer_takes_the_new_weights_and_training_goes_on(name: str, kind: str) -> None:
    model, x = fresh(name)
    optimizer = OPTIMIZERS[kind](groups_of(model))
    train(model, optimizer, x)
    known = {id(p): copy.deepcopy(optimizer.state[p]) for p in model.parameters()}
    place = list(find_places(model, x))[-1]
    edit = deepen(model, place, optimizer=optimizer)
    assert all(same(optimizer.state[p], known[id(p)]) for p in model.parameters() if id(p) in known)
    for tensor in (tensor for child in edit.children for tensor in child.parameters()):
        (group,) = [g for g in optimizer.param_groups if any(p is tensor for p in g["params"])]
        assert group["weight_decay"] == (0.01 if tensor.dim() > 1 else 0.0)
        assert not any(bool(value.any()) for value in optimizer.state.get(tensor, {}).values())
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, x)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True) if p.grad.any())
    edit.undo()
    train(model, optimizer, x)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_undo_restores_every_bit(name: str, kind: str) -> None:
    model, x = fresh(name)
    optimizer = OPTIMIZERS[kind](groups_of(model))
    train(model, optimizer, x)
    model.eval().get_submodule("head" if hasattr(model, "head") else "0").train()
    before = snapshot(model, optimizer)
    for place in find_places(model, x):
        edit = deepen(model, place, optimizer=optimizer)
        assert not edit.undone and not same(snapshot(model, optimizer), before)
        edit.undo()
        assert edit.undone and same(snapshot(model, optimizer), before)


def test_undo_after_training_drops_the_new_state_only() -> None:
    model, x = fresh("transformer")
    optimizer = torch.optim.Adam(model.parameters())
    edit = deepen(model, find_places(model, x)["blocks.1"], optimizer=optimizer)
    train(model, optimizer, x)
    after = {id(p): p.detach().clone() for p in model.parameters()}
    edit.undo()
    assert all(torch.equal(p, after[id(p)]) for p in model.parameters())
    assert set(optimizer.state) == set(model.parameters())


def test_edits_are_undone_once_and_last_first() -> None:
    model, x = fresh("transformer")
    before = snapshot(model)
    first = deepen(model, find_places(model, x)["blocks.0"])
    second = deepen(model, find_places(model, x)["blocks.1"])
    with pytest.raises(SurgeryError, match="undone last first"):
        first.undo()
    second.undo()
    wider = growkit.widen(model, growkit.find_sites(model, x)["blocks.1.mlp.0"], 2)
    with pytest.raises(SurgeryError, match="undone last first"):
        first.undo()
    wider.undo()
    first.undo()
    assert same(snapshot(model), before)
    with pytest.raises(SurgeryError, match="undone once"):
        first.undo()


def test_an_optimizer_that_cannot_take_them_is_refused() -> None:
    model, x = fresh("mlp")
    place = find_places(model, x)["0"]
    other = torch.optim.SGD([*model.parameters()][-1:], lr=0.1)
    before = snapshot(model, other)
    with pytest.raises(GrowthRefused, match="must hold the weights that the new ones are built after"):
        deepen(model, place, optimizer=other)
    assert same(snapshot(model, other), before)
    flat = torch.optim.LBFGS(model.parameters(), lr=0.001)
    flat.step(lambda: model(x).square().mean().backward() or model(x).square().mean())
    with pytest.raises(GrowthRefused, match="state per parameter.*LBFGS"):
        deepen(model, place, optimizer=flat)


# --- any order


def check_any_order(name: str, kind: str, steps: Sequence[tuple[str, int]]) -> None:
    """Edit, compare, replay the records on the seed, and undo in reverse: each undo restores what was, to the bit."""
    model, x = fresh(name)
    seed = copy.deepcopy(model)
    optimizer = OPTIMIZERS[kind](groups_of(model))
    train(model, optimizer, x)
    snapshots, edits, function = [], [], outputs(model, x)
    for step, number in steps:
        snapshots.append(snapshot(model, optimizer))
        if step == "widen":
            edits.append(widen(model, x, number, 1 + number % 3, optimizer=optimizer))
        else:
            places = list(find_places(model, x))
            edits.append(deepen(model, places[number % len(places)], optimizer=optimizer, seed=number))
    torch.testing.assert_close(outputs(model, x), function, rtol=1e-5, atol=1e-5)
    model.train(bool(snapshots[0]["modules"][0][2]))
    replay(seed, through_json([record for edit in edits for record in edit.records]))
    assert [(n, p.shape) for n, p in seed.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    for edit, before in zip(reversed(edits), reversed(snapshots), strict=True):
        edit.undo()
        assert same(snapshot(model, optimizer), before)


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("mlp", "SGD fused", [("deepen", 0), ("widen", 2), ("deepen", 3), ("widen", 1)]),
        ("post-activation", "Adam fused", [("widen", 1), ("deepen", 2), ("deepen", 1)]),
        ("transformer", "AdamW", [("deepen", 0), ("widen", 1), ("deepen", 2)]),
    ],
)
def test_edits_undone_in_reverse_leave_no_trace(name: str, kind: str, steps: list[tuple[str, int]]) -> None:
    check_any_order(name, kind, steps)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["mlp", "list", "named", "vgg-like", "post-activation", "transformer", "layer scale"]),
    kind=st.sampled_from(list(OPTIMIZERS)),
    steps=st.lists(st.tuples(st.sampled_from(["widen", "deepen"]), st.integers(0, 99)), min_size=2, max_size=5),
)
def test_any_edits_undone_in_reverse_leave_no_trace(name: str, kind: str, steps: list[tuple[str, int]]) -> None:
    check_any_order(name, kind, steps)
