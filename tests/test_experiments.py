"""Every recipe builds: its settings are valid, its model and plan stand, and its plan is the published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import EXPERIMENTS

import growkit
from growkit.assembly import assemble
from growkit.config import Config, load_config

RECIPES = sorted(EXPERIMENTS.glob("*.yaml"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of CIFAR's shape, for recipes whose data have to be fetched."""
    path = tmp_path_factory.mktemp("data") / "stand_in.npz"
    rng = np.random.default_rng(0)
    np.savez(path, train_images=rng.integers(0, 255, (1280, 32, 32, 3), np.uint8), train_labels=np.arange(1280) % 10)
    return path


def with_stand_in(recipe: Path, images: Path) -> Config:
    config = load_config(recipe)
    if not config.data.name.startswith("cifar"):
        return config
    split = f"{{test: 0.0, validate: {config.data.split.validate_}, diagnose: 0.0, accept: 0.0}}"
    return load_config(recipe, [f"data={{name: npz, path: {images}, split: {split}}}"])


def test_there_are_recipes():
    assert {"wrn_quarter", "wrn_quarter_cifar10", "vgg_quarter_cifar10", "mlp_teacher_student"} <= {
        path.stem for path in RECIPES
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_builds_and_reaches_its_target(recipe: Path, images: Path):
    config = with_stand_in(recipe, images)
    # the stand-in is small: as many steps as the real data would give
    parts = assemble(
        config.model_copy(update={"train": config.train.model_copy(update={"epochs": 10 * config.train.epochs})})
    )
    assert parts.controller.ground.states
    assert (parts.plan is None) == (config.growth.mode == "both" or config.growth.policy == "auto")


def test_the_published_wrn_schedule(images: Path):
    config = with_stand_in(EXPERIMENTS / "wrn_quarter_cifar10.yaml", images)
    steps_per_epoch = 391  # 50 000 images in batches of 128
    parts = assemble(
        config.model_copy(update={"train": config.train.model_copy(update={"epochs": 200 * steps_per_epoch // 10})})
    )
    assert parts.plan is not None
    assert [event.step for event in parts.plan.events] == list(range(10_000, 40_000, 2_500))
    assert parts.plan.reaches_target
    assert set(parts.plan.seed_widths.values()) == {4, 8, 16}
    assert set(parts.plan.final_widths.values()) == {16, 32, 64}


QUARTERS = [path for path in RECIPES if path.stem.endswith("_quarter")]  # of each seed model, on data that are at hand


def test_every_seed_model_has_a_recipe_from_a_quarter_of_its_width():
    models = {load_config(path).model.name for path in QUARTERS}
    assert models == {"vgg", "wrn", "resnet", "mobilenet", "densenet", "vit", "lstm", "gpt", "seq2seq"}


@pytest.mark.parametrize("recipe", QUARTERS, ids=lambda path: path.stem)
def test_a_seed_model_trains_grows_and_comes_back(recipe: Path, tmp_path: Path):
    short = ["train.epochs=2", "growth.when.start=1", "growth.when.events=1", "data.limit=100", "train.batch_size=32"]
    place = [f"run.root={tmp_path}", "run.tensorboard=false", "train.optimizer={name: sgd, lr: 0.01}"]
    done = growkit.run(load_config(recipe, [*short, *place]), observers=())
    (event,) = done.events
    assert event.grown and event.change.worst <= 1e-5
    again = growkit.load(done.folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in done.model.state_dict().items())


@pytest.mark.parametrize("name", ["wrn_quarter", "wrn_quarter_adabound"])
def test_a_recipe_grows_under_its_own_optimizer(name: str, tmp_path: Path):
    short = ["train.epochs=2", "growth.when.start=1", "growth.when.events=1", "data.limit=100", "train.batch_size=32"]
    config = load_config(EXPERIMENTS / f"{name}.yaml", [*short, f"run.root={tmp_path}", "run.tensorboard=false"])
    assert config.train.optimizer.name == ("adabound" if name.endswith("adabound") else "sam")
    (event,) = growkit.run(config, observers=()).events
    assert event.grown and event.change.worst <= 1e-5
