"""`growkit doctor`: what it finds is what is there, and it outlives what is broken."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import growkit
from growkit.cli import app
from growkit.device import choose_compute
from growkit.doctor import Check, machine
from growkit.doctor.command import examine
from growkit.doctor.machine import check_compiler, compute_checks
from growkit.doctor.packages import EXTRAS, PACKAGES, check_package
from growkit.doctor.places import data_checks, place_checks
from growkit.doctor.probe import COMPUTE, Outcome, probe

PROJECT = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a module of one's own before all others."""
    monkeypatch.syspath_prepend(tmp_path / "modules")

    def write(name: str, code: str) -> None:
        (tmp_path / "modules" / name).mkdir(parents=True)
        (tmp_path / "modules" / name / "__init__.py").write_text(code)

    return write


def by_name(checks: list[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


# --- the whole, once


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Check]:
    return by_name(list(examine(str(tmp_path_factory.mktemp("runs")))))


def test_versions_are_those_of_the_modules(found: dict[str, Check]):
    assert found["growkit"].found == growkit.__version__
    assert (found["torch"].state, found["torch"].found) == ("ok", torch.__version__)


def test_precision_is_what_a_run_would_choose(found: dict[str, Check]):
    choice = choose_compute()
    assert f"auto takes {choice.precision}" in found["precision"].found
    assert found["precision"].found.endswith(choice.reason)
    assert found["device"].found.startswith(choice.device)


def test_what_is_not_ok_has_a_remedy(found: dict[str, Check]):
    assert all((check.state == "ok") == (check.remedy is None) for check in found.values())


# --- packages


def test_the_table_is_that_of_the_project():
    needed = {one.split(">")[0] for one in PROJECT["dependencies"]}
    assert {package.name for package in PACKAGES} == needed | {"pillow"}  # which comes with torchvision
    extras = {name: {one.split(">")[0].split("[")[0] for one in packages} for name, packages in OPTIONAL.items()}
    assert {extra.name: {package.name for package in extra.packages} for extra in EXTRAS} == extras


OPTIONAL = {name: all_ for name, all_ in PROJECT["optional-dependencies"].items() if name not in ("test", "dev")}


def test_a_broken_import_takes_nobody_along(module: Callable[[str, str], None]):
    module("loud", "print('an advertisement')")
    module("torn", "raise RuntimeError('operator nms does not exist')")
    module("fatal", "import os, signal; os.kill(os.getpid(), signal.SIGILL)")
    outcomes = list(probe(["loud", "torn", "fatal", "json", "no_such"], 30))
    assert [outcome.error for outcome in outcomes] == [
        None,
        "RuntimeError: operator nms does not exist",
        "ended the process (SIGILL)",
        None,
        "ModuleNotFoundError: No module named 'no_such'",
    ]


def test_an_import_without_end_is_ended(module: Callable[[str, str], None]):
    module("endless", "import time; time.sleep(600)")
    assert [outcome.error for outcome in probe(["endless", "json"], 2)] == [
        "took more than 2 s",
        "was not tried, for importing endless took too long",
    ]


@pytest.mark.parametrize(
    ("name", "error", "state", "text"),
    [
        ("torchvision", None, "ok", ""),
        ("torchvision", "RuntimeError: operator torchvision::nms does not exist", "problem", "for data 'cifar10'"),
        ("torch", "OSError: libcudart.so.13", "problem", "libcudart.so.13"),
    ],
)
def test_a_package_is_judged_by_its_import(name: str, error: str | None, state: str, text: str):
    package = next(one for one in PACKAGES if one.name == name)
    fine = {one: Outcome(one, version="2.99") for one in ("torch", "torchvision")}
    outcomes = {**fine, name: Outcome(name, error, "" if error else "2.99")}
    check = check_package(package, outcomes)
    assert check.state == state and text in check.found
    assert check.stops_runs == (name == "torch")


def test_a_package_that_fails_with_another_says_so():
    timm = EXTRAS[0].packages[0]
    broken = "RuntimeError: operator torchvision::nms does not exist"
    outcomes = {
        "torch": Outcome("torch"),
        "torchvision": Outcome("torchvision", broken),
        "timm": Outcome("timm", broken),
    }
    assert check_package(timm, outcomes).remedy == "mend torchvision first"


def test_a_torch_too_old_is_named():
    check = check_package(PACKAGES[0], {"torch": Outcome("torch", None, "2.8.1+cpu")})
    assert check.found == "2.8.1+cpu, growkit needs 2.9" and check.stops_runs


# --- the machine


FACTS = {
    "device": "cpu",
    "precision": "fp32",
    "channels_last": False,
    "reason": "the CPU has no bf16 instructions",
    "processor": "Abacus",
    "threads": 1,
    "cuda": [],
    "cuda_build": None,
    "complaint": None,
}


def test_a_gpu_that_torch_was_not_built_for_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", tmp_path)
    device = compute_checks(Outcome(COMPUTE, facts=FACTS))[0]
    assert device.state == "problem" and "torch has no CUDA" in device.found


def test_a_driver_that_is_too_old_is_a_problem():
    facts = {**FACTS, "cuda_build": "13.0", "complaint": "The NVIDIA driver on your system is too old"}
    device = compute_checks(Outcome(COMPUTE, facts=facts))[0]
    assert device.state == "problem" and "too old" in device.found


def test_more_threads_than_processors_is_a_problem():
    assert by_name(compute_checks(Outcome(COMPUTE, facts={**FACTS, "threads": 4096})))["threads"].state == "problem"


@pytest.mark.parametrize(
    ("program", "state"), [(None, "missing"), ("#!/bin/sh\necho 'fatal error: no' >&2; exit 1\n", "problem")]
)
def test_a_compiler_is_tried(program: str | None, state: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    compiler = tmp_path / "compiler"
    if program is not None:
        compiler.write_text(program)
        compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    check = check_compiler()
    assert check.state == state and check.remedy is not None


# --- folders


def test_a_root_that_cannot_be_written_stops_runs(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    root = by_name(place_checks(str(tmp_path / "taken" / "runs")))["run root"]
    assert root.stops_runs and "taken is a file" in root.found


def test_a_cache_that_cannot_be_written_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "taken").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "taken"))
    cache = by_name(place_checks(str(tmp_path / "runs")))["cache"]
    assert cache.state == "problem" and not cache.stops_runs


def test_looking_leaves_nothing_behind(tmp_path: Path):
    place_checks(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_data_sets_are_looked_for_where_runs_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("GROWKIT_DATA", str(tmp_path))
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-100-python").mkdir()
    for name in ("train", "test", "meta"):
        (tmp_path / "cifar-100-python" / name).write_bytes(b"")
    checks = by_name(data_checks())
    assert [checks[name].state for name in ("data root", "cifar10", "cifar100")] == ["ok", "problem", "ok"]
    assert "lacks batches.meta, test_batch" in checks["cifar10"].found


@pytest.mark.parametrize(("root", "state"), [(None, "missing"), ("nowhere", "problem")])
def test_a_data_root_that_is_not_there(root: str | None, state: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GROWKIT_DATA", raising=False)
    if root is not None:
        monkeypatch.setenv("GROWKIT_DATA", root)
    assert [check.state for check in data_checks()] == [state]


def test_the_files_of_cifar_are_those_of_torchvision():
    from growkit.doctor.places import CIFAR

    datasets = pytest.importorskip("torchvision.datasets")
    for name, theirs in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)):
        files = {file for file, _ in (*theirs.train_list, *theirs.test_list)} | {theirs.meta["filename"]}
        assert CIFAR[name] == (theirs.base_folder, tuple(sorted(files, key=lambda file: CIFAR[name][1].index(file))))


# --- the command, with a torch that cannot be imported: quick, and the hardest case


def test_without_torch_all_else_is_told_and_the_code_is_2(module: Callable[[str, str], None], tmp_path: Path):
    module("torch", "raise OSError('libcudart.so.13: cannot open shared object file')")
    result = CliRunner().invoke(app, ["doctor", "--json", "--root", str(tmp_path / "runs")])
    assert result.exit_code == 2 and "Traceback" not in result.output
    assert result.stderr.startswith("growkit: no run can work here: torch: ")
    report = json.loads(result.stdout)
    assert (report["version"], report["ready"]) == (1, False)
    states = {check["name"]: check["state"] for check in report["checks"]}
    assert (states["torch"], states["numpy"], states["run root"]) == ("problem", "ok", "ok")
    plain = CliRunner().invoke(app, ["doctor", "--root", str(tmp_path / "runs")])
    assert "  problem  torch" in plain.stdout and "remedy: pip install --force-reinstall torch" in plain.stdout
