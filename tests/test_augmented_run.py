"""Runs with everything on at once: label noise, a share of train, a policy, Cutout and mixup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import EXPERIMENTS, short
from sklearn.datasets import load_digits
from torch import Tensor, nn

import growkit
from growkit.config import load_config
from growkit.data import load_data
from growkit.growth.controller import GrowthController
from growkit.pipeline import RunResult, run

HARD = {
    "label_noise": "{rate: 0.2, splits: [train, validate]}",
    "train_share": "0.8",
    "augment": "{crop: 1, policy: {name: randaugment, magnitude: 4}, cutout: 2, mixup: 0.2}",
}
TRAINING = {
    "train__optimizer": "{name: sam, m: 16, base: {name: sgd, lr: 0.05}}",
    "train__label_smoothing": "0.1",
    "train__batch_size": "32",
    "train__epochs": "5",
}


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor]:
    """From 0 to 240, as policies expect, not to 16."""
    found = load_digits()
    return torch.tensor(found.images * 15).to(torch.uint8)[:, None], torch.tensor(found.target)


@pytest.fixture(scope="module")
def archive(digits: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits.npz"
    np.savez(path, train_images=digits[0][:, 0].numpy(), train_labels=digits[1].numpy())
    return path


def hard_run(root: Path, archive: Path) -> RunResult:
    data = ", ".join(f"{key}: {value}" for key, value in {"name": "npz", "path": str(archive), **HARD}.items())
    settings = short(root, data=f"{{{data}}}", **TRAINING)
    return run(load_config(EXPERIMENTS / "wrn_quarter.yaml", settings), observers=())


@pytest.fixture(scope="module")
def grown(archive: Path, tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return hard_run(tmp_path_factory.mktemp("grown"), archive)


def test_a_run_trains_and_grows(grown: RunResult):
    losses = [epoch.train_loss for epoch in grown.history.epochs]
    assert losses[-1] < losses[0]
    assert grown.result["events"] == 3 and grown.result["largest_change"]["eval"] <= 1e-5
    assert grown.result["test"]["accuracy"] > 0.4  # of ten classes


def test_the_same_seed_gives_the_same_run(grown: RunResult, archive: Path, tmp_path: Path):
    again = hard_run(tmp_path, archive)
    assert all(map(torch.equal, grown.model.parameters(), again.model.parameters()))
    assert [epoch.train_loss for epoch in again.history.epochs] == [epoch.train_loss for epoch in grown.history.epochs]


def test_the_record_counts_wrong_labels(grown: RunResult):
    assert grown.folder is not None
    config = load_config(grown.folder / "config.yaml")
    noisy = load_data(config.data)
    clean = load_data(config.data.model_copy(update={"label_noise": None}))
    wrong = {name: int((noisy.splits[name].targets != clean.splits[name].targets).sum()) for name in clean.splits}
    assert wrong["train"] > 0 < wrong["validate"] and wrong["test"] == 0
    environment, result = (json.loads((grown.folder / name).read_text()) for name in ("env.json", "result.json"))
    assert environment["data"]["wrong_labels"] == result["wrong_labels"] == wrong
    assert environment["data"]["fingerprint"] == noisy.fingerprint() != clean.fingerprint()


def test_the_terminal_says_how_many_labels_are_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = short(tmp_path, data__label_noise="{rate: 0.5}", growth__when="never", train__epochs="1")
    result = run(load_config(EXPERIMENTS / "wrn_quarter.yaml", settings)).result
    assert f"train 1006 ({result['wrong_labels']['train']} labels wrong), validate 144," in capsys.readouterr().out


def test_growth_measures_the_mixed_loss_that_training_has(
    digits: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    seen: list[Tensor] = []
    grow = GrowthController.grow

    def watched(self: GrowthController, optimizer: Any, inputs: Any, targets: Tensor, history: Any) -> Any:
        seen.append(targets)
        return grow(self, optimizer, inputs, targets, history)

    monkeypatch.setattr(GrowthController, "grow", watched)
    settings = {"data.augment.mixup": 1.0, "train.epochs": 4, "growth.when.start": 1}
    growkit.grow(seed_model(), digits, config=settings, observers=())
    assert seen and all(shares.dtype == torch.float32 and shares.shape[1] == 10 for shares in seen)
    assert all(((shares > 0).sum(1) == 2).any() for shares in seen)


# --- in Python


def seed_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))


@pytest.mark.parametrize("policy", ["randaugment", {"name": "autoaugment", "policy": "svhn"}], ids=str)
def test_data_in_python_take_the_same_settings(digits: tuple[Tensor, Tensor], policy: object):
    settings = {
        "data.label_noise": {"rate": 0.2},
        "data.train_share": 0.5,
        "data.augment": {"policy": policy, "mixup": 0.2},
        "train.epochs": 4,
        "growth.when.start": 1,
    }
    grown = growkit.grow(seed_model(), digits, config=settings, observers=())
    assert grown.result["events"] > 0 and grown.model[1].out_features > 8
    assert 60 < grown.result["wrong_labels"]["train"] < 120  # of 503


def test_settings_of_a_file_are_kept_for_data_in_python(digits: tuple[Tensor, Tensor], tmp_path: Path):
    text = "data: {name: digits, train_share: 0.5, label_noise: {rate: 1.0, among: others}}\ngrowth: {when: never}\n"
    (tmp_path / "c.yaml").write_text(text + "train: {epochs: 1}\n")
    grown = growkit.grow(seed_model(), digits, config=tmp_path / "c.yaml", observers=())
    assert grown.result["wrong_labels"]["train"] == len(load_data(load_config(tmp_path / "c.yaml").data).train)
