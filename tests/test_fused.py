"""Fused bases where torch's kernels would read or write beside their tensors, or fail; plain loops are the truth."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from naive_optimizers import NaiveSAM, not_naive
from sam_cases import alone, sam, same, state_of
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim import SAM
from growkit.optim.base_step import step_base

FUSED = {"SGD": (torch.optim.SGD, {"momentum": 0.9}), "Adam": (torch.optim.Adam, {}), "AdamW": (torch.optim.AdamW, {})}
every_base = pytest.mark.parametrize(("base", "settings"), FUSED.values(), ids=FUSED)


class NaiveFusedSAM(NaiveSAM):
    """Takes the fused kernel as it is."""

    def __init__(self, params: Any, base: Any, **settings: Any):
        fused = settings.pop("fused")
        super().__init__(params, lambda all_of_them, **known: base(all_of_them, fused=fused, **known), **settings)


# --- tensors that lie otherwise than their parameters


GRADIENTS = {
    "transposed": lambda like: torch.arange(float(like.numel())).view(*reversed(like.shape)).t(),
    "expanded": lambda like: torch.ones(1).expand(like.shape),
}


@not_naive(SAM, NaiveFusedSAM)
@pytest.mark.parametrize("gradient", GRADIENTS.values(), ids=GRADIENTS)
def test_gradients_in_another_layout_take_the_same_step(make: Any, gradient: Callable[[Tensor], Tensor]) -> None:
    weights = []
    for fused in (True, False):
        weight = nn.Parameter(torch.ones(3, 4))
        optimizer, _ = alone(weight, lambda w: w.sum(), make, lr=0.1, momentum=0.9, fused=fused)
        for _ in range(2):
            weight.grad = gradient(weight)
            optimizer.first_step()
            weight.grad = gradient(weight)
            optimizer.second_step()
        weights.append(weight.detach())
    torch.testing.assert_close(*weights)


@every_base
def test_state_follows_a_model_into_another_layout(base: Any, settings: dict[str, Any]) -> None:
    models = []
    for fused in (True, False):
        torch.manual_seed(0)
        model, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 5, 5)
        optimizer = sam(model, base, lr=0.1, fused=fused, **settings)
        for layout in (torch.contiguous_format, torch.channels_last, torch.contiguous_format):
            model.to(memory_format=layout)
            for _ in range(2):
                optimizer.step(lambda model=model, x=x: model(x).square().sum().backward() or torch.zeros(()))
        models.append(state_of(model))
    for name, value in models[0].items():
        torch.testing.assert_close(value, models[1][name], rtol=1e-4, atol=1e-5)


def test_second_order_steps_by_gradients_that_autograd_only_expands() -> None:
    weight = nn.Parameter(torch.randn(30, 40))
    before = weight.detach().clone()
    optimizer, _ = alone(weight, lambda w: w.sum(), second_order=True, lr=0.5)
    optimizer.step(lambda: weight.sum())
    assert torch.equal(weight.detach(), before - 0.5)


def test_a_view_with_gaps_is_not_fused() -> None:
    whole = torch.zeros(3, 4)
    weight = nn.Parameter(whole[:, :2])
    optimizer, closure = alone(weight, lambda w: w.sum(), lr=1.0, momentum=0.9)
    assert not optimizer.param_groups[0]["fused"]
    optimizer.step(closure)
    assert whole.tolist() == [[-1.0, -1.0, 0.0, 0.0]] * 3
    forced, closure = alone(weight, lambda w: w.sum(), lr=1.0, fused=True)
    with pytest.raises(UserInputError, match=r"got a view of shape \(3, 2\) with strides \(4, 1\); use fused=False"):
        forced.step(closure)
    assert whole.tolist() == [[-1.0, -1.0, 0.0, 0.0]] * 3


@every_base
def test_sparse_gradients_of_a_fused_base_are_refused_with_the_remedy(base: Any, settings: dict[str, Any]) -> None:
    model = nn.Linear(2, 3)
    optimizer, before = sam(model, base, lr=0.1, **settings), state_of(model)

    def closure() -> Tensor:
        nn.functional.embedding(torch.tensor([1]), model.weight, sparse=True).sum().backward()
        return torch.zeros(())

    with pytest.raises(UserInputError, match="fused=True needs dense gradients, got a sparse one; use fused=False"):
        optimizer.step(closure)
    assert same(before, state_of(model))


# --- tensors of another size


@every_base
@pytest.mark.parametrize("scaled", [False, True])
def test_a_parameter_resized_without_its_state_is_refused_before_anything_moves(
    base: Any, settings: dict[str, Any], scaled: bool
) -> None:
    model = nn.Linear(3, 2)
    scaler = torch.amp.GradScaler("cpu") if scaled else None
    optimizer = sam(model, base, lr=0.1, **settings)

    def step() -> None:
        def closure() -> Tensor:
            loss = model(torch.ones(1, 3)).square().sum()
            (loss if scaler is None else scaler.scale(loss)).backward()
            return loss

        optimizer.step(closure, scaler=scaler)

    step()
    model.bias.data, model.weight.data = torch.zeros(4), torch.ones(4, 3)
    before = state_of(model)
    with pytest.raises(UserInputError, match=r"got \(4, 3\) with .* of \(2, 3\); resize parameters by growkit.widen"):
        step()
    assert same(before, state_of(model))


@not_naive(SAM, NaiveFusedSAM, pytest.fail.Exception)
def test_a_parameter_that_shrank_without_its_state_is_no_step(make: Any) -> None:
    weight = nn.Parameter(torch.ones(6))
    optimizer, closure = alone(weight, lambda w: w.sum(), make, lr=0.1, momentum=0.9, fused=True)
    optimizer.step(closure)
    weight.data = torch.ones(4)
    weight.grad = None
    with pytest.raises(UserInputError, match=r"got \(4,\) with momentum_buffer of \(6,\)"):
        optimizer.step(closure)


@every_base
def test_a_gradient_from_before_a_parameter_was_resized_is_refused(base: Any, settings: dict[str, Any]) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = base([weight], lr=0.1, fused=True, **settings)
    weight.grad = torch.ones(2)
    weight.data = torch.ones(50)
    with pytest.raises(UserInputError, match=r"got \(2,\) for one of \(50,\); call zero_grad"):
        step_base(optimizer)
    assert torch.equal(weight, torch.ones(50))


# --- momenta of some


def some_then_all(fused: bool, scaler: torch.amp.GradScaler | None, peek: bool) -> tuple[SAM, dict[str, Tensor]]:
    """Steps in which one layer joins late, with dampened momentum."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(5, 3)
    optimizer = sam(model, momentum=0.9, dampening=0.5, fused=fused)

    def closure() -> Tensor:
        loss = model(x).square().sum()
        (loss if scaler is None else scaler.scale(loss)).backward()
        return loss

    for trained in (False, False, True, True):
        model[0].requires_grad_(trained)
        optimizer.step(closure, scaler=scaler)
        if scaler is not None:
            scaler.update()
        if peek:  # which leaves an empty memory behind, where there was none
            assert len([optimizer.state[one] for one in model[0].parameters()]) == 2
    return optimizer, state_of(model)


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("peek", [False, True])
def test_a_parameter_that_joins_late_begins_its_momentum_with_its_whole_gradient(scaled: bool, peek: bool) -> None:
    optimizer, fused = some_then_all(True, torch.amp.GradScaler("cpu", init_scale=64.0) if scaled else None, peek)
    _, plain = some_then_all(False, None, False)
    for name, value in fused.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-5, atol=1e-6)
    assert len(optimizer.param_groups) == 1


# --- all at random


def drawn_settings(chance: random.Random) -> dict[str, Any]:
    momentum = chance.choice([0, 0, 0.5, 0.9, 1])
    nesterov = bool(momentum) and chance.random() < 0.4
    return {
        "lr": chance.choice([0.0, 1e-3, 0.1, 1, torch.tensor(0.1)]),
        "momentum": momentum,
        "nesterov": nesterov,
        "dampening": 0 if nesterov else chance.choice([0, 0.3, 1]),
        "weight_decay": chance.choice([0, 0.01]),
        "maximize": chance.random() < 0.3,
    }


def drawn_weights(chance: random.Random, dtypes: list[torch.dtype]) -> list[nn.Parameter]:
    found = []
    for _ in range(chance.randint(1, 5)):
        shape = chance.choice([(), (1,), (5,), (3, 4), (2, 3, 3, 3), (0,), (4, 1)])
        values = torch.randn(shape).to(chance.choice(dtypes))
        if values.dim() == 4 and chance.random() < 0.5:
            values = values.to(memory_format=torch.channels_last)
        found.append(nn.Parameter(values))
    return found


def alike(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and one.stride() == other.stride() and torch.equal(one, other)


TYPES = [[torch.float32], [torch.float64], [torch.bfloat16], [torch.float32, torch.float64]]


def test_steps_of_any_settings_are_torchs_bit_for_bit() -> None:
    steps = 0
    for seed in range(150):
        chance = random.Random(seed)
        torch.manual_seed(seed)
        form = chance.choice([{"fused": True}] * 5 + [{"foreach": True}, {}])
        dtypes = chance.choice(TYPES)
        groups = [{"params": drawn_weights(chance, dtypes), **drawn_settings(chance)} for _ in range(2)]
        ours = torch.optim.SGD(groups, **form)
        theirs = torch.optim.SGD(copy.deepcopy(groups), **form)
        pairs = [
            (one, other)
            for mine, plain in zip(ours.param_groups, theirs.param_groups, strict=True)
            for one, other in zip(mine["params"], plain["params"], strict=True)
        ]
        for _ in range(5):
            for one, other in pairs:
                one.grad = None if chance.random() < 0.1 else torch.randn_like(one)
                other.grad = None if one.grad is None else one.grad.clone()
            try:
                theirs.step()
            except TypeError:  # momenta of some alone
                break
            step_base(ours)
            steps += 1
            for one, other in pairs:
                memory, known = ours.state.get(one, {}), theirs.state.get(other, {})
                assert alike(one, other) and memory.keys() == known.keys(), seed
                assert all(alike(value, known[name]) for name, value in memory.items()), seed
    assert steps > 300
