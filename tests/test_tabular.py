"""Tables: what becomes a number, a category, a class; what is refused, by file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import growkit
from growkit.config import config_from_overrides
from growkit.config.data import TabularSettings
from growkit.data import SPLITS, Data, load_data
from growkit.errors import DataError

COLOURS = ("blue", "green", "red")


def rows(count: int = 60) -> list[str]:
    """Height, colour, an identifier and a kind that follows from the height."""
    return [f"{k % 7 + 0.5},{COLOURS[k % 3]},{1000 + k},{'tall' if k % 7 > 3 else 'small'}" for k in range(count)]


def write(path: Path, lines: list[str], header: str = "height,colour,id,kind") -> str:
    path.write_text("\n".join([header, *lines]) + "\n")
    return str(path)


def table(folder: Path, **settings: Any) -> TabularSettings:
    known = {"path": write(folder / "things.csv", rows()), "target": "kind", "ignore": ["id"]}
    return TabularSettings(**{**known, **settings})


def in_order(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    order = torch.cat([data.indices[name] for name in SPLITS]).argsort()
    inputs = torch.cat([data.splits[name].inputs for name in SPLITS])
    return inputs[order], torch.cat([data.splits[name].targets for name in SPLITS])[order]


def test_numbers_stay_numbers_and_categories_become_columns(tmp_path: Path):
    data = load_data(table(tmp_path))
    inputs, targets = in_order(data)
    assert (data.task, data.num_outputs, data.input_shape) == ("classification", 2, (4,))
    assert inputs[4].tolist() == [4.5, 0.0, 1.0, 0.0] and inputs[2].tolist() == [2.5, 0.0, 0.0, 1.0]
    assert targets[:5].tolist() == [0, 0, 0, 0, 1]  # small, tall


def test_a_model_sees_numbers_by_the_moments_of_the_train_split(tmp_path: Path):
    data = load_data(table(tmp_path))
    seen = data.example(len(data.train))
    assert seen[:, 0].mean().abs() < 1e-6 and seen[:, 0].std(correction=0) == pytest.approx(1.0, rel=1e-5)
    assert torch.equal(seen[:, 1:], data.train.inputs[:, 1:])


def test_values_to_predict_are_scaled_and_can_be_put_back(tmp_path: Path):
    path = write(tmp_path / "houses.csv", [f"{k % 11},{200_000 + 5_000 * (k % 11)}" for k in range(60)], "area,price")
    data = load_data(TabularSettings(path=path, target="price", task="regression"))
    assert data.train.targets.mean().abs() < 1e-6
    assert data.train.targets.std(correction=0) == pytest.approx(1.0, rel=1e-5)
    prices = in_order(data)[1] * data.target_std + data.target_mean
    assert torch.allclose(prices[:, 0], torch.tensor([200_000.0 + 5_000 * (k % 11) for k in range(60)]))


@pytest.mark.parametrize(
    ("target", "task", "found", "outputs"),
    [
        ("kind", "auto", "classification", 2),
        ("colour", "auto", "classification", 3),
        ("id", "auto", "regression", 1),
        ("height", "auto", "regression", 1),
        ("height", "classification", "classification", 7),
    ],
)
def test_the_target_decides_the_task(tmp_path: Path, target: str, task: str, found: str, outputs: int):
    data = load_data(table(tmp_path, target=target, task=task, ignore=[]))
    assert (data.task, data.num_outputs) == (found, outputs)
    assert bool(data.notes) == (task == "auto" and target in ("id", "height"))


def test_whole_numbers_are_classes_in_their_order(tmp_path: Path):
    path = write(tmp_path / "stars.csv", [f"{k % 5},{(2, 10, 9)[k % 3]}" for k in range(60)], "size,stars")
    data = load_data(TabularSettings(path=path, target="stars"))
    assert data.num_outputs == 3 and in_order(data)[1][:3].tolist() == [0, 2, 1]  # 2 < 9 < 10
    assert data.notes[0].endswith("'stars' are taken for 3 classes; data.task: regression says otherwise")


def test_numbers_may_be_categories(tmp_path: Path):
    assert load_data(table(tmp_path, categories=["height"])).input_shape == (10,)


def test_a_table_of_its_own_to_test_on(tmp_path: Path):
    other = write(tmp_path / "more.csv", rows(9))
    data = load_data(table(tmp_path, test_path=other))
    assert len(data.test) == 9 and sum(len(data.splits[name]) for name in SPLITS) == 69


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([*rows(), "1.0,red,7"], r"things.csv:62: a row must have 4 cells as the header has, got 3"),
        ([*rows(), "1.0,,7,tall"], r"things.csv:62: column 'colour' must have a value in every row.*data.ignore"),
        ([], "must have rows below its header"),
        (
            [*rows(), "NA,red,7,tall"],
            r"things.csv:62: column 'height' must hold finite numbers, as most .*ignore",
        ),
        ([*rows(), "1e39,red,7,tall"], "things.csv:62: column 'height' must hold finite numbers of at most 3.4e.38"),
    ],
    ids=["ragged", "empty cell", "no rows", "a gap", "too large"],
)
def test_a_wrong_row_is_named_by_its_line(tmp_path: Path, lines: list[str], message: str):
    settings = table(tmp_path)
    write(tmp_path / "things.csv", lines)
    with pytest.raises(DataError, match=message):
        load_data(settings)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"target": "kinds"}, r"data.target must name a column, got 'kinds'; did you mean 'kind'\?"),
        ({"ignore": ["id", "height", "colour"]}, "there must be a column to predict from"),
        (
            {"target": "colour", "task": "regression"},
            "things.csv:2: column 'colour' must hold finite numbers of at most 3.4e.38, got 'blue'",
        ),
        ({"delimiter": ";"}, "data.target must name a column, got 'kind'; data.delimiter may be ','"),
        ({"ignore": ["kind"]}, "must have one part, but .* name 'kind' twice"),
        ({"categories": ["id"]}, "must have one part, but .* name 'id' twice"),
        ({"test_path": "no.csv"}, "no.csv: data.test_path must name a CSV file"),
    ],
)
def test_wrong_columns_are_explained(tmp_path: Path, changed: dict[str, Any], message: str):
    with pytest.raises(DataError, match=message):
        load_data(table(tmp_path, **changed))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "1.0,pink,7,tall",
            r"more.csv:3: category 'pink' of column 'colour' is not in the training table \(blue, green",
        ),
        ("1.0,red,7,huge", r"more.csv:3: class 'huge' of column 'kind' is not in the training table \(small, tall\)"),
        ("high,red,7,tall", "more.csv:3: column 'height' must hold finite numbers of at most 3.4e.38, got 'high'"),
    ],
)
def test_what_only_the_test_table_has_is_named(tmp_path: Path, row: str, message: str):
    other = write(tmp_path / "more.csv", [*rows(1), row])
    with pytest.raises(DataError, match=message):
        load_data(table(tmp_path, test_path=other))


def test_a_gap_among_values_to_predict_makes_no_classes_of_them(tmp_path: Path):
    path = write(tmp_path / "houses.csv", [*(f"{k % 11},{k}.5" for k in range(60)), "3,NA"], "area,price")
    with pytest.raises(DataError, match="houses.csv:62: column 'price' must hold finite numbers, .* got 'NA'"):
        load_data(TabularSettings(path=path, target="price"))


def test_a_header_that_names_a_column_twice_is_refused(tmp_path: Path):
    settings = table(tmp_path)
    write(tmp_path / "things.csv", rows(), "height,height,id,kind")
    with pytest.raises(DataError, match=r"things.csv:1: the first line must name every column once, got \['height'\]"):
        load_data(settings)


def test_a_table_grows_a_model_that_learns_it(tmp_path: Path):
    config = config_from_overrides(
        {
            "data": table(tmp_path).model_dump(mode="json", by_alias=True),
            "model": {"name": "mlp", "hidden": [4]},
            "train": {"epochs": 40, "batch_size": 8, "optimizer": {"name": "adam", "lr": 0.03}},
            "growth": {"when": {"name": "periodic", "start": 5, "events": 1}, "target": 2.0},
            "run": {"root": str(tmp_path / "runs"), "tensorboard": False},
        }
    )
    done = growkit.run(config, observers=())
    assert done.events[0].grown and done.result["test"]["accuracy"] == 1.0
