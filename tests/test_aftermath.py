"""What becomes of the optimizer after a growth event."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from controller_cases import Chain, Run, start
from torch import Tensor, nn

from growkit.config import config_from_overrides
from growkit.config.growth import AfterGrowthSettings
from growkit.config.policies import BudgetSettings, RoundRobinSettings
from growkit.errors import ConfigError, UserInputError
from growkit.growth import controller as controller_module
from growkit.growth.aftermath import Aftermath
from growkit.optim import SAM, AdaBound, AMSBound
from growkit.pipeline import run as run_config
from growkit.train import Trainer

OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True),
    "fused sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True),
    "adam": lambda model: torch.optim.Adam(model.parameters(), lr=0.01),
    "fused adamw": lambda model: torch.optim.AdamW(model.parameters(), lr=0.01, fused=True),
    "adabound": lambda model: AdaBound(model.parameters(), lr=0.01),
    "amsbound": lambda model: AMSBound(model.parameters(), lr=0.01),
    "sam over sgd": lambda model: SAM(model.parameters(), torch.optim.SGD, rho=0.1, model=model, lr=0.1, momentum=0.9),
    "sam over adam": lambda model: SAM(model.parameters(), torch.optim.Adam, rho=0.1, model=model, lr=0.01),
}


def trained(kind: str, steps: int = 3, **settings: Any) -> Run:
    """A chain of which one site grows at an event, after some steps."""
    run = start(Chain, where=RoundRobinSettings(), **settings)
    run.optimizer = OPTIMIZERS[kind](run.model)
    train(run.model, run.optimizer, run, steps)
    return run.prepare()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, run: Run, steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(*run.inputs.args), run.targets)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


def grown(run: Run, **settings: Any) -> Aftermath:
    """One event, and what comes after it."""
    aftermath = Aftermath(AfterGrowthSettings(**settings), run.model, run.optimizer)
    run.grow()
    aftermath.follow(run.controller.edits, run.history.step)
    return aftermath


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Any]]:
    return {name: copy.deepcopy(dict(optimizer.state.get(p, {}))) for name, p in model.named_parameters()}


def equal(one: dict[str, dict[str, Any]], other: dict[str, dict[str, Any]]) -> bool:
    return one.keys() == other.keys() and all(
        ours.keys() == other[name].keys()
        and all(torch.equal(torch.as_tensor(v), torch.as_tensor(other[name][key])) for key, v in ours.items())
        for name, ours in one.items()
    )


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_after_reset_all_training_goes_on_as_with_a_new_optimizer(kind: str) -> None:
    run = trained(kind)
    grown(run, state="reset_all")
    twin = copy.deepcopy(run.model)
    train(run.model, run.optimizer, run, 4)
    train(twin, OPTIMIZERS[kind](twin), run, 4)
    assert all(map(torch.equal, run.model.parameters(), twin.parameters()))


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_reset_grown_makes_only_grown_parameters_start_anew(kind: str) -> None:
    """The truth is a new optimizer that is given the memory of the others."""
    run = trained(kind)
    before = memory(run.model, run.optimizer)
    grown(run, state="reset_grown")
    (record,) = run.controller.edits
    changed = {name for change in record.tensors for name in change.names}
    twin = copy.deepcopy(run.model)
    anew = OPTIMIZERS[kind](twin)
    kept = {name: p for name, p in twin.named_parameters() if name not in changed}
    assert kept and len(kept) < len(before)
    for name, p in kept.items():
        anew.state[p] = copy.deepcopy(before[name])
    if "sgd" in kind:  # no momentum is the same as a momentum of 0
        for p in twin.parameters():
            anew.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
    train(run.model, run.optimizer, run, 4)
    train(twin, anew, run, 4)
    assert all(map(torch.equal, run.model.parameters(), twin.parameters()))


@pytest.mark.parametrize("kind", ["adam", "adabound", "sam over adam"])
@pytest.mark.parametrize(("state", "counts"), [("carry", {3}), ("reset_grown", {3, None}), ("reset_all", {None})])
def test_counts_of_steps_go_on_or_start_anew(kind: str, state: str, counts: set[int | None]) -> None:
    run = trained(kind)
    grown(run, state=state)
    found = {
        None if (step := one.get("step")) is None else int(step) for one in memory(run.model, run.optimizer).values()
    }
    assert found == counts


def test_new_entries_of_carried_adam_take_the_long_steps_that_the_settings_speak_of() -> None:
    """A constant gradient: a new parameter of Adam moves by lr a step, whatever its size."""
    old = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([old], lr=1.0, eps=0.0)
    for _ in range(10_000):  # long enough for the bias correction to be over
        old.grad = torch.ones(1)
        optimizer.step()
    optimizer.state[old]["exp_avg"].zero_()
    optimizer.state[old]["exp_avg_sq"].zero_()
    places = []
    for _ in range(30):
        places.append(float(old.detach()))
        optimizer.step()
    steps = [before - after for before, after in pairwise(places)]
    assert 3.1 < steps[0] < 3.2 and 6.5 < max(steps) < 6.7


@pytest.mark.parametrize("state", ["carry", "reset_grown", "reset_all"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_an_undone_event_leaves_the_memory_to_the_last_bit(
    kind: str, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: 7.0)
    run = trained(kind, budget=BudgetSettings(latency_ms=5.0))
    before, twin = memory(run.model, run.optimizer), copy.deepcopy(run.model)
    aftermath = Aftermath(AfterGrowthSettings(state=state), run.model, run.optimizer)
    assert run.grow().undone is not None
    aftermath.follow(run.controller.edits, run.history.step)
    assert equal(memory(run.model, run.optimizer), before)
    assert all(map(torch.equal, run.model.parameters(), twin.parameters()))


# the learning rate


def test_the_rate_climbs_back_and_an_event_on_the_way_begins_anew() -> None:
    run = trained("sgd")
    aftermath = Aftermath(AfterGrowthSettings(rewarm_steps=4, rewarm_from=0.2), run.model, run.optimizer)
    assert [aftermath.rate(step) for step in range(3)] == [1.0] * 3
    aftermath.follow(run.controller.edits, 3)
    assert aftermath.rate(3) == 1.0  # there was no event that stands
    run.grow(step=3)
    aftermath.follow(run.controller.edits, 3)
    assert [aftermath.rate(step) for step in range(3, 9)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0, 1.0])
    run.grow(step=5)
    aftermath.follow(run.controller.edits[1:], 5)
    assert [aftermath.rate(step) for step in range(5, 10)] == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.0])


# runs

QUICK = {
    "model": {"name": "mlp", "hidden": [8]},
    "data.limit": 200,
    "train.epochs": 3,
    "train.batch_size": 64,
    "train.optimizer": {"name": "sgd", "lr": 0.1},
    "growth.when": {"name": "periodic", "start": 1, "every": 1, "events": 1},
}


def losses(**settings: Any) -> list[float]:
    config = config_from_overrides({**QUICK, **settings})
    return [record.train_loss for record in run_config(config, observers=(), writes=False).history.epochs]


def test_a_run_forgets_at_its_event_and_not_before() -> None:
    carried, reset = losses(), losses(**{"growth.optimizer.state": "reset_all"})
    assert carried[0] == reset[0] and carried[1] != reset[1]


@pytest.mark.parametrize("schedule", ["constant", {"name": "cosine", "warmup_epochs": 1.5}, "step"])
@pytest.mark.parametrize("optimizer", ["sgd", "sam", "adabound"])
def test_a_run_climbs_back_to_its_schedule_whatever_that_is(
    schedule: Any, optimizer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of 2 steps; the event comes after the first."""
    settings = {"train.schedule": schedule, "train.optimizer": optimizer, "train.epochs": 4, "data.limit": 180}
    plain, climbing = (rates(monkeypatch, **settings, **more) for more in ({}, {"growth.optimizer.rewarm_steps": 4}))
    assert len(plain) == 8
    expected = [1.0, 1.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [b / a for a, b in zip(plain, climbing, strict=True)] == pytest.approx(expected)


def rates(monkeypatch: pytest.MonkeyPatch, **settings: Any) -> list[float]:
    """Of every step of a run, as its optimizer had it."""
    seen: list[float] = []
    step = Trainer._one_step

    def watched(self: Trainer, inputs: Tensor, targets: Tensor) -> None:
        step(self, inputs, targets)
        seen.append(self.learning_rate)

    monkeypatch.setattr(Trainer, "_one_step", watched)
    losses(**settings)
    monkeypatch.undo()
    return seen


def test_a_climb_without_a_length_is_refused() -> None:
    with pytest.raises(ConfigError, match="rewarm_from needs rewarm_steps, got rewarm_from 0.5 alone"):
        config_from_overrides({"growth.optimizer.rewarm_from": 0.5})


def test_nothing_to_forget_is_refused() -> None:
    settings = {
        "train.optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": False},
        "growth.optimizer.state": "reset_all",
    }
    with pytest.raises(UserInputError, match="must be carry where the optimizer remembers nothing, got reset_all with"):
        losses(**settings)
