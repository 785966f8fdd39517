"""Strict JSON, and the folder of a run."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from report_cases import FACTS, RESULT, play, strict

from growkit.config import load_config
from growkit.errors import UserInputError
from growkit.folders import check_writable
from growkit.report import RunFolder, write_atomically
from growkit.report.strict_json import to_json

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
