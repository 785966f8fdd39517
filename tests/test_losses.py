"""Losses by name against their formulas in float64, and what they are refused for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from growkit.config import config_from_overrides, load_config
from growkit.config.train import (
    AutoLossSettings,
    CrossEntropySettings,
    FocalSettings,
    HuberSettings,
    LossSettings,
    MarginSettings,
    MeanAbsoluteSettings,
    MeanSquaredSettings,
)
from growkit.data import data_from_user
from growkit.data.records import IGNORED
from growkit.errors import ConfigError, UserInputError
from growkit.losses import build_loss
from growkit.pipeline import run

OUTPUTS, CLASSES = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 3, 1, 1, 2, 0])
VALUES = torch.randn(6, 4, generator=torch.Generator().manual_seed(1)) * 3


def by_sample(of_one: Callable[[list[float], int], float]) -> float:
    """The mean of a loss written out for one sample."""
    rows = OUTPUTS.double().tolist()
    return sum(of_one(row, target) for row, target in zip(rows, CLASSES.tolist(), strict=True)) / len(rows)


def surprise(row: list[float], target: int) -> float:
    return math.log(sum(math.exp(one) for one in row)) - row[target]


def hinge(row: list[float], target: int, margin: float) -> float:
    others = [one for place, one in enumerate(row) if place != target]
    return sum(max(0.0, margin - row[target] + one) for one in others) / len(row)


@pytest.mark.parametrize(
    ("settings", "of_one"),
    [
        (AutoLossSettings(), surprise),
        (CrossEntropySettings(), surprise),
        (FocalSettings(gamma=0.0), surprise),
        (FocalSettings(gamma=2.0), lambda row, t: (1 - math.exp(-surprise(row, t))) ** 2 * surprise(row, t)),
        (FocalSettings(gamma=0.5), lambda row, t: (1 - math.exp(-surprise(row, t))) ** 0.5 * surprise(row, t)),
        (MarginSettings(margin=1.5), lambda row, t: hinge(row, t, 1.5)),
    ],
    ids=["auto", "cross_entropy", "focal-0", "focal-2", "focal-half", "margin"],
)
def test_a_loss_of_classes_is_its_formula(settings: LossSettings, of_one: Callable[[list[float], int], float]):
    found = build_loss(settings, "classification")(OUTPUTS, CLASSES)
    assert float(found) == pytest.approx(by_sample(of_one), rel=1e-6)


@pytest.mark.parametrize(
    ("settings", "of_one"),
    [
        (AutoLossSettings(), lambda error: error**2),
        (MeanSquaredSettings(), lambda error: error**2),
        (MeanAbsoluteSettings(), abs),
        (HuberSettings(delta=0.7), lambda e: e**2 / 2 if abs(e) <= 0.7 else 0.7 * (abs(e) - 0.35)),
    ],
    ids=["auto", "mse", "mae", "huber"],
)
def test_a_loss_of_values_is_its_formula(settings: LossSettings, of_one: Callable[[float], float]):
    found = build_loss(settings, "regression")(OUTPUTS, VALUES)
    errors = (OUTPUTS.double() - VALUES.double()).flatten().tolist()
    assert float(found) == pytest.approx(sum(map(of_one, errors)) / len(errors), rel=1e-6)


@pytest.mark.parametrize("settings", [CrossEntropySettings(), FocalSettings()], ids=["cross_entropy", "focal"])
def test_padding_of_tokens_does_not_count(settings: LossSettings):
    loss = build_loss(settings, "pairs")
    padded = torch.cat([CLASSES, torch.full((3,), IGNORED)])
    outputs = torch.cat([OUTPUTS, torch.full((3, 4), 9.0)])
    assert torch.allclose(loss(outputs.view(3, 3, 4), padded.view(3, 3)), loss(OUTPUTS[None], CLASSES[None]))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_the_focal_loss_has_a_gradient_where_nothing_is_missing(gamma: float):
    sure = torch.tensor([[200.0, 0.0], [0.0, 1.0]], requires_grad=True)
    build_loss(FocalSettings(gamma=gamma), "classification")(sure, torch.tensor([0, 0])).backward()
    assert isinstance(sure.grad, Tensor) and sure.grad.isfinite().all() and sure.grad[1].abs().min() > 0


@pytest.mark.parametrize(
    ("loss", "task", "fitting"),
    [
        (MeanSquaredSettings(), "classification", "cross_entropy, focal, margin, got mse"),
        (FocalSettings(), "regression", "mse, mae, huber, got focal"),
        (MarginSettings(), "language", "cross_entropy, focal, got margin"),
    ],
)
def test_a_loss_of_another_task_is_refused_with_those_that_fit(loss: LossSettings, task: str, fitting: str):
    with pytest.raises(UserInputError, match=f"train.loss must be for {task} data, one of {fitting}"):
        build_loss(loss, task)


@pytest.mark.parametrize("settings", [CrossEntropySettings(), FocalSettings()], ids=["cross_entropy", "focal"])
def test_shares_of_classes_weigh_the_losses_of_the_classes(settings: LossSettings):
    loss, shares = build_loss(settings, "classification"), torch.rand(6, 4).softmax(-1)
    by_class = [
        sum(float(shares[i, k] * loss(OUTPUTS[i : i + 1], torch.tensor([k]))) for k in range(4)) for i in range(6)
    ]
    assert float(loss(OUTPUTS, shares)) == pytest.approx(sum(by_class) / 6, rel=1e-5)


def test_the_margin_has_no_shares_of_classes(tmp_path: Path):
    settings = config_from_overrides(
        {"train.loss": "margin", "data.augment.mixup": 0.2, "run.root": str(tmp_path), "growth.when": "never"}
    )
    with pytest.raises(UserInputError, match=r"where data.augment.mixup makes them, got margin; take cross_entropy"):
        run(settings)


def test_a_loss_of_another_task_leaves_nothing_on_disk(tmp_path: Path):
    settings = config_from_overrides({"train.loss": "huber", "run.root": str(tmp_path)})
    with pytest.raises(UserInputError, match="train.loss must be for classification data"):
        run(settings)
    assert list(tmp_path.iterdir()) == []


def test_smoothing_of_another_loss_is_refused_at_its_place(write: Callable[[str], Path]):
    file = write("train: {loss: focal, label_smoothing: 0.1}")
    with pytest.raises(ConfigError, match=r"c.yaml:1:1: train: label_smoothing goes with loss: cross_entropy"):
        load_config(file)


def test_a_run_trains_on_the_loss_it_names_and_reports_the_cross_entropy_too():
    inputs = torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    data = data_from_user((inputs, (inputs.sum(1) > 0).long()))
    settings = config_from_overrides(
        {
            "train": {"loss": {"name": "focal", "gamma": 2}, "epochs": 2, "precision": "fp32"},
            "model": "mlp",
            "growth.when": "never",
        }
    )
    outcome = run(settings, data=data, observers=(), writes=False)
    model, test = outcome.model, outcome.result["test"]
    outputs, targets = model(data.test.inputs).detach(), data.test.targets
    assert test["loss"] == pytest.approx(float(build_loss(FocalSettings(), "classification")(outputs, targets)))
    assert test["cross_entropy"] == pytest.approx(
        float(build_loss(AutoLossSettings(), "classification")(outputs, targets))
    )
    assert set(outcome.history.epochs[-1].validate_metrics) == {"cross_entropy"}
