"""One run as its observers see it."""

from __future__ import annotations

import json
from typing import Any

from growkit.config import Config
from growkit.config.run import RunSettings
from growkit.graph import Refusal
from growkit.growth.base import EpochRecord, GrowthDecision, Nothing
from growkit.growth.event import GrowthEvent, SiteGrowth
from growkit.growth.plan import GrowthPlan, PlannedEvent
from growkit.ladder import Stage
from growkit.report import (
    Observer,
    RunFacts,
)
from growkit.surgery import FunctionChange

SEED, GROWN = {"a.fc": 4, "b": 5}, {"a.fc": 6, "b": 5}

FACTS = RunFacts(
    config=Config(run=RunSettings(name="demo")),
    folder="runs/demo/now",
    environment={"version": 1, "compute": {"device": "cpu", "precision": "fp32", "reason": "no bf16"}},
    data={"name": "digits", "task": "classification", "splits": {"train": 1006, "test": 360}},
    model="mlp",
    widths=SEED,
    targets={"a.fc": 8, "b": 5},
    refusals=[Refusal("head", 10, "is the model's output", "net.py:7")],
    plan=GrowthPlan(SEED, [PlannedEvent(8, GROWN)], False),
    params=1234,
    flops=56_789,
    total_steps=16,
    steps_per_epoch=8,
)

EPOCHS = [
    EpochRecord(8, 1, 0.1, 1.5, 0.5, 1.25, 0.625, 1234, 56_789, 3_000_000, 0.5, 0.6),
    EpochRecord(16, 2, 0.05, 1.0, 0.75, 0.875, 0.8125, 1300, 60_000, 6_500_000, 1.0, 1.2),
]

EVENT = GrowthEvent(
    step=8,
    grown=(SiteGrowth("a.fc", 4, 6, "gradmax", "zero_fan_in", "asked for", {"random_beyond_rank": 1}),),
    refused=(Refusal("b", 5, "it changed the outputs", None),),
    change=FunctionChange(eval=0.0, train=1e-7),
    change_at_precision=None,
    loss_before=1.25,
    loss_after=1.25,
    params_before=1234,
    params_after=1300,
    flops_before=56_789,
    flops_after=60_000,
    flops_spent=1000,
    cpu_seconds=0.01,
    decisions=(GrowthDecision("a.fc", 2, "plateau: slope 0 +- 0.1; all sites", {"slope": 0.0}),),
)

STAGE = Stage(0, 0, 8, SEED, 1234, 56_789, 3_000_000, 0.5, 1, {"accuracy": 0.625, "loss": 1.25}, 0.05)

NOTHING = Nothing("every site that may grow has its target width", ends=True)

RESULT: dict[str, Any] = {
    "test": {"accuracy": 0.9, "loss": 0.25},
    "validate": {"accuracy": 0.8125, "loss": 0.875},
    "params": 1300,
    "flops": 60_000,
    "train_flops": 6_500_000,
    "other_flops": {"growth": 1000, "evaluation": 999_000},
    "cpu_seconds": 1.04,
    "process_cpu_seconds": 3.5,
    "wall_seconds": 1.26,
    "steps": 16,
    "events": 1,
    "ladder": {
        "stages": 2,
        "metric": "accuracy",
        "within": 0.05,
        "best": {"stage": 1, "accuracy": 0.8125, "params": 1300, "flops": 60_000},
        "smallest": {"stage": 1, "accuracy": 0.8125, "params": 1300, "flops": 60_000},
    },
    "folder": "runs/demo/now",
}


def play(observer: Observer) -> None:
    """One run of two epochs with a growth event between them."""
    observer.started(FACTS)
    for step in range(1, 17):
        if step == 9:
            observer.new_units(9, {"a.fc": 0.5})
        observer.step(step)
        if step == 8:
            observer.epoch(EPOCHS[0], SEED)
            observer.stage(STAGE)
            observer.growth(EVENT, GROWN, 3_000_000)
    observer.warned("mind this")
    observer.epoch(EPOCHS[1], GROWN)
    observer.no_growth(16, NOTHING)
    observer.finished(RESULT)
    observer.close()


def strict(text: str) -> Any:
    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(text, parse_constant=refuse)
