"""What observers write while a run goes on, and what happens when one fails."""

from __future__ import annotations

import csv
import io
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from report_cases import EPOCHS, EVENT, FACTS, GROWN, RESULT, SEED, play, strict

import growkit
from growkit.config import config_from_overrides
from growkit.config.data import SplitSettings
from growkit.data import data_from_user
from growkit.errors import TrainingError
from growkit.growth.base import EpochRecord
from growkit.report import (
    JsonLines,
    MetricsTable,
    Observer,
    Reporter,
)
from growkit.surgery import FunctionChange

# --- events.jsonl


def test_every_event_is_a_line_of_json():
    stream = io.StringIO()
    play(JsonLines(stream, keep_open=True))
    lines = [strict(line) for line in stream.getvalue().splitlines()]
    kinds = ["started", "epoch", "stage", "growth", "new_units", "warning", "epoch", "no_growth", "finished"]
    assert [line["event"] for line in lines] == kinds
    assert all(line["version"] == 1 and abs(line["time"] - time.time()) < 60 for line in lines)
    started, epoch, stage, growth, units, warning, _, nothing, finished = lines
    assert started["plan"] == [{"step": 8, "widths": GROWN}] and started["config"]["run"]["name"] == "demo"
    assert started["refusals"][0]["reason"] == "is the model's output"
    assert epoch["train_loss"] == 1.5 and epoch["widths"] == SEED
    assert stage["last_step"] == 8 and stage["validate"] == {"accuracy": 0.625, "loss": 1.25}
    assert growth["grown"][0]["new_width"] == 6 and growth["change"] == {"eval": 0.0, "train": 1e-7}
    assert growth["train_flops"] == 3_000_000 and growth["undone"] is None
    assert growth["decisions"][0]["reason"].startswith("plateau: slope") and growth["decisions"][0]["scores"]
    assert nothing["reason"].startswith("every site") and nothing["ends"] is True
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
        known = [field.name for field in fields(EpochRecord) if not field.name.endswith(("_metrics", "depths"))]
        assert table.fieldnames == [*known, "width/a.fc", "width/b"]
        rows = list(table)
    assert [(row["step"], row["train_loss"], row["width/a.fc"], row["width/b"]) for row in rows] == [
        ("8", "1.5", "4", "5"),
        ("16", "1.0", "6", "5"),
    ]


def test_metrics_of_the_task_have_columns_of_their_own(tmp_path: Path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.started(replace(FACTS, data={**FACTS.data, "task": "regression"}))
    metrics = {"rmse": 0.5, "mae": 0.25}  # no r2: the targets of this epoch were constant
    table.epoch(replace(EPOCHS[0], train_metrics=metrics, validate_metrics={}), SEED)
    table.close()
    with (tmp_path / "metrics.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert [row[f"train_{name}"] for name in ("rmse", "mae", "r2")] == ["0.5", "0.25", ""]
    assert [row[f"validate_{name}"] for name in ("rmse", "mae", "r2")] == ["", "", ""]


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
