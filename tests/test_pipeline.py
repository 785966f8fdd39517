"""The main job from settings to result, short: what a grown run, its controls and its record must hold."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from conftest import EXPERIMENTS, short

import growkit
from growkit.config import load_config
from growkit.data import load_data
from growkit.errors import ModelError, TrainingError, UserInputError
from growkit.pipeline import RunResult, run
from growkit.report import Observer


def short_run(root: Path, **overrides: str) -> RunResult:
    return run(load_config(EXPERIMENTS / "wrn_quarter.yaml", short(root, **overrides)), observers=())


@pytest.fixture(scope="module")
def grown(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return short_run(tmp_path_factory.mktemp("grown"))


def events(result: RunResult, kind: str) -> list[dict]:
    assert result.folder is not None
    lines = [json.loads(line) for line in (result.folder / "events.jsonl").read_text().splitlines()]
    return [line for line in lines if line["event"] == kind]


def test_the_seed_grows_to_the_full_network(grown: RunResult):
    full = load_config(EXPERIMENTS / "wrn_quarter.yaml", ["model.block_width=1.0"]).model
    with torch.random.fork_rng():
        target = growkit.models.build_model(full, (1, 8, 8), 10)
    assert [p.shape for p in grown.model.parameters()] == [p.shape for p in target.parameters()]


def test_every_event_keeps_the_function(grown: RunResult):
    assert len(events(grown, "growth")) == 3
    for event in events(grown, "growth"):
        assert event["change"]["eval"] <= 1e-5
        assert event["change"]["train"] <= 1e-5
        assert event["loss_after"] == pytest.approx(event["loss_before"], rel=1e-5)


def test_new_units_learn_from_the_first_step(grown: RunResult):
    norms = {line["step"]: line["gradient_norms"].values() for line in events(grown, "new_units")}
    first = [norm for event in events(grown, "growth") for norm in norms[event["step"] + 1]]
    assert grown.result["smallest_new_gradient"] == min(first) > 0.0


def test_the_plan_says_what_will_happen(grown: RunResult):
    planned = events(grown, "started")[0]["plan"]
    happened = [{"step": event["step"], "widths": event["widths"]} for event in events(grown, "growth")]
    assert planned == happened
    assert grown.result["planned_train_flops"] == grown.result["train_flops"]


def test_training_flops_are_three_forwards_per_sample_at_each_width(grown: RunResult):
    samples = len(load_data(load_config(EXPERIMENTS / "wrn_quarter.yaml").data).train)
    per_epoch = [3 * record.flops * samples for record in grown.history.epochs]
    assert grown.result["train_flops"] == sum(per_epoch)


def test_a_loaded_model_is_bit_equal(grown: RunResult):
    images = load_data(load_config(EXPERIMENTS / "wrn_quarter.yaml").data).example(32)
    assert grown.folder is not None
    assert torch.equal(growkit.load(grown.folder)(images), grown.model(images))


def test_the_record_says_how_to_feed_the_model(grown: RunResult):
    data = load_data(load_config(EXPERIMENTS / "wrn_quarter.yaml").data)
    inputs = grown.result["inputs"]
    assert inputs["shape"] == [1, 8, 8]
    mean, std = (torch.tensor(inputs[name])[:, None, None] for name in ("mean", "std"))
    torch.testing.assert_close((data.train.inputs[:2] - mean) / std, data.example(2))


def test_every_stage_can_be_loaded(grown: RunResult):
    assert grown.folder is not None
    widths = [growkit.load(grown.folder, stage=stage.number).blocks[0].conv1.out_channels for stage in grown.stages]
    assert widths == [4, 8, 12, 16]


def test_the_run_folder_is_complete(grown: RunResult):
    assert grown.folder is not None
    names = {path.name for path in grown.folder.iterdir()}
    tables = {"events.jsonl", "metrics.csv", "pareto.csv", "pareto.png"}
    assert names == {"config.yaml", "env.json", *tables, "stages", "model", "result.json"}
    assert (grown.folder.parent / "latest").resolve() == grown.folder.resolve()
    assert load_config(grown.folder / "config.yaml").model.name == "wrn"


def test_the_same_seed_gives_the_same_weights(grown: RunResult, tmp_path: Path):
    again = short_run(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(grown.model.parameters(), again.model.parameters(), strict=True))


def test_the_ungrown_seed_at_equal_training_flops(grown: RunResult, tmp_path: Path):
    control = short_run(tmp_path, control="seed")
    assert control.result["events"] == 0
    assert control.result["control"] == "seed"
    assert control.result["params"] < grown.result["params"]
    assert control.result["train_flops"] == pytest.approx(grown.result["train_flops"], rel=0.02)
    assert set(control.result) == set(grown.result)


@pytest.mark.parametrize(
    ("optimizer", "passes"), [("{name: sam, base: {lr: 0.1}}", 2.0), ("{name: asam, interval: 2, m: 24}", 1.5)]
)
def test_passes_of_sam_are_counted_in_plan_run_and_control(
    grown: RunResult, tmp_path: Path, optimizer: str, passes: float
):
    result = short_run(tmp_path, train__optimizer=optimizer)
    assert len(events(result, "growth")) == 3
    assert result.result["train_flops"] == pytest.approx(passes * grown.result["train_flops"], rel=0.01)
    assert result.result["planned_train_flops"] == pytest.approx(result.result["train_flops"], rel=0.01)
    control = short_run(tmp_path, control="seed", train__optimizer=optimizer)
    assert control.result["train_flops"] == pytest.approx(result.result["train_flops"], rel=0.02)


def test_the_full_network_at_equal_training_flops(grown: RunResult, tmp_path: Path):
    control = short_run(tmp_path, control="full")
    assert control.result["params"] == grown.result["params"]
    assert control.result["train_flops"] == pytest.approx(grown.result["train_flops"], rel=0.05)


def test_control_full_needs_a_model_that_knows_its_full_width(tmp_path: Path):
    with pytest.raises(UserInputError, match="control: full needs a model that knows its full width.*'mlp'"):
        short_run(tmp_path, model="mlp", growth__sites="['*']", control="full")


def test_bf16_records_its_change_beside_the_exact_one(tmp_path: Path):
    result = short_run(tmp_path, train__precision="bf16", train__epochs="2", growth__when__events="1")
    (event,) = events(result, "growth")
    assert event["change"]["eval"] <= 1e-5
    assert event["change_at_precision"] is not None


def test_a_budget_ends_growth(tmp_path: Path):
    result = short_run(tmp_path, growth__budget__params="100000")
    assert 89_082 <= result.result["params"] <= 100_000  # all of the first event, and what fits of the second


@pytest.mark.parametrize(
    ("optimizer", "place"),
    [
        ("{name: sgd, lr: 1e12}", "train.optimizer.lr"),
        ("{name: sam, base: {name: sgd, lr: 1e12}}", "train.optimizer.base.lr"),
    ],
)
@pytest.mark.filterwarnings("ignore:SAM skipped")
def test_diverging_training_is_a_named_error(tmp_path: Path, optimizer: str, place: str):
    with pytest.raises(TrainingError, match=f"training loss must stay finite.*lower {place}"):
        short_run(
            tmp_path, train__optimizer=optimizer, train__precision="fp32", train__epochs="2", growth__when="never"
        )


class _Interrupt(Observer):
    """Presses Ctrl-C after a number of steps."""

    def __init__(self, after: int):
        self._after = after

    def step(self, step: int) -> None:
        if step == self._after:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_what_was_logged(tmp_path: Path):
    config = load_config(EXPERIMENTS / "wrn_quarter.yaml", short(tmp_path))
    with pytest.raises(KeyboardInterrupt):
        run(config, observers=[_Interrupt(after=20)])
    folder = tmp_path / "wrn_quarter" / "latest"
    kinds = [json.loads(line)["event"] for line in (folder / "events.jsonl").read_text().splitlines()]
    assert kinds == ["started", "epoch", "stage", "growth", *["new_units"] * 3, "interrupted"]  # 1, 2 and 4 steps after
    assert not (folder / "result.json").exists()
    assert growkit.load(folder, stage=1).blocks[0].conv1.out_channels == 8
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2


def test_a_failed_run_says_so_in_its_record(tmp_path: Path):
    with pytest.raises(TrainingError):
        short_run(
            tmp_path, train__optimizer__lr="1e12", train__precision="fp32", train__epochs="2", growth__when="never"
        )
    lines = (tmp_path / "wrn_quarter" / "latest" / "events.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert last["event"] == "failed" and last["message"].startswith("TrainingError: the training loss must stay finite")


def test_a_batch_the_model_cannot_train_on_is_refused_before_anything_is_written(tmp_path: Path):
    with pytest.raises(ModelError, match="must train on a batch of 1 samples.*train.batch_size"):
        short_run(tmp_path, train__batch_size="1", model="{name: mlp, norm: batchnorm}", growth__sites="['*']")
    assert list(tmp_path.iterdir()) == []


def test_a_budget_below_the_seed_is_refused(tmp_path: Path):
    with pytest.raises(UserInputError, match="growth.budget.params must not lie below the seed's 46,458, got 100"):
        short_run(tmp_path, growth__budget__params="100")


def test_a_budget_that_ends_growth_is_named(tmp_path: Path):
    result = short_run(tmp_path, growth__budget__params="100000", train__epochs="4")
    assert ["growth.budget ends growth after 2 of 3 events"] == [line["message"] for line in events(result, "warning")]


def test_a_training_too_short_for_the_plan_is_named(tmp_path: Path):
    result = short_run(tmp_path, train__epochs="2")
    assert ["the training has room for 1 of the 3 growth events"] == [
        line["message"] for line in events(result, "warning")
    ]


def test_label_smoothing_is_refused_for_regression(tmp_path: Path):
    with pytest.raises(UserInputError, match="train.label_smoothing is for classes and tokens, got 0.1"):
        run(
            load_config(EXPERIMENTS / "mlp_teacher_student.yaml", ["train.label_smoothing=0.1", f"run.root={tmp_path}"])
        )


def test_a_limit_beyond_the_data_is_said(tmp_path: Path):
    result = short_run(tmp_path, data__limit="5000", train__epochs="1", growth__when="never")
    assert "data.limit 5,000 is more than there is; all 1,438 samples are used" in [
        line["message"] for line in events(result, "warning")
    ]


def test_the_full_control_does_not_stumble_over_the_targets_of_the_seed(tmp_path: Path):
    narrow = {"growth__sites": "['blocks.0.conv1']", "growth__target": "{'blocks.0.conv1': 8}"}
    control = short_run(tmp_path, control="full", **narrow)
    assert control.result["params"] == 174_330
    assert control.result["train_flops"] == pytest.approx(control.result["planned_train_flops"], rel=0.05)


def test_a_record_repeats_its_run(grown: RunResult, tmp_path: Path):
    assert grown.folder is not None
    again = run(load_config(grown.folder / "config.yaml", [f"run.root={tmp_path}"]), observers=())
    assert all(torch.equal(a, b) for a, b in zip(grown.model.parameters(), again.model.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_main_job_reaches_98_percent(seed: int, tmp_path: Path):
    config = load_config(EXPERIMENTS / "wrn_quarter.yaml", [f"seed={seed}", f"run.root={tmp_path}"])
    assert run(config, observers=()).result["test"]["accuracy"] >= 0.98
