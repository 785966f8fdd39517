"""Data of callables that the settings name."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import seeded
from torch.utils.data import DataLoader, Dataset, TensorDataset
from typer.testing import CliRunner

from growkit.cli import app
from growkit.config.data import AugmentSettings, CallableDataSettings, SplitSettings
from growkit.data import Data, data_from_user, load_data
from growkit.errors import DataError
from growkit.rng import global_state

HERE = "test_called_data"
INPUTS, CLASSES = torch.randn(40, 3, generator=seeded()), torch.arange(40) % 4


class Broken(Dataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        return [][index]


def tensors(count: int = 40) -> Any:
    return INPUTS[:count], CLASSES[:count]


def arrays() -> Any:
    return INPUTS.numpy(), CLASSES.numpy()


def dataset() -> Any:
    return TensorDataset(*tensors())


def loader() -> Any:
    return DataLoader(dataset(), batch_size=7, shuffle=True)


def images() -> Any:
    return torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=seeded()), CLASSES


def chance() -> Any:
    offset = torch.rand(1).item() + np.random.rand() + random.random()
    return INPUTS + offset, CLASSES


def fails() -> Any:
    raise KeyError("no such table")


def nothing() -> Any:
    return None


def broken() -> Any:
    return Broken()


def mapped(parts: list[str]) -> Any:
    return {part: tensors() for part in parts}


def load(name: str, arguments: dict[str, Any] | None = None, **more: Any) -> Data:
    return load_data(CallableDataSettings(name=f"{HERE}:{name}", arguments=arguments or {}, **more))


@pytest.mark.parametrize("name", ["tensors", "arrays", "dataset", "loader"])
def test_what_a_callable_returns_is_what_a_user_hands_over(name: str):
    assert load(name).fingerprint() == data_from_user(tensors()).fingerprint()


def test_arguments_are_passed_and_the_shared_settings_hold():
    data = load("tensors", {"count": 36}, limit=20, split=SplitSettings(test=0.0, validate=0.5), split_seed=3)
    pair = data_from_user(tensors(36), limit=20, split=SplitSettings(test=0.0, validate=0.5), split_seed=3)
    assert data.fingerprint() == pair.fingerprint()
    assert load("images", augment=AugmentSettings(flip=True)).augment.flip


def test_a_mapping_gives_splits_of_its_own():
    data = load("mapped", {"parts": ["train", "validate", "test"]})
    assert torch.equal(data.validate.inputs, INPUTS) and torch.equal(data.test.inputs, INPUTS)
    assert len(load("mapped", {"parts": ["train", "test"]}).validate) == 4


def test_chance_follows_the_split_seed_and_leaves_no_trace():
    before = global_state()
    one, same, other = (load("chance", split_seed=seed) for seed in (0, 0, 1))
    assert global_state() == before
    assert one.fingerprint() == same.fingerprint()
    assert one.fingerprint()["inputs_sha256"] != other.fingerprint()["inputs_sha256"]


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("tensrs", {}, r"has no 'tensrs'; did you mean 'tensors'\?"),
        ("tensors", {"cuont": 3}, r"failed: TypeError: .*'cuont'"),
        ("fails", {}, r"'test_called_data:fails' failed: KeyError: 'no such table'"),
        ("broken", {}, r"'test_called_data:broken' failed while it was read: IndexError"),
        ("nothing", {}, r"'test_called_data:nothing', train must be \(inputs, targets\), a Dataset .* got NoneType"),
        ("mapped", {"parts": ["train", "val"]}, r"train, validate, test, got the key 'val'; did you mean 'validate'\?"),
        ("mapped", {"parts": ["test"]}, r"must return train data, got a mapping of test"),
        ("CLASSES", {}, r"must be callable, got Tensor"),
    ],
)
def test_what_is_wrong_is_said_with_the_name_of_the_callable(name: str, arguments: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"data '{HERE}:{name}'") as raised:
        load(name, arguments)
    assert raised.match(message)


def test_a_share_of_a_split_that_is_given_must_be_left_out():
    with pytest.raises(DataError, match=r"split\.validate must be left out where validate data are given, got 0\.2"):
        load("mapped", {"parts": ["train", "validate"]}, split=SplitSettings(validate=0.2))


def test_recorded_settings_give_the_same_data_once_more():
    parts = {"parts": ["train", "validate"]}
    recorded = SplitSettings(**SplitSettings().model_dump(by_alias=True))  # as config.yaml has them: all are set
    assert load("mapped", parts).fingerprint() == load("mapped", parts, split=recorded).fingerprint()


def test_the_nearest_module_is_named():
    with pytest.raises(DataError, match=r"No module named 'test_caled_data'; .*did you mean 'test_called_data'\?"):
        load_data(CallableDataSettings(name="test_caled_data:tensors"))
    with pytest.raises(DataError, match=r"No module named 'torch.utls'; .*did you mean 'utils'\?"):
        load_data(CallableDataSettings(name="torch.utls:tensors"))


def test_a_run_is_made_of_a_callable_and_refused_with_one_message(tmp_path: Path):
    (tmp_path / "c.yaml").write_text(
        f"data: {{name: {HERE}:tensors, arguments: {{count: 40}}}}\nmodel: {{name: mlp, hidden: [3]}}\n"
        "train: {epochs: 1}\ngrowth: {when: never}\n"
    )
    run = ["run", str(tmp_path / "c.yaml"), f"run.root={tmp_path}", "run.tensorboard=false"]
    assert CliRunner().invoke(app, run).exit_code == 0
    refused = CliRunner().invoke(app, [*run, "data.arguments={count: many}"])
    assert refused.exit_code == 2
    assert refused.stderr.startswith(f"growkit: data '{HERE}:tensors' failed: TypeError: ")
