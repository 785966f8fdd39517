"""Comparisons as users run them: processes of their own, killed and interrupted, and taken up again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from compare_cases import TINY

ARMS = ["c.yaml", "random=c.yaml growth.initializer=random"]


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "growkit", "compare", *ARMS, "--out", "out", *arguments]


def stop_after_one_run(how: signal.Signals) -> tuple[int, str]:
    """Begin a comparison and end it once its first run has ended; its exit code and what it printed then."""
    asked = command("--seeds", "2")
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    # a shell's background jobs ignore SIGINT, and so would what they start
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(asked, start_new_session=True, preexec_fn=heed, **streams) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if "1/4" in line)
        time.sleep(0.5)  # into the next run
        process.send_signal(how)
        left = process.stdout.read()
    return process.returncode, left


def test_runs_in_two_processes_at_a_time_give_what_one_gives(write: Callable[[str], Path], tmp_path: Path):
    write(TINY)
    done = subprocess.run(command("--seeds", "1", "--jobs", "2"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "| random | 1 |" in done.stdout
    result = json.loads((tmp_path / "out/compare.json").read_text())
    assert result["command"].startswith("growkit compare c.yaml 'random=c.yaml growth.initializer=random' --out out")
    again = subprocess.run(
        [sys.executable, "-m", "growkit", "run", "out/random/0/settings.yaml", "run.root=alone"],
        capture_output=True,
        check=True,
    )
    assert again.returncode == 0
    alone = json.loads((tmp_path / "alone/0/latest/result.json").read_text())
    assert alone["test"]["accuracy"] == result["arms"][1]["runs"][0]["value"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_stopped_comparison_goes_on(how: signal.Signals, code: int, write: Callable[[str], Path], tmp_path: Path):
    write(TINY)
    ended, left = stop_after_one_run(how)
    assert ended == code
    if how == signal.SIGINT:
        assert "1 of 4 runs are kept; the same command goes on from there" in left
    if how != signal.SIGKILL:
        assert _running(tmp_path) == []
    first = {path: path.stat().st_mtime_ns for path in tmp_path.glob("out/*/*/2*/result.json")}
    done = subprocess.run(command("--seeds", "2"), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(stored)" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert [arm["n"] for arm in json.loads((tmp_path / "out/compare.json").read_text())["arms"]] == [2, 2]


def _running(folder: Path) -> list[str]:
    """The processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*") if Path("/proc").is_dir() else ():
        try:
            if os.readlink(process / "cwd") == str(folder) and int(process.name) != os.getpid():
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it ended, or is another user's
            continue
    return found
