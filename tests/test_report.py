from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import growkit
from growkit.config import Config, config_from_overrides, load_config
from growkit.config.data import SplitSettings
from growkit.config.run import RunSettings
from growkit.data import data_from_user
from growkit.errors import TrainingError, UserInputError
from growkit.graph import Refusal
from growkit.growth.base import EpochRecord
from growkit.growth.controller import GrowthEvent, SiteGrowth
from growkit.growth.plan import GrowthPlan, PlannedEvent
from growkit.report import (
    ConsoleReport,
    JsonLines,
    MetricsTable,
    Observer,
    Reporter,
    RunFacts,
    RunFolder,
    check_writable,
    summary_lines,
    write_atomically,
)
from growkit.report.console import human
from growkit.report.strict_json import to_json
from growkit.report.tensorboard import TensorBoard
from growkit.surgery import FunctionChange

SEED, GROWN = {"a.fc": 4, "b": 5}, {"a.fc": 6, "b": 5}
FACTS = RunFacts(
    config=Config(run=RunSettings(name="demo")),
    folder="runs/demo/now",
    environment={"version": 1, "compute": {"device": "cpu", "precision": "fp32", "reason": "no bf16"}},
    data={"name": "digits", "task": "classification", "splits": {"train": 1006, "test": 360}},
    model="mlp",
    widths=SEED,
    targets={"a.fc": 8, "b": 5},
    refusals=[Refusal("head", 10, "is the model's output", "net.py:7")],
    plan=GrowthPlan(SEED, [PlannedEvent(8, GROWN)], False),
    params=1234,
    flops=56_789,
    total_steps=16,
    steps_per_epoch=8,
)
EPOCHS = [
    EpochRecord(8, 1, 0.1, 1.5, 0.5, 1.25, 0.625, 1234, 56_789, 3_000_000, 0.5, 0.6),
    EpochRecord(16, 2, 0.05, 1.0, 0.75, 0.875, 0.8125, 1300, 60_000, 6_500_000, 1.0, 1.2),
]
EVENT = GrowthEvent(
    step=8,
    grown=(SiteGrowth("a.fc", 4, 6, "gradmax", "zero_fan_in", "asked for", {"random_beyond_rank": 1}),),
    refused=(Refusal("b", 5, "it changed the outputs", None),),
    change=FunctionChange(eval=0.0, train=1e-7),
    change_at_precision=None,
    loss_before=1.25,
    loss_after=1.25,
    params_before=1234,
    params_after=1300,
    flops_before=56_789,
    flops_after=60_000,
    flops_spent=1000,
    cpu_seconds=0.01,
)
RESULT: dict[str, Any] = {
    "test": {"accuracy": 0.9, "loss": 0.25},
    "validate": {"accuracy": 0.8125, "loss": 0.875},
    "params": 1300,
    "flops": 60_000,
    "train_flops": 6_500_000,
    "other_flops": {"growth": 1000, "evaluation": 999_000},
    "cpu_seconds": 1.04,
    "process_cpu_seconds": 3.5,
    "wall_seconds": 1.26,
    "steps": 16,
    "events": 1,
    "folder": "runs/demo/now",
}


def play(observer: Observer) -> None:
    """One run of two epochs with a growth event between them."""
    observer.started(FACTS)
    for step in range(1, 17):
        if step == 9:
            observer.new_units(9, {"a.fc": 0.5})
        observer.step(step)
        if step == 8:
            observer.epoch(EPOCHS[0], SEED)
            observer.growth(EVENT, GROWN, 3_000_000)
    observer.warned("mind this")
    observer.epoch(EPOCHS[1], GROWN)
    observer.finished(RESULT)
    observer.close()


def strict(text: str) -> Any:
    def refuse(literal: str) -> None:
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(text, parse_constant=refuse)


# --- JSON


def test_json_is_strict_and_nests():
    value = {"nan": float("nan"), 3: (float("inf"), -0.5, {"deep": [-float("inf")]}), "flag": True, "path": Path("a")}
    assert strict(to_json(value)) == {"nan": None, "3": [None, -0.5, {"deep": [None]}], "flag": True, "path": "a"}


def test_json_takes_the_numbers_of_numpy_and_torch():
    value = [np.int64(3), np.float64("nan"), np.float32(0.5), np.array([1, 2]), torch.tensor(2.5), torch.tensor([True])]
    assert strict(to_json(value)) == [3, None, 0.5, [1, 2], 2.5, [True]]


def test_json_keeps_every_bit_of_a_float():
    assert strict(to_json([0.1 + 0.2, np.float64(1) / 3])) == [0.1 + 0.2, 1 / 3]


# --- the run folder


def test_runs_of_one_second_get_folders_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("growkit.report.folder.time.strftime", lambda form: "20260102-030405")
    folders = [RunFolder(tmp_path / "runs", "demo").path for _ in range(3)]
    assert [path.name for path in folders] == ["20260102-030405", "20260102-030405-2", "20260102-030405-3"]
    assert all(path.is_dir() and path.parent == tmp_path / "runs" / "demo" for path in folders)


def test_a_folder_keeps_settings_environment_and_result(tmp_path: Path):
    folder = RunFolder(tmp_path, "demo")
    play(folder)
    assert load_config(folder.path / "config.yaml") == FACTS.config
    assert strict((folder.path / "env.json").read_text()) == {**FACTS.environment, "data": FACTS.data}
    assert strict((folder.path / "result.json").read_text()) == RESULT
    assert sorted(path.name for path in folder.path.iterdir()) == ["config.yaml", "env.json", "result.json"]


def test_a_result_that_is_not_finite_is_null(tmp_path: Path):
    folder = RunFolder(tmp_path, "demo")
    folder.finished({"test": {"loss": float("nan")}})
    assert strict((folder.path / "result.json").read_text()) == {"test": {"loss": None}}


def test_latest_points_at_the_run_started_last(tmp_path: Path):
    first, second = RunFolder(tmp_path, "demo"), RunFolder(tmp_path, "demo")
    for folder in (first, second):
        folder.started(FACTS)
        assert (tmp_path / "demo" / "latest").resolve() == folder.path.resolve()
    assert os.readlink(tmp_path / "demo" / "latest") == second.path.name  # relative, so that runs can be moved


def test_a_folder_called_latest_is_left_alone(tmp_path: Path):
    (tmp_path / "demo" / "latest").mkdir(parents=True)
    RunFolder(tmp_path, "demo").started(FACTS)
    assert not (tmp_path / "demo" / "latest").is_symlink()
    assert not list((tmp_path / "demo").glob(".latest*"))


def test_a_root_that_is_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    for root in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(UserInputError, match=r"run\.root must be a folder, .*: .*file is a file; choose another"):
            check_writable(root)
        with pytest.raises(UserInputError, match=r"run\.root must be a folder"):
            RunFolder(root, "demo")


def test_a_root_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserInputError, match=r"run\.root must be writable, got .*not-yet: .* is not; choose another"):
        check_writable(tmp_path / "not-yet")
    assert not (tmp_path / "not-yet").exists()


def test_a_folder_that_the_system_refuses_to_make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def mkdir(path: Path, **options: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with pytest.raises(UserInputError, match=r"run\.root must be a folder that can be written, got .*: Permission den"):
        RunFolder(tmp_path, "demo")


def test_a_root_that_can_be_made_is_fine(tmp_path: Path):
    check_writable(tmp_path / "a" / "b")
    assert not (tmp_path / "a").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = tmp_path / "result.json"
    write_atomically(file, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [file]


# --- events.jsonl


def test_every_event_is_a_line_of_json():
    stream = io.StringIO()
    play(JsonLines(stream, keep_open=True))
    lines = [strict(line) for line in stream.getvalue().splitlines()]
    kinds = ["started", "epoch", "growth", "new_units", "warning", "epoch", "finished"]
    assert [line["event"] for line in lines] == kinds
    assert all(line["version"] == 1 and abs(line["time"] - time.time()) < 60 for line in lines)
    started, epoch, growth, units, warning, _, finished = lines
    assert started["plan"] == [{"step": 8, "widths": GROWN}] and started["config"]["run"]["name"] == "demo"
    assert started["refusals"][0]["reason"] == "is the model's output"
    assert epoch["train_loss"] == 1.5 and epoch["widths"] == SEED
    assert growth["grown"][0]["new_width"] == 6 and growth["change"] == {"eval": 0.0, "train": 1e-7}
    assert growth["train_flops"] == 3_000_000
    assert units["gradient_norms"] == {"a.fc": 0.5}
    assert warning["message"] == "mind this" and finished["result"] == RESULT


def test_events_hold_null_for_what_is_not_finite():
    stream = io.StringIO()
    events = JsonLines(stream, keep_open=True)
    events.epoch(replace(EPOCHS[0], validate_loss=float("nan")), SEED)
    events.growth(replace(EVENT, change=FunctionChange(float("inf"), 0.0)), GROWN, 0)
    first, second = (strict(line) for line in stream.getvalue().splitlines())
    assert first["validate_loss"] is None and second["change"]["eval"] is None


def test_a_stream_is_closed_unless_it_is_to_stay_open():
    kept, closed = io.StringIO(), io.StringIO()
    JsonLines(kept, keep_open=True).close()
    JsonLines(closed).close()
    assert closed.closed and not kept.closed


# --- metrics.csv


def test_metrics_have_the_fields_of_an_epoch_and_every_width(tmp_path: Path):
    play(MetricsTable(tmp_path / "metrics.csv"))
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = csv.DictReader(file)
        assert table.fieldnames == [field.name for field in fields(EpochRecord)] + ["width/a.fc", "width/b"]
        rows = list(table)
    assert [(row["step"], row["train_loss"], row["width/a.fc"], row["width/b"]) for row in rows] == [
        ("8", "1.5", "4", "5"),
        ("16", "1.0", "6", "5"),
    ]


def test_metrics_leave_blank_what_there_is_not(tmp_path: Path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.started(FACTS)
    table.epoch(replace(EPOCHS[0], validate_loss=None, train_accuracy=None), {"b": 5})  # a.fc was given up
    table.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["validate_loss"], row["train_accuracy"], row["width/a.fc"], row["width/b"]) == ("", "", "", "5")


def test_what_was_written_survives_a_run_that_is_killed(tmp_path: Path):
    """Nothing is closed here: a killed process closes nothing either."""
    metrics, stream = MetricsTable(tmp_path / "metrics.csv"), (tmp_path / "events.jsonl").open("w")
    report = Reporter([metrics, JsonLines(stream)])
    report.started(FACTS)
    report.epoch(EPOCHS[0], SEED)
    assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 2
    assert [strict(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()] == [
        "started",
        "epoch",
    ]
    with pytest.raises(KeyboardInterrupt), report:
        report.interrupted(11)
        raise KeyboardInterrupt
    assert strict((tmp_path / "events.jsonl").read_text().splitlines()[-1])["step"] == 11
    assert stream.closed


def test_the_files_of_an_interrupted_run_can_be_read(tmp_path: Path):
    class Impatient(Observer):
        def step(self, step: int) -> None:
            if step == 3:
                raise KeyboardInterrupt

    inputs = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    shares = {"test": 0.2, "validate": 0.125, "diagnose": 0.0, "accept": 0.0}  # leaves 28 samples to train on
    data = data_from_user((inputs, (inputs[:, 0] > 0).long()), split=SplitSettings.model_validate(shares))
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    settings = {"train.epochs": 9, "train.batch_size": 14, "growth.when": "never", "run.tensorboard": False}
    config = config_from_overrides({**settings, "run.root": str(tmp_path)})
    with pytest.raises(KeyboardInterrupt):
        growkit.run(config, model=model, data=data, observers=[Impatient()])
    (folder,) = (path for path in (tmp_path / "run").iterdir() if not path.is_symlink())
    events = [strict(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    assert [event["event"] for event in events] == ["started", "epoch", "interrupted"]
    assert events[-1]["step"] == 3
    with (folder / "metrics.csv").open(newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["2"]


# --- several observers


class Noting(Observer):
    def __init__(self, notes: list[str], name: str, fails: bool = False):
        self.notes, self.name, self.fails = notes, name, fails

    def close(self) -> None:
        self.notes.append(self.name)
        if self.fails:
            raise OSError(f"{self.name} failed")


def test_every_observer_is_closed_even_if_one_fails():
    notes: list[str] = []
    report = Reporter([Noting(notes, "one"), Noting(notes, "two", fails=True), Noting(notes, "three")])
    with pytest.raises(OSError, match="two failed"), report:
        pass
    assert notes == ["one", "two", "three"]


def test_a_reporter_passes_everything_on():
    class Recorder(Observer):
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __getattribute__(self, name: str) -> Any:
            if callable(vars(Observer).get(name)) and not name.startswith("_"):
                return lambda *args: self.calls.append(name)
            return super().__getattribute__(name)

    direct, first, second = Recorder(), Recorder(), Recorder()
    for observer in (direct, Reporter([first, second])):
        play(observer)
        observer.interrupted(3)
        observer.failed(3, "a reason")
    assert direct.calls == first.calls == second.calls
    assert set(direct.calls) == {name for name, value in vars(Observer).items() if callable(value) and name[0] != "_"}


class _Full(Observer):
    def epoch(self, record: EpochRecord, widths: Any) -> None:
        raise OSError(28, "No space left on device")


def test_what_only_shows_may_fail_and_the_others_are_told():
    class Pipe(_Full):
        only_shows = True

    stream = io.StringIO()
    play(Reporter([Pipe(), JsonLines(stream, keep_open=True)]))
    lines = [strict(line) for line in stream.getvalue().splitlines()]
    warnings = [line["message"] for line in lines if line["event"] == "warning"]
    assert warnings[0].startswith("Pipe cannot print any more") and "the run goes on" in warnings[0]
    assert lines[-1]["event"] == "finished"


def test_what_keeps_the_record_must_not_fail():
    with pytest.raises(TrainingError, match="run folder must stay writable.*No space left"):
        play(Reporter([_Full()]))


# --- the terminal


@contextmanager
def terminal(is_one: bool, width: int = 200) -> Iterator[Console]:
    yield Console(
        file=io.StringIO(), record=True, force_terminal=is_one, width=width, color_system=None, legacy_windows=False
    )


def printed(is_terminal: bool, width: int = 200) -> list[str]:
    with terminal(is_terminal, width) as console:
        play(ConsoleReport(console))
        return console.export_text().splitlines()


@pytest.mark.parametrize("width", [40, 200])
def test_a_pipe_gets_plain_lines_of_any_length(width: int):
    assert printed(False, width) == [
        "data      digits: train 1006, test 360",
        "model     mlp: 1,234 parameters, 56.8kFLOPs per sample",
        "compute   cpu, fp32 (no bf16)",
        "growth    gradmax, 2 sites, 1 events, target not reached",
        "stays     head (width 10): is the model's output, at net.py:7",
        "folder    runs/demo/now",
        "epoch   1  loss 1.5000  acc 50.00%  validate 1.2500  62.50%  lr 0.1  1.23k params  3MFLOPs spent",
        "+-- growth at step 8",
        "| a.fc: 4 -> 6   gradmax, zero_fan_in; 1 units beyond the gradient's rank are random",
        "| b: given up, it changed the outputs",
        "| parameters 1,234 -> 1,300   loss 1.250000 -> 1.250000   change 0.0e+00 eval, 1.0e-07 train",
        "warning: mind this",
        "epoch   2  loss 1.0000  acc 75.00%  validate 0.8750  81.25%  lr 0.05  1.3k params  6.5MFLOPs spent",
        *summary_lines(RESULT),
    ]


def test_a_terminal_gets_a_boxed_growth_event():
    text = "\n".join(printed(True))
    box = text[text.index("╭") : text.index("╯") + 1].splitlines()  # the record keeps the bar, which a terminal wipes
    assert "growth at step 8" in box[0] and box[0].endswith("╮") and box[-1].startswith("╰")
    assert [line[0] + line[-1] for line in box[1:-1]] == ["││"] * 3
    assert box[1].startswith("│ a.fc: 4 -> 6") and len({len(line) for line in box}) == 1
    assert all(line in text for line in summary_lines(RESULT))


def test_names_in_brackets_are_no_markup():
    with terminal(True) as console:
        ConsoleReport(console).warned("layer [red]3[/red] [/] stays")
        assert "layer [red]3[/red] [/] stays" in console.export_text()


def test_an_interrupted_run_stops_the_bar():
    with terminal(True) as console:
        report = ConsoleReport(console)
        report.started(FACTS)
        report.step(3)
        report.interrupted(3)
        report.close()
        assert "interrupted after step 3; what was logged is kept" in console.export_text()
        assert not console._live_stack  # type: ignore[attr-defined]


def test_a_long_list_of_refusals_is_cut_and_says_so():
    many = [Refusal(f"w{i}", i, "is the model's output", None) for i in range(20)]
    with terminal(False) as console:
        ConsoleReport(console).started(replace(FACTS, refusals=many))
        lines = [line for line in console.export_text().splitlines() if line.startswith("stays")]
    assert len(lines) == 9 and lines[-1] == "stays     12 more; --dry-run lists all"


def test_the_summary_is_six_lines():
    assert summary_lines(RESULT) == [
        "result    test 90.00% (loss 0.2500), validate 81.25% (loss 0.8750)",
        "model     1,300 parameters, 60kFLOPs per sample, after 1 growth events",
        "cost      6.5MFLOPs of training, 1MFLOPs of growth and evaluation",
        "time      1.0 CPU-seconds, 3.5 with the program's start; 1.3 s",
        "files     runs/demo/now",
        "next      tensorboard --logdir runs/demo/now/tb",
    ]


def test_the_summary_of_a_run_without_files_accuracy_or_splits():
    bare = {**RESULT, "test": None, "validate": None, "folder": None}
    assert [summary_lines(bare)[i] for i in (0, 4, 5)] == [
        "result    no test or validate split",
        "files     none written",
        "next      pass root= to keep a run folder",
    ]
    regression = {**RESULT, "test": {"accuracy": None, "loss": 0.5}, "validate": None}
    assert summary_lines(regression)[0] == "result    test (loss 0.5000)"


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0"),
        (7, "7"),
        (999, "999"),
        (999.6, "1k"),
        (1000, "1k"),
        (1_234_567, "1.23M"),
        (999_999, "1M"),
        (56_789, "56.8k"),
        (2.5e9, "2.5G"),
        (1e12, "1T"),
        (4.2e17, "420P"),
        (3e19, "30E"),
    ],
)
def test_counts_are_short(count: float, text: str):
    assert human(count) == text


# --- TensorBoard


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


def test_a_run_without_accuracy_or_validation_is_drawn_too(tmp_path: Path):
    writer = TensorBoard(tmp_path)
    writer.started(replace(FACTS, plan=None))
    writer.epoch(replace(EPOCHS[0], train_accuracy=None, validate_loss=None, validate_accuracy=None), SEED)
    writer.finished({**RESULT, "test": None})
    writer.close()
    writer.close()
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()["scalars"]
    assert "loss/train" in tags and not any(tag.startswith(("accuracy", "test", "loss/validate")) for tag in tags)
