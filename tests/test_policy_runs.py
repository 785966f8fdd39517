"""Policies in runs on digits, and under a controller that measures what the test tells it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from controller_cases import Chain, Run, Unwilling, start

from growkit import cost
from growkit.config import config_from_overrides, load_config
from growkit.config.growth import GrowthSettings
from growkit.config.policies import (
    BudgetSettings,
    FixedSettings,
    GainSettings,
    LargestGainSettings,
    RankThresholdSettings,
    RoundRobinSettings,
)
from growkit.cost import LATENCY_CALLS, measure_latency
from growkit.dry_run import describe, render
from growkit.errors import GrowthRefused, UserInputError
from growkit.growth import controller as controller_module
from growkit.growth.base import EpochRecord, Prospect, Prospects
from growkit.growth.controller import GrowthController
from growkit.pipeline import RunResult, run
from growkit.surgery import observe

QUICK = {
    "model": {"name": "mlp", "hidden": [8]},
    "data.limit": 300,
    "train.epochs": 6,
    "train.batch_size": 64,
    "train.optimizer": {"name": "sgd", "lr": 0.1},
    "run.tensorboard": False,
    "growth.how_many": {"name": "fixed", "units": 4},
}


def quick_run(root: Path, **growth: Any) -> RunResult:
    settings = {f"growth.{key}": value for key, value in growth.items()}
    return run(config_from_overrides({**QUICK, **settings, "run.root": str(root)}), observers=())


def lines(result: RunResult, kind: str) -> list[dict[str, Any]]:
    assert result.folder is not None
    found = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    return [line for line in found if line["event"] == kind]


# runs


def test_a_run_grows_at_its_plateaus_and_records_why(tmp_path: Path) -> None:
    when = {"name": "plateau", "window": 3, "min_slope": 100.0, "cooldown": 0}  # any slope is a plateau
    result = quick_run(tmp_path, when=when)
    steps = [result.history.epochs[epoch].step for epoch in (2,)]
    assert [event["step"] for event in lines(result, "growth")] == steps
    (event,) = lines(result, "growth")
    (decision,) = event["decisions"]
    assert decision["reason"].startswith("plateau: slope ") and decision["reason"].endswith("; all sites")
    assert decision["scores"].keys() == {"slope", "slope_standard_error"}
    assert lines(result, "started")[0]["plan"] is None and result.result["planned_train_flops"] is None
    assert result.result["events"] == 1


def test_a_run_whose_loss_falls_does_not_grow(tmp_path: Path) -> None:
    when = {"name": "plateau", "loss": "train", "window": 3, "min_slope": 0.0, "sigmas": 0.0}
    result = quick_run(tmp_path, when=when)
    losses = [record.train_loss for record in result.history.epochs]
    assert losses == sorted(losses, reverse=True) and not result.events


def test_a_guarded_run_stops_growing_once_it_overfits(tmp_path: Path) -> None:
    """A hundred images, learnt by heart: the gap opens on the way, and from there on nothing grows."""
    guard = {"name": "overfit_guard", "window": 1, "gap": 0.3, "base": {"name": "periodic", "start": 1, "every": 1}}
    by_heart = {"data.limit": 150, "data.augment.crop": 0, "train.epochs": 12, "train.batch_size": 16}
    settings = {**QUICK, **by_heart, "growth.when": guard, "growth.target": 20.0, "run.root": str(tmp_path)}
    result = run(config_from_overrides(settings), observers=())
    open_at = {record.step for record in result.history.epochs[:-1] if _gap(record) <= 0.3}
    assert {event.step for event in result.events} == open_at
    assert 0 < len(open_at) < 11


def _gap(record: EpochRecord) -> float:
    assert record.validate_loss is not None
    return (record.validate_loss - record.train_loss) / record.validate_loss


def test_a_paced_run_ends_at_its_budget(tmp_path: Path) -> None:
    result = quick_run(
        tmp_path,
        when={"name": "periodic", "start": 1, "every": 1, "events": 4},
        how_many={"name": "budget_paced"},
        budget={"params": 1500},
        target=1000.0,
    )
    # a hidden unit of the 64-8-10 network has 64 + 1 + 10 parameters
    assert 1500 - 75 < result.result["params"] <= 1500 and result.result["events"] == 4


def test_random_sites_are_the_same_in_a_repeated_run(tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "model": {"name": "mlp", "hidden": [8, 8, 8]},
        "growth.where": "random",
        "growth.when": {"start": 1, "every": 1},
    }

    def widths(seed: int) -> list[list[str]]:
        config = config_from_overrides({**QUICK, **settings, "seed": seed, "run.root": str(tmp_path)})
        return [[grown.site for grown in event.grown] for event in run(config, observers=(), writes=False).events]

    assert widths(0) == widths(0) != widths(1)


def test_training_flops_stay_within_their_budget(tmp_path: Path) -> None:
    free = quick_run(tmp_path, when={"start": 1, "every": 1}).result["train_flops"]
    result = quick_run(tmp_path, when={"start": 1, "every": 1}, budget={"train_flops": round(0.7 * free)})
    assert result.result["events"] > 0
    assert 0.5 * free < result.result["train_flops"] <= 0.7 * free


def test_growth_ends_when_its_time_is_up(tmp_path: Path) -> None:
    result = quick_run(tmp_path, when={"start": 1, "every": 1}, budget={"wall_seconds": 1e-6})
    (note,) = lines(result, "no_growth")
    assert note["ends"] and note["reason"].startswith("growth.budget.wall_seconds is 1e-06, and the run has taken")
    assert not result.events and result.history.ended == note["reason"]


def test_growth_that_has_reached_its_targets_says_so(tmp_path: Path) -> None:
    result = quick_run(tmp_path, when={"start": 1, "every": 1}, target=1.5)
    assert len(lines(result, "growth")) == 1
    assert [(n["reason"], n["ends"]) for n in lines(result, "no_growth")] == [
        ("every site that may grow has its target width", True)
    ]


# bad input


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"growth.when": "plateau", "train.epochs": 5},
            "growth.when could never fire: window: 5 epochs must end before the last step for it to fire at all, and "
            "the training has 5; lower it, or raise train.epochs",
        ),
        (
            {"growth.when": "plateau", "data.split.validate": 0.0, "train.epochs": 9},
            "growth.when could never fire: loss: validate needs a validate split, which is empty; set "
            "data.split.validate, or loss: train",
        ),
        (
            {"growth.when": "plateau", "control": "seed"},
            "control needs a growth plan known in advance, and growth.when 'plateau' depends on training; use "
            "growth.when: periodic with a growth.where and growth.how_many that measure nothing and no growth.trial, "
            "or give the length of the run as train.flops",
        ),
    ],
    ids=["too late", "no validate split", "control"],
)
def test_what_cannot_work_is_refused_before_training(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserInputError) as caught:
        run(config_from_overrides({**QUICK, **settings, "run.root": str(tmp_path)}), observers=())
    assert str(caught.value) == message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("growth", "settings"),
    [
        ({"when": "gain"}, "growth.when"),
        ({"where": "largest_gain"}, "growth.where"),
        ({"when": "rank", "how_many": "rank_threshold"}, "growth.when and growth.how_many"),
        ({"when": {"name": "overfit_guard", "base": "gain"}}, "growth.when"),
    ],
    ids=str,
)
def test_policies_that_ask_for_what_nothing_measures_are_refused(
    growth: dict[str, Any], settings: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GrowthController, "measure", property(lambda self: None, lambda self, value: None))
    with pytest.raises(UserInputError) as caught:
        quick_run(tmp_path, **growth)
    assert str(caught.value) == (
        f"{settings} must be told what growth promises, which cannot be measured here with growth.initializer "
        "'gradmax'; choose others"
    )


def test_a_budget_that_does_not_pay_for_the_seeds_own_training_is_refused(tmp_path: Path) -> None:
    seed = describe(config_from_overrides({**QUICK, "growth.when": "never"}))["train_flops"]
    with pytest.raises(UserInputError, match=f"below the training of the seed alone, {seed:,}, got {seed - 1:,}$"):
        quick_run(tmp_path, budget={"train_flops": seed - 1})


def test_a_seed_that_is_too_slow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: 7.0)
    with pytest.raises(UserInputError, match=r"growth.budget.latency_ms must not lie below the seed's 7, got 5$"):
        quick_run(tmp_path, budget={"latency_ms": 5.0})


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (
            "growth: {how_many: {name: marginal_gain, ratio: 2.0}, budget: {params: 9999}}",
            "1:1: growth: how_many.ratio: is for growth without a budget.params, whose parts are the pace; got "
            "ratio 2 with budget.params 9,999; leave out one of them",
        ),
        (
            "growth: {initializer: zero, fallback: {name: gradmax, batch_size: 7}}",
            "1:1: growth: fallback.batch_size: an event has one growth batch, that of initializer zero "
            "(train.batch_size), got 7; leave it out",
        ),
        (
            "growth: {initializer: {name: gradmax, batch_size: 7}, fallback: gradmax}",
            "1:1: growth: fallback: must be another one than initializer, where that cannot serve, got gradmax with "
            "the same settings for both; leave it out, or name another",
        ),
        (
            "growth: {how_many: budget_paced}",
            "1:1: growth: how_many: budget_paced needs a budget to keep pace with; set budget.params",
        ),
        (
            "growth: {when: plateau, how_many: budget_paced, budget: {params: 9999}}",
            "1:1: growth: how_many.events: budget_paced must be told how many events there will be where when: plateau "
            "depends on training; set how_many: {name: budget_paced, events: ...}",
        ),
        (
            "growth: {how_many: {name: rank_threshold, at_least: 3, at_most: 2}}",
            "1:10: growth.how_many: at_most must be >= at_least, got at_most 2 and at_least 3",
        ),
        (
            "growth: {budget: {latency_batch: 2}}",
            "1:10: growth.budget: latency_batch needs latency_ms, got latency_batch 2 alone",
        ),
        ("growth: {when: {name: plateau, window: 2}}", "1:40: growth.when.window: must be >= 3, got 2"),
        (
            "growth: {when: {name: overfit_guard, base: overfit_guard}}",
            "1:44: growth.when.base: must be one of periodic, spread, plateau, gain, rank, got 'overfit_guard'",
        ),
    ],
    ids=lambda value: value if value.startswith("growth") else "",
)
def test_settings_that_contradict_each_other_are_refused_where_they_stand(
    text: str, problem: str, tmp_path: Path
) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(UserInputError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}:{problem}"


def test_a_dry_run_says_what_has_no_plan() -> None:
    facts = describe(config_from_overrides({**QUICK, "growth.when": "plateau"}))
    assert facts["plan"] is None and facts["train_flops"] is None and facts["final"] is None
    assert "\nfinal     depends on training\n" in render(facts)


def test_a_dry_run_says_where_the_budget_stops_growth_before_its_target() -> None:
    free = describe(config_from_overrides(QUICK))
    assert free["budget_below_target"] == {} and "growth.budget" not in render(free)
    seed, target = free["seed"], free["target"]
    limits = {"params": (seed["params"] + target["params"]) // 2, "flops": target["flops"]}
    facts = describe(config_from_overrides({**QUICK, "growth.budget": limits}))
    assert facts["budget_below_target"] == {"params": limits["params"]}
    (line,) = [line for line in render(facts).splitlines() if line.startswith("target")]
    assert line.startswith(f"target    {target['params']:,} parameters, ")
    assert line.endswith(f"; growth.budget stops growth before, at {limits['params']:,} parameters")


# under a controller


def told(**gains: float) -> Prospects:
    """Prospects of sites by name, on 12 samples of a model of 100 FLOPs; the noise floor is 0.5."""
    sites = {name.removeprefix("site"): Prospect((gain, 0.1), 0.5, 0.0, 9, 18, 1.0) for name, gain in gains.items()}
    return Prospects(sites, gradient=1e-3, samples=12, flops=100)


def asking(prospects: Prospects, **settings: Any) -> Run:
    chosen = {"where": LargestGainSettings(), "how_many": RankThresholdSettings(), **settings}
    run = start(Chain, **chosen).prepare()
    run.controller.measure = lambda: prospects
    run.history.step = 1
    return run


def test_the_controller_grows_where_it_was_told_that_it_pays() -> None:
    run = asking(told(site0=1.0, site2=3.0, site4=2.0))
    assert run.controller.due(run.history) and run.controller.due(run.history)
    event = run.grow()
    assert [(grown.site, grown.old_width, grown.new_width) for grown in event.grown] == [("2", 4, 5)]
    assert [decision.scores["gain"] for decision in event.decisions] == [3.0]
    # asked three times, measured once: a forward and a backward pass
    assert run.controller.take_measuring_flops() == 3 * 12 * 100 and run.controller.take_measuring_flops() == 0


def test_growth_ends_where_no_gain_is_above_the_noise() -> None:
    run = asking(told(site0=0.4, site2=0.3, site4=0.2))
    assert not run.controller.due(run.history)
    (note,) = run.controller.take_notes()
    assert note.ends and run.history.ended == note.reason
    assert note.reason == "no site has a gain above its noise floor: 0 0.4 of 1, 2 0.3 of 1, 4 0.2 of 1"
    run.controller.measure = None  # nothing asks any more
    run.history.step = 2
    assert not run.controller.due(run.history) and not run.controller.take_notes()


def test_sites_that_could_not_be_measured_are_passed_over_and_noted_once() -> None:
    run = asking(told(site0=2.0))
    for step in (1, 2):
        run.history.step = step
        assert run.controller.due(run.history)
        assert [grown.site for grown in run.grow(step).grown] == ["0"]
    assert [(note.reason, note.ends) for note in run.controller.take_notes()] == [
        ("passed over by growth.where and growth.how_many, for their prospects could not be measured: 2, 4", False)
    ]


def test_measuring_for_a_trigger_that_does_not_fire_is_paid_for() -> None:
    run = asking(told(site0=1.0, site2=1.0, site4=1.0), when=GainSettings(ratio=1e9))
    run.history.step = 5
    run.history.epochs = [EpochRecord(5, 1, 0.1, 1.0, None, 1.0, None, 1, 1, 1, 0.0, 0.0)]
    assert not run.controller.due(run.history) and not run.controller.take_notes()
    assert run.controller.take_measuring_flops() == 3 * 12 * 100


# sites that are refused at an event


def test_a_run_goes_on_without_the_site_that_is_refused_at_its_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Given up like sites that are given up before the first step: on the terminal, and in the events."""
    real, model = controller_module.build_initializer, {"name": "mlp", "hidden": [8, 8]}
    first, second = (site["name"] for site in describe(config_from_overrides({**QUICK, "model": model}))["sites"])
    monkeypatch.setattr(
        controller_module, "build_initializer", lambda given: Unwilling(real(given), (first,), because=GrowthRefused)
    )
    growth = {"growth.where": "round_robin", "growth.when": {"start": 1, "every": 1}, "run.root": str(tmp_path)}
    result = run(config_from_overrides({**QUICK, "model": model, **growth}))
    events = lines(result, "growth")
    assert [[one["name"] for one in event["refused"]] for event in events] == [[first], [], [], [], []]
    assert [[one["site"] for one in event["grown"]] for event in events] == [[], *[[second]] * 4]
    assert [event["undone"] is None for event in events] == [False, True, True, True, True]
    assert f"{first}: given up, no gradient on this batch" in capsys.readouterr().out
    assert f"{first}: no gradient on this batch" in [f"{one.name}: {one.reason}" for one in result.refusals]


# latency


def test_an_event_that_is_too_slow_is_undone_to_the_last_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: 7.0)
    run = start(Chain, where=RoundRobinSettings(), budget=BudgetSettings(latency_ms=5.0)).prepare()
    run.train()
    before, looked = {n: t.clone() for n, t in run.model.state_dict().items()}, observe(run.model, run.inputs)
    event = run.grow()
    assert event.undone == "a forward pass took 7 ms, more than growth.budget.latency_ms 5"
    assert event.latency_ms == 7.0 and event.params_after > event.params_before
    assert [(refusal.name, refusal.width) for refusal in event.refused] == [("0", 4)]
    after = run.model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert all(map(torch.equal, looked.eval, observe(run.model, run.inputs).eval))
    assert not run.history.growths and not run.controller.edits
    assert [site.name for site in run.controller.tracked] == ["2", "4"]
    run.train()


def test_an_event_that_is_fast_enough_stands_and_its_timing_is_paid_for(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, ...]] = []

    def timed(call: Any, device: str) -> float:
        seen.append(tuple(call().shape))
        return 3.0

    monkeypatch.setattr(controller_module, "measure_latency", timed)
    free = start(Chain).prepare().grow()
    event = start(Chain, budget=BudgetSettings(latency_ms=5.0, latency_batch=20)).prepare().grow()
    assert event.undone is None and event.latency_ms == 3.0 and seen == [(20, 3)]
    assert event.flops_spent == free.flops_spent + LATENCY_CALLS * 20 * event.flops_after


def test_a_run_goes_on_after_an_event_that_was_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.0, 2.0, 2.0, *[9.0] * 12])  # of the seed, then of each stage and of each event
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: next(times))
    result = quick_run(tmp_path, when={"start": 1, "every": 1}, budget={"latency_ms": 5.0})
    assert [event["undone"] is None for event in lines(result, "growth")] == [True, False]
    assert result.result["events"] == 1 and list(result.result["widths"].values()) == [12]
    (note,) = lines(result, "no_growth")
    assert note["reason"] == "every site has been given up" and note["ends"]


def test_latency_is_that_of_the_calls_that_load_does_not_disturb(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: another program has the machine, and all calls but one take ten times as long."""
    now = calls = 0.0

    def call() -> None:
        nonlocal now, calls
        now, calls = now + (0.001 if calls == 7 else 0.010), calls + 1

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(cost, "time", SimpleNamespace(perf_counter=lambda: now, sleep=sleep))
    assert measure_latency(call, "cpu") == pytest.approx(1.0) and calls == LATENCY_CALLS
    assert now > 0.001 + 0.010 * (LATENCY_CALLS - 1)  # there were pauses


def test_an_event_that_load_alone_makes_too_slow_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([9.0, 3.0])
    monkeypatch.setattr(controller_module, "measure_latency", lambda call, device: next(times))
    free = start(Chain).prepare().grow()
    event = start(Chain, budget=BudgetSettings(latency_ms=5.0)).prepare().grow()
    assert event.undone is None and event.latency_ms == 3.0
    assert event.flops_spent == free.flops_spent + 2 * LATENCY_CALLS * event.flops_after


def test_settings_of_policies_come_back_from_their_record() -> None:
    settings = GrowthSettings(
        when=GainSettings(), where=LargestGainSettings(), how_many=FixedSettings(), budget=BudgetSettings(latency_ms=2)
    )
    assert GrowthSettings.model_validate(settings.model_dump(mode="json")) == settings


@pytest.mark.parametrize(
    "growth",
    [
        {"where": {"name": "largest_gain", "factor": 0.1}},
        {"how_many": {"name": "rank_threshold", "factor": 0.1}},
        {"when": {"name": "rank", "share": 0.01, "factor": 0.1}},
        {"when": {"name": "gain"}, "where": {"name": "largest_gain", "factor": 0.1}},
    ],
    ids=str,
)
def test_policies_are_told_what_growth_promises(growth: dict[str, Any], tmp_path: Path) -> None:
    result = quick_run(tmp_path, **growth)
    assert result.result["other_flops"]["growth"] > 0
    assert lines(result, "growth") or lines(result, "no_growth")
    for event in lines(result, "growth"):
        assert all(decision["reason"] and decision["scores"] for decision in event["decisions"])
