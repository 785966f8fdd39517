"""The ladder: every stage of a run is a model with its price and its score, and can be loaded."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import growkit
from growkit.config import config_from_overrides
from growkit.config.train import AutoLossSettings
from growkit.cost import count_flops, count_params
from growkit.data import Data, data_from_user, load_data
from growkit.device import ComputePolicy
from growkit.evaluation import evaluate, evaluate_samples, mean_and_error
from growkit.ladder import Ladder, Stage
from growkit.pipeline import RunResult, run
from growkit.report import ladder as report_ladder
from growkit.report.console import summary_lines
from growkit.report.ladder import draw

FP32, LOSS = ComputePolicy("cpu", "fp32", False, "test"), AutoLossSettings()
SETTINGS: dict[str, Any] = {
    "data.limit": 400,
    "model": {"name": "mlp", "hidden": [4, 4]},
    "train": {"epochs": 4, "batch_size": 32, "optimizer": {"lr": 0.1}, "precision": "fp32"},
    "growth": {"when": {"start": 1, "every": 1}, "how_many": {"name": "fraction", "fraction": 1.0}, "target": 8.0},
    "run.tensorboard": False,
}


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(config_from_overrides({**SETTINGS, "run.root": str(tmp_path_factory.mktemp("runs"))}), observers=())


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(config_from_overrides(SETTINGS).data)


def table(result: RunResult) -> list[dict[str, str]]:
    assert result.folder is not None
    with (result.folder / "pareto.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# --- a run


def test_a_loaded_stage_is_what_its_row_says(grown: RunResult, digits: Data) -> None:
    rows = table(grown)
    assert [int(row["stage"]) for row in rows] == [0, 1, 2, 3] and grown.folder is not None
    for row in rows:
        model = growkit.load(grown.folder, int(row["stage"]))
        result = evaluate(model, digits, "validate", FP32)
        assert result is not None
        assert count_params(model) == int(row["params"])
        assert count_flops(model, digits.example(1)).total == int(row["flops"])
        assert (result.accuracy, result.loss) == (float(row["validate_accuracy"]), float(row["validate_loss"]))
        widths = {name: int(row[f"width/{name}"]) for name in ("hidden.0.linear", "hidden.1.linear")}
        assert widths == {name: model.get_submodule(name).out_features for name in widths}


def test_the_folder_of_a_stage_loads_by_itself(grown: RunResult) -> None:
    assert grown.folder is not None
    by_number, by_folder = growkit.load(grown.folder, 2), growkit.load(grown.folder / "stages" / "002")
    assert all(map(torch.equal, by_number.state_dict().values(), by_folder.state_dict().values()))


def test_the_last_stage_is_the_final_model(grown: RunResult) -> None:
    last, rows = grown.stages[-1], table(grown)
    assert (last.params, last.flops, last.train_flops) == tuple(
        grown.result[key] for key in ("params", "flops", "train_flops")
    )
    assert last.validate == grown.result["validate"]
    assert [int(row["step"]) for row in rows] == [record.step for record in grown.history.epochs]
    assert [int(row["train_flops"]) for row in rows] == [record.train_flops for record in grown.history.epochs]
    assert all(float(row["latency_ms"]) > 0.0 and row["latency_batch"] == "1" for row in rows)


def test_the_frontiers_in_the_table_are_those_of_its_numbers(grown: RunResult) -> None:
    rows = table(grown)
    for cost in ("flops", "params"):
        points = [(float(row[cost]), -float(row["validate_accuracy"])) for row in rows]
        unbeaten = [not any(a <= x and b <= y and (a, b) != (x, y) for a, b in points) for x, y in points]
        assert [row[f"frontier_{cost}"] for row in rows] == [str(one) for one in unbeaten]


def test_a_picture_is_drawn_of_a_run_that_grew_and_of_no_other(grown: RunResult, tmp_path: Path) -> None:
    from matplotlib.image import imread

    assert grown.folder is not None
    assert imread(grown.folder / "pareto.png").std() > 0.0
    settings = {**SETTINGS, "growth": {"when": "never"}, "run.root": str(tmp_path)}
    never = run(config_from_overrides(settings), observers=())
    assert never.folder is not None and len(table(never)) == 1 and not (never.folder / "pareto.png").exists()
    assert not [line for line in summary_lines(never.result) if line.startswith("ladder")]


def test_without_matplotlib_there_is_a_word_and_no_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_ladder, "find_spec", lambda name: None)
    result = run(config_from_overrides({**SETTINGS, "run.root": str(tmp_path)}), observers=())
    assert result.folder is not None and not (result.folder / "pareto.png").exists()
    assert "pareto.png needs matplotlib: pip install matplotlib" in (result.folder / "events.jsonl").read_text()


def test_without_a_validate_split_the_ladder_is_listed_and_not_judged(tmp_path: Path) -> None:
    settings = {**SETTINGS, "data.split": {"validate": 0.0}, "run.root": str(tmp_path)}
    result = run(config_from_overrides(settings), observers=())
    rows = table(result)
    assert [row["params"] for row in rows] == [str(stage.params) for stage in result.stages]
    assert {(row["standard_error"], row["frontier_flops"], row["frontier_params"]) for row in rows} == {
        ("", "False", "False")
    }
    assert result.result["ladder"] is None
    assert "ladder    not judged, for there is no validate split" in summary_lines(result.result)


def test_the_summary_names_the_smallest_stage_that_is_as_good(grown: RunResult) -> None:
    ladder = Ladder(grown.stages)
    smallest, best = ladder.smallest, ladder.best
    assert smallest is not None and best is not None
    (line,) = [line for line in summary_lines(grown.result) if line.startswith("ladder")]
    assert line == (
        f"ladder    4 stages; the smallest within one standard error ({ladder.within:.2%}) of the best validate "
        f"accuracy ({ladder.value(best):.2%}) is stage {smallest.number}: {ladder.value(smallest):.2%}, "
        f"{smallest.params:,} parameters, {smallest.flops / 1000:.3g}kFLOPs per sample"
    )


# --- the rule


def stage(number: int, params: int, validate: Mapping[str, float | None] | None, error: float = 0.0) -> Stage:
    return Stage(number, 0, 1, {}, params, 2 * params, validate=validate, standard_error=error)


def accuracies(*pairs: tuple[int, float], error: float = 0.02) -> Ladder:
    return Ladder([stage(n, params, {"accuracy": a, "loss": 1.0}, error) for n, (params, a) in enumerate(pairs)])


def numbers(stages: list[Stage]) -> list[int]:
    return [one.number for one in stages]


def test_what_another_stage_beats_is_not_on_the_frontier() -> None:
    ladder = accuracies((10, 0.5), (20, 0.7), (30, 0.7), (40, 0.6), (50, 0.9))
    assert numbers(ladder.frontier("params")) == numbers(ladder.frontier("flops")) == [0, 1, 4]


def test_equal_stages_beat_neither_one() -> None:
    assert numbers(accuracies((10, 0.5), (10, 0.5)).frontier("params")) == [0, 1]


def test_the_smallest_stage_is_within_one_standard_error_of_the_best() -> None:
    ladder = accuracies((10, 0.879), (20, 0.881), (30, 0.9))
    assert ladder.best is not None and ladder.smallest is not None
    assert (ladder.best.number, ladder.smallest.number, ladder.within) == (2, 1, 0.02)


def test_of_equal_stages_the_smaller_one_is_best_and_then_that_of_less_loss() -> None:
    ladder = accuracies((20, 0.9), (10, 0.9))
    assert ladder.best is ladder.smallest is ladder.stages[1]
    twins = Ladder([stage(n, 10, {"accuracy": 0.9, "loss": loss}) for n, loss in enumerate((0.3, 0.2, 0.4))])
    assert twins.best is twins.smallest is twins.stages[1]


def test_regression_is_judged_by_the_loss() -> None:
    losses = enumerate((2.0, 1.05, 1.0, 3.0))
    ladder = Ladder([stage(n, 10 + n, {"accuracy": None, "loss": loss}, 0.1) for n, loss in losses])
    assert ladder.metric == "loss" and numbers(ladder.frontier("params")) == [0, 1, 2]
    assert ladder.summary() == {
        "stages": 4,
        "metric": "loss",
        "within": 0.1,
        "best": {"stage": 2, "loss": 1.0, "params": 12, "flops": 24},
        "smallest": {"stage": 1, "loss": 1.05, "params": 11, "flops": 22},
    }


def test_a_stage_without_a_finite_score_is_never_chosen() -> None:
    losses = enumerate((float("nan"), 1.0))
    ladder = Ladder([stage(n, 10 * n, {"accuracy": None, "loss": loss}) for n, loss in losses])
    assert numbers(ladder.judged) == numbers(ladder.frontier("params")) == [1]
    assert Ladder([stage(0, 10, None)]).summary() is None and Ladder([]).summary() is None


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_every_stage_has_its_number_in_the_picture(metric: str) -> None:
    from matplotlib.image import imread

    values = (0.2, 0.8, 0.8, 0.7)
    scores = [{"accuracy": value if metric == "accuracy" else None, "loss": value} for value in values]
    picture = draw(Ladder([stage(n, 10 ** (n + 1), one, 0.1) for n, one in enumerate(scores)]), "a run")
    assert imread(io.BytesIO(picture)).shape[:2] == (690, 1650)


# --- scores, sample by sample


def test_samples_have_the_means_of_their_evaluation() -> None:
    source = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(60, 4, generator=source), torch.randint(0, 3, (60,), generator=source)
    data, model = data_from_user((inputs, targets)), torch.nn.Linear(4, 3)
    found = evaluate_samples(model, data, "train", FP32, LOSS, batch_size=7)
    assert found is not None and found.evaluation == evaluate(model, data, "train", FP32, batch_size=7)
    assert found.hits is not None and float(found.hits.mean()) == pytest.approx(found.evaluation.accuracy)
    assert float(found.losses.mean()) == pytest.approx(found.evaluation.loss)
    share = found.evaluation.accuracy or 0.0
    assert found.standard_error == pytest.approx((share * (1 - share) / (len(found.hits) - 1)) ** 0.5)


def test_sequences_weigh_by_their_tokens() -> None:
    tokens = torch.randint(0, 7, (60, 6), generator=torch.Generator().manual_seed(0))
    data, model = data_from_user((tokens[:, :-1], tokens[:, 1:])), torch.nn.Embedding(7, 7)
    targets = data.train.targets
    targets[0, 2:] = targets[1] = -100  # padding, which is not counted
    found = evaluate_samples(model, data, "train", FP32, LOSS, batch_size=9)
    assert found is not None and found.weights.tolist() == (targets != -100).sum(1).tolist()
    assert found.evaluation == evaluate(model, data, "train", FP32, batch_size=9)
    for values, mean in ((found.losses, found.evaluation.loss), (found.hits, found.evaluation.accuracy)):
        assert values is not None and values[1] == 0.0
        assert mean_and_error(values, found.weights)[0] == pytest.approx(mean)


def test_samples_of_regression_have_losses_alone() -> None:
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=source)
    data, model = data_from_user((inputs, inputs[:, :2].sin())), torch.nn.Linear(4, 2)
    found = evaluate_samples(model, data, "train", FP32, LOSS)
    assert found is not None and found.hits is None
    errors = (model(data.train.inputs) - data.train.targets).square().mean(1)
    torch.testing.assert_close(found.losses, errors.detach().double())
    assert found.standard_error == pytest.approx(float(errors.detach().std()) / len(errors) ** 0.5)
