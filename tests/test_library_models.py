"""Models of torchvision by name, and weights from a user's file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import growkit
from growkit.config import config_from_overrides
from growkit.config.models import CallableModelSettings
from growkit.errors import ModelError, UserInputError
from growkit.models import build_model
from growkit.rng import isolated

pytest.importorskip("torchvision")
NAME, SHAPE = "torchvision:squeezenet1_1", (3, 32, 32)


def build(num_outputs: int = 5, **settings: Any) -> nn.Module:
    with isolated(0):
        return build_model(CallableModelSettings(name=NAME, **settings), SHAPE, num_outputs)


def other_weights(num_outputs: int = 5) -> dict[str, torch.Tensor]:
    return {name: value + 0.01 for name, value in build(num_outputs).state_dict().items()}


def test_a_library_model_has_the_classes_of_the_data():
    assert build(5)(torch.randn(2, 3, 64, 64)).shape == (2, 5)
    assert build(5, args={"num_classes": 7})(torch.randn(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
@pytest.mark.parametrize("inside", [None, "state_dict"])
def test_weights_are_those_of_the_file(tmp_path: Path, suffix: str, inside: str | None):
    path, state = tmp_path / f"weights.{suffix}", other_weights()
    if suffix == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if inside is None else {inside: state, "epoch": 3}, path)
    loaded = build(weights=str(path)).state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


def test_a_head_for_other_classes_may_be_left_out(tmp_path: Path):
    save_file(other_weights(9), path := tmp_path / "weights.safetensors")
    message = r"classifier.1.weight is \[5, 512, 1, 1\] in the model and \[9, 512, 1, 1\] in the file.*weights_except"
    with pytest.raises(ModelError, match=message):
        build(weights=str(path))
    loaded = build(weights=str(path), weights_except=["classifier.*"]).state_dict()
    fresh, state = build().state_dict(), other_weights(9)
    assert torch.equal(loaded["classifier.1.weight"], fresh["classifier.1.weight"])
    assert torch.equal(loaded["features.0.weight"], state["features.0.weight"])


class Harmful:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps({"features.0.weight": Harmful()}), "of tensors alone, for other objects may run code"),
        (b"no weights at all", "weights.pt: model.weights"),
        (None, "there is none"),
    ],
    ids=["code", "rubbish", "missing"],
)
def test_a_wrong_file_is_refused_and_runs_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, message: str
):
    path = tmp_path / "weights.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ModelError, match=message):
        build(weights=str(path))
    assert capsys.readouterr().out == ""


def test_weights_of_another_model_are_named(tmp_path: Path):
    save_file(nn.Linear(3, 2).state_dict(), path := tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"features.0.weight is missing from the file.*; and \d+ more"):
        build(weights=str(path))


def test_names_that_a_wrapper_made_longer_are_explained(tmp_path: Path):
    torch.save({f"module.{name}": value for name, value in other_weights().items()}, path := tmp_path / "weights.pt")
    with pytest.raises(ModelError, match=r"DataParallel put 'module.' before every name"):
        build(weights=str(path))


def test_weights_that_are_no_numbers_are_named(tmp_path: Path):
    state = other_weights()
    state["features.0.bias"][3] = float("nan")
    save_file(state, path := tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"weights.safetensors: .* but features.0.bias holds NaN"):
        build(weights=str(path))


def test_exceptions_without_effect_are_refused(tmp_path: Path):
    save_file(other_weights(), path := tmp_path / "weights.safetensors")
    with pytest.raises(ModelError, match=r"weights_except must fit names of weights, but 'fc.\*' fits none"):
        build(weights=str(path), weights_except=["classifier.*", "fc.*"])
    with pytest.raises(UserInputError, match="weights_except goes with weights"):
        config_from_overrides({"model": {"name": NAME, "weights_except": ["classifier.*"]}})


@pytest.mark.parametrize(
    ("name", "message"),
    [("torchvision:resnet19", "did you mean torchvision:resnet18"), ("timm:no_such_model", "timm")],
)
def test_an_unknown_model_is_explained(name: str, message: str):
    with pytest.raises(ModelError, match=message):
        build_model(CallableModelSettings(name=name), SHAPE, 5)


def test_a_library_model_grows_and_comes_back_without_trust_or_its_first_weights(tmp_path: Path):
    save_file(other_weights(10), path := tmp_path / "weights.safetensors")
    config = config_from_overrides(
        {
            "data": {"name": "npz", "path": str(images(tmp_path))},
            "model": {"name": NAME, "weights": str(path)},
            "train": {"epochs": 2, "batch_size": 16, "optimizer": {"name": "sgd", "lr": 1e-6}},
            "growth": {
                "when": {"name": "periodic", "start": 1, "events": 1},
                "initializer": "zero",
                "sites": ["features.3.squeeze"],
                "target": 1.5,
            },
            "run": {"root": str(tmp_path / "runs"), "tensorboard": False},
        }
    )
    done = growkit.run(config, observers=())
    assert [one.site for one in done.events[0].grown] == ["features.3.squeeze"]
    path.unlink()
    again = growkit.load(done.folder).state_dict()
    assert all(torch.equal(again[name], value) for name, value in done.model.state_dict().items())


def images(folder: Path) -> Path:
    import numpy as np

    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (60, 32, 32, 3), np.uint8)
    np.savez(folder / "images.npz", train_images=pixels, train_labels=np.arange(60) % 10)
    return folder / "images.npz"
