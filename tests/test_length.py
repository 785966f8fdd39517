"""How long a run is: by steps, or by the training FLOPs that it spends."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from growkit.assembly import assemble
from growkit.config import Config, config_from_overrides
from growkit.dry_run import describe, render
from growkit.errors import ConfigError, UserInputError
from growkit.growth import controller as controller_module
from growkit.growth.history import Clock, History
from growkit.length import Pace, first_that
from growkit.pipeline import RunResult, run
from growkit.train import Trainer

QUICK: dict[str, Any] = {
    "model": {"name": "mlp", "hidden": [8]},
    "data.limit": 200,  # 140 to train on: steps of 32, and a last one of 12
    "train.batch_size": 32,
    "train.optimizer": {"name": "sgd", "lr": 0.05},
    "growth.initializer": "random",
    "growth.how_many": {"name": "fixed", "units": 4},
    "growth.target": 3.0,
}
PERIODIC = {"growth.when": {"name": "periodic", "start": 1, "every": 1}}
DEPENDS = {"growth.when": {"name": "plateau", "window": 3, "cooldown": 0, "min_slope": 100.0}}  # grows at any slope
NEVER = {"growth.when": "never"}
LIMIT = 6_000_000


def config(**settings: Any) -> Config:
    return config_from_overrides({**QUICK, **settings})


class Ledger:
    """What every step of the runs inside the block began with and cost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.spent: list[int] = [0]
        self.rates: list[float] = []
        step: Callable[..., None] = Trainer._one_step

        def booked(trainer: Trainer, inputs: Tensor, targets: Tensor) -> None:
            step(trainer, inputs, targets)
            self.rates.append(trainer.learning_rate)
            looks = getattr(trainer.optimizer, "interval", None)
            passes = 1 if looks is None else 2 if (trainer.step - 1) % looks == 0 else 1
            forward = sum(2 * layer.weight.numel() for layer in trainer.model.modules() if isinstance(layer, nn.Linear))
            self.spent.append(self.spent[-1] + 3 * forward * len(targets) * passes)

        monkeypatch.setattr(Trainer, "_one_step", booked)


def made(**settings: Any) -> RunResult:
    return run(config(**settings), observers=(), writes=False)


# the pace


@pytest.mark.parametrize("interval", [None, 1, 2, 3, 5, 10])
@pytest.mark.parametrize(("samples", "batch"), [(12, 4), (10, 4), (3, 4), (41, 8)])
def test_the_cost_of_steps_is_that_of_a_loop_over_them(samples: int, batch: int, interval: int | None) -> None:
    sizes = [min(batch, samples - start) for start in range(0, samples, batch)]
    if sizes[-1] == 1:  # a batch of one sample is left out of training
        sizes.pop()
    pace = Pace(batch, len(sizes), sum(sizes), interval)
    total = 0
    for step in range(80):
        assert pace.forwards(step) == total
        twice = interval is not None and step % interval == 0
        total += 3 * sizes[step % len(sizes)] * (2 if twice else 1)


def test_the_least_number_is_found() -> None:
    assert [first_that(lambda n, least=least: n >= least) for least in (0, 1, 2, 3, 7, 1000)] == [1, 1, 2, 3, 7, 1000]


# a run that its FLOPs end


@pytest.mark.parametrize("growth", [PERIODIC, DEPENDS, NEVER], ids=["periodic", "plateau", "never"])
@pytest.mark.parametrize(
    "optimizer",
    [{"name": "sgd", "lr": 0.05}, {"name": "sam", "base": {"lr": 0.05}}, {"name": "sam", "interval": 3}],
    ids=["sgd", "sam", "sam every third step"],
)
def test_a_run_ends_with_the_first_step_that_reaches_its_flops(
    growth: dict[str, Any], optimizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(monkeypatch)
    result = made(**growth, **{"train.flops": LIMIT, "train.optimizer": optimizer})
    spent = ledger.spent
    assert result.result["train_flops"] == spent[-1] and result.result["steps"] == len(spent) - 1
    assert spent[-2] < LIMIT <= spent[-1]
    assert bool(result.result["events"]) == (growth is not NEVER)
    assert result.history.epochs[-1].step == result.result["steps"]  # the last epoch is closed, though a part of one


@pytest.mark.parametrize("optimizer", ["sgd", {"name": "sam", "interval": 3}], ids=["sgd", "sam"])
def test_a_plan_foresees_steps_and_flops(optimizer: Any) -> None:
    settings = {**PERIODIC, "train.flops": LIMIT, "train.optimizer": optimizer}
    parts, result = assemble(config(**settings), writes=False), made(**settings)
    assert parts.clock == Clock(5, result.result["steps"], parts.clock.forwards_per_step, LIMIT)
    assert parts.planned_flops == result.result["train_flops"] == result.result["planned_train_flops"]
    assert parts.plan is not None
    assert [event.step for event in parts.plan.events] == [event.step for event in result.events]


def test_where_growth_depends_on_training_the_clock_has_the_steps_of_the_seed() -> None:
    seed = made(**NEVER, **{"train.flops": LIMIT}).result["steps"]
    parts = assemble(config(**DEPENDS, **{"train.flops": LIMIT}), writes=False)
    assert parts.plan is None and parts.planned_flops == LIMIT
    assert parts.clock.total_steps == parts.trainer.total_steps == seed


def test_a_trigger_that_counts_looks_ahead_from_the_network_as_it_is() -> None:
    """Six times in the first half of the run; of the steps that the seed could make, half lies behind the end."""
    guard = {"name": "progress_guard", "least": 0.0, "base": {"name": "spread", "events": 6}}
    settings = {"growth.when": guard, "growth.how_many.units": 16, "growth.target": 40.0, "train.flops": 3 * LIMIT}
    seed, result = assemble(config(**settings), writes=False).clock.total_steps, made(**settings)
    steps, epoch = result.result["steps"], result.history.clock.steps_per_epoch
    assert result.history.clock.total_steps == pytest.approx(steps, abs=2)
    assert len(result.events) >= 3 and result.events[-1].step <= 0.5 * steps + epoch
    assert 0.5 * seed > steps


def test_an_event_that_fails_leaves_flops_for_more_steps_than_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: 1.0)
    settings = {**PERIODIC, "train.flops": LIMIT, "growth.budget.latency_ms": 5.0}
    planned = made(**settings).result["steps"]
    latencies = iter([1.0, *[7.0] * 30])  # the seed is fast enough
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: next(latencies))
    ledger = Ledger(monkeypatch)
    result = made(**settings)
    assert result.result["events"] == 0 and result.result["steps"] > planned
    assert ledger.spent[-2] < LIMIT <= ledger.spent[-1]


def test_nothing_grows_after_the_last_step() -> None:
    """A run whose FLOPs are used up just when an event is due."""
    free = made(**DEPENDS, **{"train.flops": LIMIT})
    first, due = (event.step for event in free.events[:2])
    (spent,) = [record.train_flops for record in free.history.epochs if record.step == due]
    cut = made(**DEPENDS, **{"train.flops": spent})
    assert cut.result["steps"] == due and [event.step for event in cut.events] == [first]
    longer = made(**DEPENDS, **{"train.flops": spent + 1})
    assert [event.step for event in longer.events] == [first, due]


def test_arms_that_grow_by_training_cost_the_same_to_within_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    arms = [DEPENDS, {**DEPENDS, "growth.how_many.units": 12}, NEVER]
    results = []
    for arm in arms:
        ledger = Ledger(monkeypatch)
        results.append(made(**arm, **{"train.flops": LIMIT}).result)
        assert 0 <= results[-1]["train_flops"] - LIMIT < ledger.spent[-1] - ledger.spent[-2]
        monkeypatch.undo()
    assert len({result["steps"] for result in results}) == 3


@pytest.mark.parametrize("growth", [PERIODIC, DEPENDS], ids=["periodic", "plateau"])
def test_a_control_spends_the_same_flops(growth: dict[str, Any]) -> None:
    control = made(**growth, **{"train.flops": LIMIT, "control": "seed"})
    alone = made(**NEVER, **{"train.flops": LIMIT})
    assert control.result["train_flops"] == alone.result["train_flops"]
    assert control.result["test"] == alone.result["test"] and not control.events


# schedules


def cosine(progress: float) -> float:
    return 0.05 * 0.5 * (1 + math.cos(math.pi * progress))


@pytest.mark.parametrize("growth", [PERIODIC, DEPENDS], ids=["periodic", "plateau"])
def test_a_cosine_runs_over_the_share_of_the_flops(growth: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    made(**growth, **{"train.flops": LIMIT})
    assert ledger.rates == pytest.approx([cosine(spent / LIMIT) for spent in ledger.spent[:-1]])


def test_milestones_are_shares_of_the_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    made(**DEPENDS, **{"train.flops": LIMIT, "train.schedule": {"name": "step", "milestones": [0.5]}})
    assert ledger.rates == pytest.approx([0.05 if 2 * spent < LIMIT else 0.005 for spent in ledger.spent[:-1]])


def test_a_cosine_follows_the_flops_of_a_plan_where_epochs_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    settings = {**PERIODIC, "train.epochs": 4, "train.schedule.progress": "flops"}
    result = made(**settings).result
    assert result["steps"] == 20 and result["train_flops"] == ledger.spent[-1] == result["planned_train_flops"]
    expected = [cosine(spent / ledger.spent[-1]) for spent in ledger.spent[:-1]]
    assert ledger.rates == pytest.approx(expected)
    assert ledger.rates[8] > cosine(8 / 20)  # the narrow network was cheap: less than its steps' share is spent


def test_steps_are_followed_where_steps_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    made(**PERIODIC, **{"train.epochs": 4})
    assert ledger.rates == pytest.approx([cosine(step / 20) for step in range(20)])


# what cannot be


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train.steps": 9}, "train: either steps or flops ends the run, got steps 9 and flops 6000000"),
        (
            {"train.schedule": {"name": "cosine", "progress": "steps"}},
            "schedule.progress must be flops where flops ends",
        ),
        (
            {"train.schedule": {"name": "constant", "progress": "flops"}},
            "train.schedule.progress: is no setting of constant, only of cosine, step",
        ),
        (
            {"train.optimizer": {"name": "sam", "schedule": "cosine"}},
            "optimizer.schedule cosine falls over the steps of the run, which are not known where flops ends it",
        ),
        (
            {"growth.budget.train_flops": 10**9},
            "growth.budget.train_flops bounds what a run of given length costs",
        ),
        ({"train.flops": 1.5}, "train.flops: must be an integer, got 1.5"),
    ],
    ids=["steps", "progress", "constant", "radius", "budget", "a broken number"],
)
def test_settings_that_contradict_flops_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(**{"train.flops": LIMIT, **settings})
    assert message in str(caught.value)


def test_a_float_that_is_whole_will_do() -> None:
    assert config(**{"train.flops": 1e12}).train.flops == 10**12


def test_flops_that_nobody_knows_cannot_be_followed() -> None:
    with pytest.raises(UserInputError, match=r"flops needs to know .* growth.when 'plateau' depends on training"):
        made(**DEPENDS, **{"train.epochs": 5, "train.schedule.progress": "flops"})


def test_a_trigger_that_would_wait_too_long_names_the_setting() -> None:
    late = {"growth.when": {"name": "plateau", "window": 50}, "train.flops": LIMIT}
    with pytest.raises(UserInputError, match=r"the training has at most \d+; lower it, or raise train.flops"):
        made(**late)


def test_a_model_without_flops_needs_steps() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(10))

        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1).sum(1, keepdim=True) * self.gain

    settings = {key: value for key, value in QUICK.items() if key != "model"}
    asked = config_from_overrides({**settings, **NEVER, "train.flops": LIMIT})
    with pytest.raises(UserInputError, match="needs a model whose FLOPs can be counted, got 0 per sample"):
        run(asked, model=Sums(), observers=(), writes=False)


# what is said


def test_a_dry_run_says_at_most_where_nobody_knows() -> None:
    for growth, said in ((DEPENDS, "training  at most "), (PERIODIC, "training  ")):
        facts = describe(config(**growth, **{"train.flops": LIMIT}))
        assert f"\n{said}{facts['steps']} steps, 5 per epoch" in render(facts)


def test_the_clock_is_kept_with_the_history() -> None:
    history = History(Clock(5, 20, 3.0, LIMIT))
    assert History.from_json(history.to_json()) == history
    old = history.to_json()
    del old["clock"]["flops"]
    assert History.from_json(old).clock == Clock(5, 20, 3.0)
