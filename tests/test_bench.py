"""Benchmarks: every model leaves a row, whatever it does; a rerun goes on."""

from __future__ import annotations

import json
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from growkit.bench import coverage as coverage_module
from growkit.bench.catalogue import Entry, build, parse_entry
from growkit.bench.coverage import CoverageSettings, run_coverage
from growkit.bench.ledger import Ledger
from growkit.bench.measure import measure
from growkit.bench.processes import Ending, run_bounded
from growkit.bench.progress import Progress
from growkit.bench.summary import render
from growkit.bench.surgery import GOALS, run_surgery
from growkit.bench.surgery import render as render_surgery
from growkit.cli import app
from growkit.errors import ModelError

MODELS = """
    import time
    import torch
    from growkit.config.models import MlpSettings, WrnSettings
    from growkit.models import build_model

    def mlp():
        return build_model(MlpSettings(hidden=[40, 24]), (8,), 3), torch.randn(2, 8)

    def wrn():
        return build_model(WrnSettings(depth=10), (3, 8, 8), 3)

    def fails():
        raise ArithmeticError("no model today")

    def hangs():
        time.sleep(600)
"""

# stands in for the worker: writes a row at once, without torch; "fails" leaves a failure, "dies" leaves nothing
STAND_IN = """
import json, pathlib, sys
tool, entry, path = sys.argv[1:4]
if "dies" in entry:
    sys.exit("out of luck")
row = {"stage": "done", "seconds": {"analyse": 0.5}, "peak_mib": 7, "params": 10, "nodes": 100, "found": 2,
       "verified": 1, "reach_verified": 0.5, "reach_found": 0.75, "graph_refusals": {}, "trial_refusals": {"odd": 1},
       "error_eval": 1e-7, "error_train": 2e-7, "control": 0.3}
if "fails" in entry:
    row = {"stage": "trace", "seconds": {}, "failure": {"kind": "ModelError", "message": "no"}}
pathlib.Path(path).write_text(json.dumps(row))
"""


def growkit(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    def command(task: Any, settings: CoverageSettings) -> list[str]:
        return [sys.executable, "-S", "-c", STAND_IN, task.tool, str(task.entry), str(task.path)]

    monkeypatch.setattr(coverage_module, "_command", command)


def listed(folder: Path, *lines: str) -> str:
    path = folder / "list.txt"
    path.write_text("# some models\n\n" + "\n".join(lines) + "\n")
    return str(path)


def cover(models: str, out: Path, **settings: Any) -> tuple[dict[str, Any], str]:
    said: list[str] = []
    summary = run_coverage(CoverageSettings(models, out, **{"peer": False, **settings}), said.append)
    return summary, "\n".join(said)


def rows_of(path: Path) -> dict[str, dict[str, Any]]:
    return {row["model"]: row for row in map(json.loads, path.read_text().splitlines())}


# --- processes


def test_a_process_over_its_limit_is_killed_with_its_children(tmp_path: Path):
    script = f"""
        import pathlib, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"])
        pathlib.Path({str(tmp_path / "child")!r}).write_text(str(child.pid))
        time.sleep(600)
    """
    command = [sys.executable, "-S", "-c", textwrap.dedent(script)]
    [(task, ending)] = run_bounded([("one", command)], jobs=1, limit_seconds=1.5)
    assert task == "one" and ending.timed_out and 1.5 <= ending.seconds < 10
    assert gone(int((tmp_path / "child").read_text()))


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts as ended."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        status = Path(f"/proc/{pid}/stat")
        if status.exists() and status.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_processes_end_in_their_own_order_and_say_how():
    def command(code: str) -> list[str]:
        return [sys.executable, "-S", "-c", code]

    tasks = [
        ("slow", command("import time; time.sleep(1)")),
        ("bad", command("import sys; print('one', file=sys.stderr); sys.exit('the last word')")),
    ]
    endings = dict(run_bounded(tasks, jobs=2, limit_seconds=30))
    assert list(endings) == ["bad", "slow"]
    assert (endings["bad"].code, endings["bad"].last_words) == (1, "the last word")
    assert endings["slow"] == Ending(endings["slow"].seconds, False, 0, "")


def test_leaving_early_leaves_no_process_behind(tmp_path: Path):
    def command(name: str, seconds: float) -> list[str]:
        code = f"import os,pathlib,time; pathlib.Path({str(tmp_path / name)!r}).write_text(str(os.getpid()))"
        return [sys.executable, "-S", "-c", f"{code}; time.sleep({seconds})"]

    running = run_bounded([("long", command("long", 600)), ("short", command("short", 1))], jobs=2, limit_seconds=60)
    assert next(running)[0] == "short"
    running.close()
    assert gone(int((tmp_path / "long").read_text()))


# --- rows, and going on where a run ended


def test_every_model_leaves_a_row_and_a_rerun_measures_none(tmp_path: Path, stand_in: None):
    models = listed(tmp_path, "pkg:good", "pkg:fails 2x3", "pkg:dies")
    summary, said = cover(models, tmp_path / "out")
    rows = rows_of(tmp_path / "out" / "list.jsonl")
    assert list(rows) == ["pkg:good", "pkg:fails 2x3", "pkg:dies"]
    assert rows["pkg:dies"]["failure"] == {"kind": "Killed", "message": "ended with code 1: out of luck"}
    assert (summary["models"], summary["traced"], summary["with_verified_site"]) == (3, 1, 1)
    assert "[3/3]" in said

    again, said = cover(models, tmp_path / "out")
    assert "3 measured before, 0 to measure" in said and "2 failed before and are left so" in said
    assert {k: again[k] for k in ("models", "failures")} == {k: summary[k] for k in ("models", "failures")}
    assert len((tmp_path / "out" / "list.jsonl").read_text().splitlines()) == 3

    _, said = cover(models, tmp_path / "out", retry_failed=True)
    assert "2 to measure" in said and "2 failed before and are measured again" in said


def test_rows_of_other_code_are_measured_again_and_the_last_row_counts(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
):
    models, out = listed(tmp_path, "pkg:good"), tmp_path / "out"
    cover(models, out)
    monkeypatch.setattr("growkit.bench.ledger._hash", lambda files: "changed")
    summary, said = cover(models, out)
    assert "1 of them again, for the code, the versions or the model's own file changed since" in said
    assert summary["models"] == 1
    assert [json.loads(line)["origin"]["source"] for line in (out / "list.jsonl").read_text().splitlines()][
        1
    ] == "changed"


def test_a_model_whose_own_file_changed_is_measured_again(
    tmp_path: Path, stand_in: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_models_a.py").write_text("def make(): ...\n")
    models = listed(tmp_path, "own_models_a:make", "pkg:good")
    cover(models, tmp_path / "out")
    (tmp_path / "own_models_a.py").write_text("def make(): ...  # another\n")
    assert "1 of them again" in cover(models, tmp_path / "out")[1]


def test_a_line_cut_short_is_passed_over_and_does_not_spoil_the_next(tmp_path: Path):
    ledger = Ledger(tmp_path / "rows.jsonl", "growkit")
    ledger.append({"n": 1}, Entry("pkg:a"))
    with ledger.path.open("a") as file:
        file.write('{"model": "pkg:b", "n"')
    ledger.append({"n": 3}, Entry("pkg:c"))
    assert {name: row["n"] for name, row in ledger.rows().items()} == {"pkg:a": 1, "pkg:c": 3}
    assert ledger.holds(ledger.rows()["pkg:c"], Entry("pkg:c"))


def test_only_measures_some_and_the_summary_says_of_how_many(tmp_path: Path, stand_in: None):
    models = listed(tmp_path, "pkg:good", "pkg:better", "pkg:fails")
    summary, _ = cover(models, tmp_path / "out", only="*good")
    assert (summary["models"], summary["in_set"]) == (1, 3)
    assert "| models | 1 of 3 |" in render(summary)
    assert cover(models, tmp_path / "out", only="bett*")[0]["models"] == 2


def test_the_folder_explains_itself(tmp_path: Path, stand_in: None):
    cover(listed(tmp_path, "pkg:good"), tmp_path / "out")
    page = (tmp_path / "out" / "README.md").read_text()
    assert "## list" in page and "growkit " in page and f"torch {torch.__version__}" in page
    assert "| pkg:good |" in (tmp_path / "out" / "list.md").read_text()
    assert str(tmp_path) not in (tmp_path / "out" / "list.md").read_text()


# --- one model


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.unused = nn.Linear(8, 6), nn.Linear(6, 3), nn.Linear(5, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(torch.nn.functional.gelu(self.first(x)))


def test_reach_and_errors_of_a_model_known_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    monkeypatch.setattr("growkit.bench.measure.build", lambda entry: (Branches(), torch.randn(4, 8)))
    progress = Progress(tmp_path / "row.json")
    measure(Entry("pkg:branches"), progress)
    row = progress.row
    assert (row["found"], row["verified"]) == (1, 1)
    moved = 8 * 6 + 6 + 6 * 3  # the first layer with its bias, the second layer's weight
    assert row["reach_verified"] == pytest.approx(moved / (moved + 3 + 30))
    assert max(row["error_eval"], row["error_train"]) < 1e-6 < 1e-2 < row["control"]
    assert set(row["seconds"]) == {"build", "trace", "analyse", "verify", "grow"}


def test_a_measurement_that_stops_leaves_what_it_knew(tmp_path: Path):
    progress = Progress(tmp_path / "row.json")
    with pytest.raises(RuntimeError), progress.stage("trace"):
        raise RuntimeError
    progress.add(params=3)
    with progress.stage("verify"):
        row = json.loads((tmp_path / "row.json").read_text())
    assert (row["stage"], row["params"]) == ("verify", 3) and row["peak_mib"] > 0


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("torchvision:resnet18", Entry("torchvision:resnet18")),
        ("  timm:vit_tiny.augreg  2x3x32x32 ", Entry("timm:vit_tiny.augreg", (2, 3, 32, 32))),
        ("my.nets:Net.small 4,16", Entry("my.nets:Net.small", (4, 16))),
        ("resnet18", None),
        ("a:b c", None),
        ("a b:c", None),
    ],
)
def test_entries_are_read_as_written(text: str, entry: Entry | None):
    assert parse_entry(text) == entry
    assert entry is None or parse_entry(str(entry)) == entry


def test_a_callable_without_an_example_is_told_how_to_give_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_models_b.py").write_text(
        "import torch\ndef net(): return torch.nn.Linear(4, 2)\ndef no(): return 3\n"
    )
    assert build(Entry("own_models_b:net", (2, 4)))[1].shape == (2, 4)  # type: ignore[union-attr]
    with pytest.raises(ModelError, match=r"must come with an example: write a shape behind it"):
        build(Entry("own_models_b:net"))
    with pytest.raises(ModelError, match="must return a torch.nn.Module, got int"):
        build(Entry("own_models_b:no"))


def test_images_are_as_small_as_the_model_takes():
    assert build(Entry("torchvision:resnet18"))[1].shape == (2, 3, 96, 96)  # type: ignore[union-attr]
    assert build(Entry("torchvision:inception_v3"))[1].shape == (2, 3, 299, 299)  # type: ignore[union-attr]
    assert build(Entry("torchvision:vit_b_32", (2, 3, 8, 8)))[1].shape == (2, 3, 8, 8)  # type: ignore[union-attr]


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "missing.txt"], "--set must be torchvision, timm or a readable file of models, got 'missing.txt'"),
        (["--set", "BAD"], "list.txt:4: a line must be package.module:callable"),
        (["--set", "EMPTY"], "must name at least one model, got none"),
        (["--set", "GOOD", "--only", "x*"], "--only must fit at least one of the 1 models, got 'x*'"),
        (["--set", "GOOD", "--jobs", "0"], "--jobs"),
        (["--set", "GOOD", "--limit-seconds", "soon"], "--limit-seconds"),
        (["--set", "GOOD", "--out", "GOOD"], "--out must be a folder"),
        ([], "--set"),
    ],
)
def test_bad_arguments_end_with_code_2(tmp_path: Path, stand_in: None, arguments: list[str], message: str):
    lists = {"BAD": ["pkg:good", "resnet18"], "EMPTY": [], "GOOD": ["pkg:good"]}
    given = [listed(tmp_path, *lists[word]) if word in lists else word for word in arguments]
    result = growkit("bench", "coverage", "--no-peer", "--out", str(tmp_path / "out"), *given)
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert message in " ".join(result.stderr.replace("│", " ").split())


def test_a_missing_package_is_named_with_its_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(coverage_module, "find_spec", lambda name: None)
    result = growkit("bench", "coverage", "--set", listed(tmp_path, "pkg:good"), "--out", str(tmp_path / "out"))
    assert result.exit_code == 2 and "pip install torch-pruning, or leave it out: --no-peer" in result.stderr


def test_surgery_refuses_a_file_it_cannot_write_before_it_measures(tmp_path: Path):
    (tmp_path / "file").write_text("")
    result = growkit("bench", "surgery", "--out", str(tmp_path / "file" / "x.json"))
    assert result.exit_code == 2 and "--out must name a file that can be written" in result.stderr


# --- surgery


def test_surgery_gives_every_ratio_from_its_own_medians():
    def small() -> tuple[nn.Module, torch.Tensor]:
        return nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3)), torch.randn(8, 8)

    result = run_surgery(3, {"small": small})
    one = result["models"]["small"]
    assert set(one["ratios"]) == set(GOALS) and (one["found"], one["verified"]) == (1, 1)
    seconds = {name: times["median"] for name, times in one["cpu_seconds"].items()}
    assert one["ratios"]["verify"] == pytest.approx(seconds["verify"] / seconds["forward"])
    assert one["ratios"]["analysis"] == pytest.approx(1000 * seconds["analysis"] / one["nodes"])
    assert one["verify_forwards"] >= 2
    table = render_surgery(result)
    assert "| small |" in table and "| forwards run by verify |" in table


# --- all of it, with real processes


@pytest.mark.slow
def test_models_that_work_raise_and_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "some_models.py").write_text(textwrap.dedent(MODELS))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    names = ["mlp", "wrn 2x3x8x8", "fails", "hangs"]
    models, out = listed(tmp_path, *(f"some_models:{name}" for name in names)), tmp_path / "out"
    cover(models, out, only="*hangs", limit_seconds=10)
    summary, said = cover(models, out)
    rows = rows_of(out / "list.jsonl")
    assert "4 models, 1 measured before, 3 to measure" in said and "1 failed before" in said
    hung = rows["some_models:hangs"]
    assert (hung["stage"], hung["failure"]["kind"]) == ("build", "TimeLimit") and hung["wall_seconds"] < 20
    failed = rows["some_models:fails"]
    assert (failed["stage"], failed["failure"]["message"]) == ("build", "no model today")
    for name in ("mlp", "wrn 2x3x8x8"):
        row = rows[f"some_models:{name}"]
        assert row["stage"] == "done" and row["verified"] == row["found"] > 0
        assert max(row["error_eval"], row["error_train"]) < 1e-5 < row["control"]
    assert (summary["models"], summary["traced"], summary["with_verified_site"]) == (4, 2, 2)
    assert "0 to measure" in cover(models, out)[1]


@pytest.mark.slow
def test_torch_pruning_is_measured_on_the_same_models(tmp_path: Path):
    pytest.importorskip("torch_pruning")
    summary, _ = cover(listed(tmp_path, "torchvision:resnet18"), tmp_path / "out", peer=True)
    peer = summary["torch_pruning"]
    assert (peer["models"], peer["built"], peer["usable"], peer["usable_train"]) == (1, 1, 1, 1)
    row = rows_of(tmp_path / "out" / "list.torch-pruning.jsonl")["torchvision:resnet18"]
    assert row["params_after"] < row["params"]
