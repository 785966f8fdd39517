"""Settings from Python, written out and read back."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from config_cases import Write, problems_of
from hypothesis import given
from hypothesis import strategies as st

import growkit
from growkit.config import Config, config_from_overrides, dump_config, json_schema, load_config
from growkit.config.growth import GradMaxSettings, NeverSettings
from growkit.config.models import MlpSettings
from growkit.config.train import AdamSettings, AdamWSettings, TrainSettings
from growkit.config.tree import homes
from growkit.errors import ConfigError

# From Python


def test_settings_may_be_dotted_nested_or_objects() -> None:
    config = config_from_overrides(
        {
            "train.epochs": 3,
            "growth.when": "never",
            "growth": {"budget": {"params": 1000}, "initializer.scale": 1.0},
            "model": MlpSettings(hidden=(8,)),
            "run.root": Path("out"),
        }
    )
    assert config.train.epochs == 3
    assert (config.growth.when, config.growth.budget.params) == (NeverSettings(), 1000)
    assert config.growth.initializer == GradMaxSettings(scale=1.0)
    assert config.model == MlpSettings(hidden=(8,))
    assert config.run.root == "out"


def test_no_settings_are_the_defaults() -> None:
    assert config_from_overrides(None) == Config() == config_from_overrides({})


def test_settings_lie_on_top_of_a_base_that_keeps_only_what_was_set() -> None:
    base = Config(seed=7, train=TrainSettings(optimizer=AdamSettings(lr=0.5)))
    config = config_from_overrides({"train.optimizer.name": "adamw", "train.epochs": 3}, base)
    assert config.train.optimizer == AdamWSettings(lr=0.5)  # and the weight decay of AdamW, not that of Adam
    assert (config.seed, config.train.epochs) == (7, 3)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"train.epochs": 0}, "settings: train.epochs: must be >= 1, got 0"),
        ({"train": {"epoch": 1}}, "settings: train.epoch: unknown setting; did you mean 'epochs'?"),
        ({"train.epochs": 1, "train": {"epochs": 2}}, "settings: train.epochs: given twice; keep one"),
        ({1: 2}, "settings: a key must be text, got 1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], problem: str) -> None:
    assert problems_of(config_from_overrides, settings) == [problem]


# Writing


def test_the_defaults_are_dumped_and_read_back(write: Write) -> None:
    config = config_from_overrides({"run.name": "c"})
    assert load_config(write(dump_config(config))) == config


def test_a_dump_is_easy_to_read() -> None:
    text = dump_config(config_from_overrides({"model": {"name": "mlp", "hidden": [8, 4]}}))
    assert "model:\n  name: mlp\n  hidden: [8, 4]\n" in text
    assert "  split:\n    test: null\n    validate: 0.1\n" in text


texts = st.text(st.characters(codec="utf-8"), max_size=8)

variations = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "run.name": st.sampled_from(["010", "1e3", "null", "a.b", "no"]),
        "run.root": texts,
        "train.epochs": st.integers(1),
        "train.optimizer": st.fixed_dictionaries(
            {"name": st.sampled_from(["sgd", "adam", "adamw"]), "lr": st.floats(1e-300, 1e300)}
        ),
        "train.schedule": st.sampled_from(["constant", "cosine", {"name": "step", "milestones": [0.5, 1e-7]}]),
        "data": st.sampled_from(["digits", "cifar10", "teacher", {"name": "npz", "path": "x: #y"}]),
        "data.split.test": st.none() | st.floats(0, 0.99),
        "model": st.sampled_from(["mlp", "vgg", {"name": "wrn", "depth": 28}])
        | st.fixed_dictionaries(
            {
                "name": st.just("a.b:c"),
                "args": st.dictionaries(texts, st.none() | st.booleans() | texts | st.integers()),
            }
        ),
        "growth.when": st.sampled_from(["never", {"name": "periodic", "events": 3, "unit": "steps"}]),
        "growth.fallback": st.none() | st.sampled_from(["random", "zero"]),
        "growth.target": st.floats(1, 1e3) | st.dictionaries(texts, st.integers(1)),
        "growth.sites": st.lists(texts, min_size=1),
    },
)


@given(variations)
def test_variations_are_dumped_and_read_back(
    tmp_path_factory: pytest.TempPathFactory, settings: dict[str, Any]
) -> None:
    config = config_from_overrides({"run.name": "c", **settings})
    path = tmp_path_factory.getbasetemp() / "c.yaml"
    path.write_text(dump_config(config), encoding="utf-8", newline="")
    assert load_config(path) == config
    assert config_from_overrides(None, config) == config


def test_the_json_schema_describes_settings_and_knows_the_shorthands() -> None:
    schema = json.loads(json.dumps(json_schema()))
    assert schema["title"] == "growkit configuration"
    assert schema["description"].startswith("A run: ")
    when = schema["$defs"]["GrowthSettings"]["properties"]["when"]
    names = ["never", "periodic", "spread", "plateau", "gain", "rank", "overfit_guard", "progress_guard"]
    assert when["anyOf"][0] == {"type": "string", "enum": names}
    fields = schema["$defs"]["Cifar10Settings"]["properties"]
    assert fields["limit"]["description"] == "samples kept before splitting, stratified; test is untouched."
    assert fields["download"]["description"] == "fetch it if it is missing."
    assert schema["$defs"]["GrowthSettings"]["properties"]["target"]["anyOf"][0]["minimum"] == 1


# Robustness


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["adam", "wrn", "a:b", "", "none"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(st.sampled_from(["name", "lr", "depth", "when", "a.b", "target", "path"]), inner, max_size=3)
    ),
    max_leaves=6,
)

paths = st.sampled_from([*(path for found in homes().values() for path in found), "a", "model.hidden.0", "data.x.y"])


@given(st.dictionaries(paths, values, min_size=1, max_size=4))
def test_whatever_is_given_is_accepted_or_explained(settings: dict[str, Any]) -> None:
    try:
        config_from_overrides(settings)
    except ConfigError as refused:
        assert all(problem.startswith("settings: ") and "\n" not in problem for problem in refused.problems)


# Cost


def test_a_bad_file_is_refused_in_a_fraction_of_a_second_without_torch(write: Write) -> None:
    program = f"""
import sys, time
from growkit.config import load_config
from growkit.errors import ConfigError
try:
    load_config({str(write("sed: 1"))!r})
except ConfigError as error:
    print(error)
print("torch" in sys.modules, time.process_time())
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(growkit.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    problem, facts = result.stdout.strip().split("\n")
    imported, seconds = facts.split()
    assert problem == "c.yaml:1:1: sed: unknown setting; did you mean 'seed'?"
    assert imported == "False"
    assert float(seconds) < 1.0
