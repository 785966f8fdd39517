"""Whole runs that grow in depth: the plan, the records, the model that comes back from disk."""

from __future__ import annotations

import copy
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import EXPERIMENTS
from depth_cases import outputs
from depth_growth_cases import Tower
from rich.console import Console

import growkit
from growkit.config import config_from_overrides, load_config
from growkit.dry_run import describe, render
from growkit.errors import ConfigError, UserInputError
from growkit.pipeline import run
from growkit.report import ConsoleReport

WRN = {"model": {"name": "wrn", "depth": 16, "block_width": 0.25}, "data": {"name": "digits", "limit": 200}}
PERIODIC = {"name": "periodic", "start": 1, "every": 1, "events": 3, "unit": "epochs"}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(120, 5, generator=generator), torch.arange(120) % 3


def settings(mode: str, **growth: Any) -> dict[str, Any]:
    widths = {"sites": ["blocks.*"], "target": 2.0, "fallback": "zero"} if mode == "both" else {}
    return {
        "train": {"epochs": 5, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 0.05, "momentum": 0.9}},
        "growth": {"mode": mode, "when": PERIODIC, **widths, **growth},
        "run.tensorboard": False,
    }


def grown(tmp_path: Path, mode: str, **growth: Any) -> tuple[growkit.Grown, torch.nn.Module, str]:
    torch.manual_seed(0)
    seed, told = Tower(), io.StringIO()
    console = ConsoleReport(Console(file=told, width=200))
    model = copy.deepcopy(seed)
    result = growkit.grow(model, data(), config=settings(mode, **growth), root=tmp_path, observers=[console])
    return result, seed, told.getvalue()


def test_a_deepened_and_widened_model_comes_back_bit_for_bit_at_every_stage(tmp_path: Path):
    result, seed, told = grown(tmp_path, "both")
    assert [bool(event.deepened) for event in result.events] == [False, True, False]
    assert result.folder is not None and "blocks.0: 1 -> 2 blocks   residual block" in told
    x = data()[0][:7]
    loaded = growkit.load(result.folder, seed_model=copy.deepcopy(seed))
    assert torch.equal(outputs(loaded, x), outputs(result.model, x))
    for stage, depth in enumerate((2, 2, 4, 4)):
        again = growkit.load(result.folder, stage, seed_model=copy.deepcopy(seed))
        assert len(again.blocks) == depth  # type: ignore[arg-type]
    assert [stage.depths for stage in result.stages[1:3]] == [
        dict.fromkeys(("blocks.0", "blocks.1"), n) for n in (1, 2)
    ]


def test_the_run_folder_tells_of_blocks_and_their_sites(tmp_path: Path):
    result, _, _ = grown(tmp_path, "both")
    assert result.folder is not None
    events = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    started, (_, deep, _) = events[0], [event for event in events if event["event"] == "growth"]
    assert started["depths"] == {"blocks.0": 1, "blocks.1": 1} and started["plan"] is None
    assert deep["deepened"][0]["modules"] == ["blocks.1"] and deep["deepened"][0]["zeroed"] == [
        "outer.weight",
        "outer.bias",
    ]
    assert {name for event in events if event["event"] == "new_units" for name in event["gradient_norms"]} >= {
        "depth/blocks.0",
        "blocks.0+1.inner",
    }
    rows = list(csv.DictReader(io.StringIO((result.folder / "metrics.csv").read_text())))
    assert [row["depth/blocks.1"] for row in rows] == ["1", "1", "2", "2", "2"]
    assert [row["width/blocks.0+1.inner"] for row in rows] == ["", "", "9", "12", "12"]
    assert result.result["depths"] == {"blocks.0": 2, "blocks.1": 2}
    rungs = list(csv.DictReader(io.StringIO((result.folder / "pareto.csv").read_text())))
    assert [row["depth/blocks.1"] for row in rungs] == ["1", "1", "2", "2"]
    assert [row["width/blocks.0+1.inner"] for row in rungs] == ["", "", "9", "12"]


def test_a_plan_in_depth_is_what_the_run_spends(tmp_path: Path):
    result, _, _ = grown(tmp_path, "depth", depth={"target": 3.0}, where="round_robin")
    assert result.result["planned_train_flops"] == result.result["train_flops"]
    assert result.result["depths"] == {"blocks.0": 3, "blocks.1": 2}


def test_largest_gain_measures_sites_and_places_in_a_run(tmp_path: Path):
    result, _, _ = grown(tmp_path, "both", where={"name": "largest_gain", "factor": 0.01})
    first = result.events[0].decisions[0]
    assert first.scores["score"] > 0 and "of 4" in first.reason  # two sites and two places were ranked


def test_a_budget_of_training_holds_over_wider_and_deeper(tmp_path: Path):
    free, _, _ = grown(tmp_path, "both")
    limit = int(0.9 * free.result["train_flops"])
    result, _, _ = grown(tmp_path, "both", budget={"train_flops": limit})
    assert 0 < len(result.events) < len(free.events) or result.result["params"] < free.result["params"]
    assert result.result["train_flops"] <= limit


def test_a_dry_run_lists_places_and_plans_depth():
    growth = {
        "growth": {"mode": "depth", "when": PERIODIC, "depth": {"places": ["blocks.1", "blocks.3"], "target": 2.0}}
    }
    facts = describe(config_from_overrides(WRN | growth))
    assert [(place["name"], place["depth"], place["target"]) for place in facts["places"]] == [
        ("blocks.1", 1, 2),
        ("blocks.3", 1, 2),
    ]
    assert facts["final"] == facts["target"] and facts["train_flops"] is not None
    assert "  step       2   4 blocks" in render(facts)


def test_the_seed_alone_may_train_for_the_flops_of_a_plan_in_depth():
    growth = {"mode": "depth", "when": PERIODIC, "depth": {"places": ["blocks.*"]}}
    base = WRN | {"growth": growth, "train.epochs": 4}
    planned = run(config_from_overrides(base), observers=(), writes=False).result
    control = run(config_from_overrides({**base, "control": "seed"}), observers=(), writes=False).result
    assert control["events"] == 0 and control["steps"] > planned["steps"]
    assert control["train_flops"] == pytest.approx(planned["train_flops"], rel=0.1)


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ({"mode": "both"}, "control needs a growth plan known in advance, which growth.mode both has not"),
        ({"mode": "depth", "when": "plateau"}, "control needs a growth plan known in advance"),
    ],
)
def test_what_no_plan_can_know_is_an_error(growth: dict[str, Any], message: str):
    config = config_from_overrides(WRN | {"growth": {"when": PERIODIC} | growth, "control": "seed"})
    with pytest.raises(UserInputError, match=message):
        run(config, observers=(), writes=False)


def test_the_full_network_of_a_plan_in_depth_is_no_control():
    config = config_from_overrides(WRN | {"growth": {"mode": "depth", "when": PERIODIC}, "control": "full"})
    with pytest.raises(UserInputError, match="build the deep network by the settings of the model"):
        run(config, observers=(), writes=False)


def test_a_model_without_places_is_refused_before_it_trains():
    model = torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))
    with pytest.raises(UserInputError, match=r"need a place .*got none; take width\n  0 is followed by no idempotent"):
        growkit.grow(model, data(), config=settings("depth"), observers=())


@pytest.mark.parametrize(
    ("growth", "message"),
    [
        ({"depth": {"target": 3.0}}, "depth: is for growth in depth, got it with mode: width"),
        ({"mode": "depth", "how_many": "fraction"}, "how_many: is for widths, which mode: depth leaves as they are"),
        ({"mode": "depth", "when": "rank"}, "when: rank reads the spectra of widths"),
        ({"mode": "depth", "optimizer": {"state": "reset_grown"}}, "optimizer.state: reset_grown is for parameters"),
        ({"mode": "depth", "optimizer": {"part_rates": "norm_ratio"}}, "optimizer.part_rates: norm_ratio is for param"),
        ({"mode": "both", "how_many": "budget_paced", "budget": {"params": 10}}, "budget_paced cannot keep pace"),
        ({"mode": "both", "where": {"name": "largest_gain", "per": "unit"}}, "where.per: must be flops or params"),
        ({"mode": "depth", "depth": {"target": 0.5}}, "must be a multiple of the seed's depth from 1 to 1000, got 0.5"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(growth: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        config_from_overrides({"growth": growth})


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["gpt_depth", "wrn_both"])
def test_a_recipe_runs_to_its_end(recipe: str, tmp_path: Path):
    result = run(load_config(EXPERIMENTS / f"{recipe}.yaml", [f"run.root={tmp_path}"]), observers=())
    assert result.folder is not None and all(event.undone is None for event in result.events)
    assert growkit.load(result.folder).state_dict().keys() == result.model.state_dict().keys()
