"""SAM's base steps as by its own step(), though less is called for it; and whoever looks on still sees it."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from sam_cases import net, sam, state_of, train
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from growkit.errors import UserInputError
from growkit.optim import AdaBound
from growkit.optim.base_step import step_base

SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.9, "nesterov": True},
    "dampened": {"momentum": 0.9, "dampening": 0.3},
    "decayed": {"momentum": 0.9, "weight_decay": 0.1},
    "climbing": {"momentum": 0.9, "maximize": True},
    "a rate in a tensor": {"lr": torch.tensor(0.1), "momentum": 0.9},
    "not fused": {"momentum": 0.9, "fused": False},
}


def weights(*dtypes: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 2), (5,), (2, 2, 2)]
    return [nn.Parameter(torch.randn(shape, generator=generator).to(d)) for shape in shapes for d in dtypes]


def both(ours: list[nn.Parameter], make: Callable[[list[nn.Parameter]], Any]) -> tuple[Any, Any, list[nn.Parameter]]:
    theirs = [copy.deepcopy(one) for one in ours]
    return make(ours), make(theirs), theirs


def step_both(ours: list[nn.Parameter], mine: Any, theirs: list[nn.Parameter], plain: Any, absent: int = -1) -> None:
    """A step of each with the same gradients, and nothing may differ in a bit."""
    for number, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        one.grad = None if number == absent else torch.randn(one.shape).to(one.dtype)
        other.grad = None if one.grad is None else one.grad.clone()
    step_base(mine)
    plain.step()
    assert all(map(torch.equal, ours, theirs))
    for one, other in zip(ours, theirs, strict=True):
        memory, known = mine.state.get(one, {}), plain.state.get(other, {})
        assert memory.keys() == known.keys()
        assert all(value is known[name] or torch.equal(value, known[name]) for name, value in memory.items())


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float32, torch.float64)], ids=["alike", "of two types"])
def test_a_step_of_sgd_is_torchs_own(settings: dict[str, Any], dtypes: tuple[torch.dtype, ...]) -> None:
    torch.manual_seed(0)
    ours = weights(*dtypes)
    given = {"lr": 0.1, "fused": True, **settings}
    mine, plain, theirs = both(
        ours, lambda params: torch.optim.SGD([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], **given)
    )
    for _ in range(4):
        step_both(ours, mine, theirs, plain)
    step_both(ours, mine, theirs, plain, absent=1)
    for group in (*mine.param_groups, *plain.param_groups):
        group["lr"] = 0.05
    step_both(ours, mine, theirs, plain)


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.RMSprop, AdaBound])
def test_a_step_of_any_base_is_its_own(base: Any) -> None:
    torch.manual_seed(0)
    ours = weights(torch.float32)
    mine, plain, theirs = both(ours, lambda params: base(params, lr=0.1))
    for _ in range(3):
        step_both(ours, mine, theirs, plain)


def test_once_there_are_momenta_sgd_is_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    model = net()
    optimizer = sam(model)
    train(optimizer, model, 1)
    monkeypatch.setattr(torch.optim.SGD, "_init_group", lambda *_: pytest.fail("torch's own way round the kernel"))
    train(optimizer, model, 1)


@pytest.mark.parametrize("number", [0, 2])
def test_momenta_of_another_type_are_not_read_as_the_weights(number: int) -> None:
    ours = weights(torch.float32)
    mine, plain, theirs = both(ours, lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True))
    step_both(ours, mine, theirs, plain)
    for optimizer, parameters in ((mine, ours), (plain, theirs)):
        memory = optimizer.state[parameters[number]]
        memory["momentum_buffer"] = memory["momentum_buffer"].double()
    for step in (functools.partial(step_base, mine), plain.step):
        with pytest.raises(RuntimeError, match="expected scalar type"):
            step()


# --- who looks on


@contextmanager
def globally(register: Callable[[Any], Any], hook: Any) -> Iterator[None]:
    handle = register(hook)
    try:
        yield
    finally:
        handle.remove()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_gradient_of_another_size_is_not_read_past_its_end(momentum: float) -> None:
    weight = nn.Parameter(torch.zeros(2, 3))
    base = torch.optim.SGD([weight], lr=0.1, momentum=momentum, fused=True)
    weight.grad = torch.ones(2, 3)
    base.step()
    weight.data = torch.zeros(50, 3)
    if momentum:
        base.state[weight]["momentum_buffer"] = torch.zeros(50, 3)
    with pytest.raises(UserInputError, match="needs gradients of the shape of their parameter"):
        step_base(base)


@pytest.mark.parametrize("when", ["pre", "post"])
@pytest.mark.parametrize("of_all", [False, True], ids=["of the base", "of all optimizers"])
def test_hooks_of_steps_are_called(when: str, of_all: bool) -> None:
    model, seen = net(), []
    optimizer = sam(model)
    train(optimizer, model, 2)
    register: Any = getattr(optimizer.base, f"register_step_{when}_hook")
    if of_all:
        register = register_optimizer_step_pre_hook if when == "pre" else register_optimizer_step_post_hook
    with globally(register, lambda stepped, arguments, settings: seen.append(stepped)):
        train(optimizer, model, 1)
    train(optimizer, model, 1)
    assert seen.count(optimizer.base) == 1


def test_a_profiler_sees_the_step() -> None:
    model = net()
    optimizer = sam(model)
    train(optimizer, model, 2)
    with torch.autograd.profiler.profile() as seen:
        train(optimizer, model, 1)
    assert "Optimizer.step#SGD.step" in {event.name for event in seen.function_events}


@pytest.mark.parametrize("whose", ["of the class", "of the base"])
def test_a_step_that_was_wrapped_is_called(whose: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, calls = net(), []
    optimizer = sam(model)
    train(optimizer, model, 2)
    place: Any = torch.optim.SGD if whose == "of the class" else optimizer.base
    step = place.step

    @functools.wraps(step)
    def counted(*arguments: Any, **settings: Any) -> Any:
        calls.append(None)
        return step(*arguments, **settings)

    monkeypatch.setattr(place, "step", counted)
    train(optimizer, model, 1)
    assert len(calls) == 1


def test_a_subclass_steps_by_its_own_rule() -> None:
    class Still(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:
            self.param_groups[0]["lr"] = math.pi

    model = net()
    optimizer, before = sam(model, Still, lr=0.1), state_of(model)
    train(optimizer, model, 2)
    assert optimizer.param_groups[0]["lr"] == math.pi
    assert all(torch.equal(before[name], one) for name, one in model.named_parameters())


def test_a_scheduler_of_the_base_sees_its_steps() -> None:
    model = net()
    optimizer = sam(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer.base, 1, 0.5)
    train(optimizer, model, 1)
    scheduler.step()  # which warns, and so fails here, if no step was seen
    assert optimizer.param_groups[0]["lr"] == 0.05
