"""Every recipe builds: its settings are valid, its model and plan stand, and its plan is the published one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import EXPERIMENTS

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
    split = "{test: 0.0, validate: 0.0, diagnose: 0.0, accept: 0.0}"
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
    assert parts.controller.tracked
    assert parts.plan is not None


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
