"""What a run draws."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import EPOCHS, FACTS, RESULT, SEED, play
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from growkit.report.tensorboard import TensorBoard


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EventAccumulator]:
    folder = tmp_path_factory.mktemp("run") / "tb"
    play(TensorBoard(folder))
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0, "tensors": 0})
    return folder, events.Reload()


def curve(events: EventAccumulator, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in events.Scalars(tag)]


def test_everything_is_in_one_event_file(board):
    folder, _ = board
    assert [path.name.startswith("events.out.tfevents") for path in folder.rglob("*")] == [True]


def test_learning_curves_stand_against_steps_and_training_flops(board):
    _, events = board
    assert curve(events, "loss/train") == [(8, 1.5), (16, 1.0)]
    assert curve(events, "by_flops/loss/train") == [(3, 1.5), (6, 1.0)]
    assert curve(events, "accuracy/validate") == [(8, 0.625), (16, 0.8125)]
    assert curve(events, "loss/validate") == [(8, 1.25), (16, 0.875)]
    assert curve(events, "learning_rate") == [(8, pytest.approx(0.1)), (16, pytest.approx(0.05))]
    assert curve(events, "train_flops") == [(8, 3e6), (16, 6.5e6)]
    assert curve(events, "test/accuracy") == [(16, pytest.approx(0.9))]


@pytest.mark.parametrize(
    ("tag", "before", "after"),
    [("size/params", 1234, 1300), ("size/flops", 56_789, 60_000), ("width/a.fc", 4, 6)],
)
def test_growth_is_a_step_in_the_curve(board, tag: str, before: int, after: int):
    _, events = board
    values = curve(events, tag)
    assert values[0] == (0, before) and values[-1] == (16, after)
    at_growth = [value for step, value in values if step == 8]
    assert at_growth[0] == before and at_growth[-1] == after and at_growth == sorted(at_growth)


def test_a_growth_event_is_told_and_drawn(board):
    _, events = board
    text = events.Tensors("growth/events/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "1,234 -> 1,300 parameters" in text and "| a.fc | 4 -> 6 | gradmax | zero_fan_in | asked for |" in text
    image = events.Images("growth/widths")[0]
    assert image.step == 8 and image.width > 100 and image.encoded_image_string.startswith(b"\x89PNG")
    assert curve(events, "growth/function_change") == [(8, pytest.approx(1e-7))]
    assert curve(events, "new_units/gradient_norm/a.fc") == [(9, 0.5)]


def test_settings_are_hyper_parameters_of_the_same_run(board):
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    _, events = board
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    found = HParamsPluginData.FromString(content).session_start_info.hparams
    assert found["train.optimizer.lr"].number_value == 0.1
    assert found["growth.initializer.name"].string_value == "gradmax"
    assert found["data"].string_value == "digits"
    metrics = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/experiment").plugin_data.content)
    assert {metric.name.tag for metric in metrics.experiment.metric_infos} <= set(events.Tags()["scalars"])


def test_the_board_is_laid_out(board):
    _, events = board
    assert "custom_scalars__config__" in events.Tags()["tensors"]


def test_metrics_of_the_task_are_curves(tmp_path: Path):
    writer = TensorBoard(tmp_path)
    writer.started(FACTS)
    writer.epoch(replace(EPOCHS[0], train_metrics={"perplexity": 4.5}, validate_metrics={"perplexity": 5.0}), SEED)
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert curve(events, "perplexity/train") == [(8, 4.5)] and curve(events, "perplexity/validate") == [(8, 5.0)]
    assert curve(events, "by_flops/perplexity/validate") == [(3, 5.0)]


def test_a_run_without_accuracy_or_validation_is_drawn_too(tmp_path: Path):
    writer = TensorBoard(tmp_path)
    writer.started(replace(FACTS, plan=None))
    writer.epoch(replace(EPOCHS[0], train_accuracy=None, validate_loss=None, validate_accuracy=None), SEED)
    writer.finished({**RESULT, "test": None})
    writer.close()
    writer.close()
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert "loss/train" in tags and not any(tag.startswith(("accuracy", "test", "loss/validate")) for tag in tags)
