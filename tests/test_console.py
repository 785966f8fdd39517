"""What a run prints."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from report_cases import FACTS, RESULT, play
from rich.console import Console

from growkit.graph import Refusal
from growkit.report import (
    ConsoleReport,
    summary_lines,
)
from growkit.report.console import human


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
        "| plateau: slope 0 +- 0.1; all sites",
        "| a.fc: 4 -> 6   gradmax, zero_fan_in; 1 units beyond the gradient's rank are random",
        "| b: given up, it changed the outputs",
        "| parameters 1,234 -> 1,300   loss 1.250000 -> 1.250000   change 0.0e+00 eval, 1.0e-07 train",
        "warning: mind this",
        "epoch   2  loss 1.0000  acc 75.00%  validate 0.8750  81.25%  lr 0.05  1.3k params  6.5MFLOPs spent",
        "growth ended at step 16: every site that may grow has its target width",
        *summary_lines(RESULT),
    ]


def test_a_terminal_gets_a_boxed_growth_event():
    text = "\n".join(printed(True))
    box = text[text.index("╭") : text.index("╯") + 1].splitlines()  # the record keeps the bar, which a terminal wipes
    assert "growth at step 8" in box[0] and box[0].endswith("╮") and box[-1].startswith("╰")
    assert [line[0] + line[-1] for line in box[1:-1]] == ["││"] * 4
    assert (
        box[1].startswith("│ plateau: slope")
        and box[2].startswith("│ a.fc: 4 -> 6")
        and len({len(line) for line in box}) == 1
    )
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


def test_the_summary_is_six_lines_and_one_for_the_ladder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("runs/demo/now/tb").mkdir(parents=True)
    assert summary_lines(RESULT) == [
        "result    test 90.00% (loss 0.2500), validate 81.25% (loss 0.8750)",
        "model     1,300 parameters, 60kFLOPs per sample, after 1 growth events",
        "ladder    2 stages; the smallest within one standard error (5.00%) of the best validate accuracy (81.25%) is "
        "stage 1: 81.25%, 1,300 parameters, 60kFLOPs per sample",
        "cost      6.5MFLOPs of training, 1MFLOPs of growth and evaluation",
        "time      1.0 CPU-seconds, 3.5 with the program's start; 1.3 s",
        "files     runs/demo/now",
        "next      tensorboard --logdir runs/demo/now/tb",
    ]


def test_a_run_without_tensorboard_names_another_next_step():
    assert summary_lines(RESULT)[-1] == "next      growkit.load('runs/demo/now') in Python gives the model"


def test_a_long_warning_is_cut_on_the_terminal_alone():
    output, warning = io.StringIO(), "; ".join(f"cats/{number:04d}.png (OSError)" for number in range(100))
    ConsoleReport(Console(file=output, soft_wrap=True)).warned(warning)
    (line,) = output.getvalue().splitlines()
    assert line.startswith("warning: cats/0000.png")
    assert line.endswith(f"({len(warning) - 600:,} more letters; events.jsonl has all)")


def test_the_summary_of_a_run_without_files_accuracy_or_splits():
    bare = {**RESULT, "test": None, "validate": None, "folder": None, "ladder": None}
    assert [summary_lines(bare)[i] for i in (0, 2, 5, 6)] == [
        "result    no test or validate split",
        "ladder    not judged, for there is no validate split",
        "files     none written",
        "next      pass root= to keep a run folder",
    ]
    regression = {**RESULT, "test": {"accuracy": None, "loss": 0.5, "rmse": 0.7071, "r2": 0.9}, "validate": None}
    assert summary_lines(regression)[0] == "result    test rmse 0.7071 r2 0.9 (loss 0.5000)"


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
