"""The command line: what a user types, what comes back, and that bad input ends with one message and code 2."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import EXPERIMENTS, short
from typer.testing import CliRunner, Result

from growkit.cli import app

WRN = str(EXPERIMENTS / "wrn_quarter.yaml")


def growkit(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def refused(*arguments: str) -> str:
    """The message of a command that must end with code 2, without a traceback."""
    result = growkit(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output
    return result.stderr


def test_help_names_the_commands():
    result = growkit("--help")
    assert result.exit_code == 0
    assert "run" in result.output and "schema" in result.output


def test_version():
    assert growkit("--version").output.startswith("growkit 0.")


def test_the_package_runs_as_the_command_does():
    printed = subprocess.run([sys.executable, "-m", "growkit", "--version"], capture_output=True, text=True, check=True)
    assert printed.stdout == growkit("--version").output


def test_schema_is_json():
    assert json.loads(growkit("schema").output)["title"]


def test_a_file_broken_in_four_ways_gives_four_lines(tmp_path: Path):
    path = tmp_path / "broken.yaml"
    path.write_text("sed: 3\ndata: {name: digts}\ntrain:\n  epochs: ten\ngrowth:\n  initializer: gradmx\n")
    message = refused("run", str(path))
    assert f"{path}:1:1: sed: unknown setting; did you mean 'seed'?" in message
    assert f"{path}:2:14: data.name: must be one of" in message and "did you mean 'digits'?" in message
    assert f"{path}:4:11: train.epochs: must be an integer, got 'ten' (a string)" in message
    assert f"{path}:6:16: growth.initializer: must be one of" in message and "did you mean 'gradmax'?" in message
    assert message.startswith("growkit: 4 settings are wrong:")


@pytest.mark.parametrize("arguments", [["--help"], ["run", "missing.yaml"], ["run", WRN, "train.epochs=none"]])
def test_torch_is_not_imported_for_help_or_bad_settings(arguments: list[str]):
    run = f"from growkit.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    code = f"import sys\n{run}\nprint('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().endswith("False")


def test_dry_run_plans_and_trains_nothing(tmp_path: Path):
    result = growkit("run", WRN, "--dry-run", f"run.root={tmp_path}")
    assert result.exit_code == 0
    assert "seed      46,458 parameters" in result.output
    assert "target    174,330 parameters" in result.output
    assert "plan      3 events" in result.output
    assert list(tmp_path.iterdir()) == []


def test_dry_run_as_json():
    facts = json.loads(growkit("run", WRN, "--dry-run", "--json").output)
    assert facts["target"]["params"] == 174330
    assert [event["step"] for event in facts["plan"]] == [96, 192, 288]


def test_json_lines_tell_the_run(tmp_path: Path):
    result = growkit("run", WRN, "--json", *short(tmp_path, train__epochs="2", growth__when__events="1"))
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    told = [line["event"] for line in lines if line["event"] not in ("warning", "new_units")]
    assert told == ["started", "epoch", "stage", "growth", "epoch", "stage", "finished"]
    assert any(line["event"] == "new_units" for line in lines)


def test_a_plain_run_prints_epochs_growth_and_seven_lines(tmp_path: Path):
    result = growkit("run", WRN, *short(tmp_path, train__epochs="2", growth__when__events="1"))
    assert "+-- growth at step 16" in result.output
    assert "| blocks.0.conv1: 4 -> 8   gradmax, zero_fan_in" in result.output
    summary = result.output.splitlines()[-7:]
    assert [line.split()[0] for line in summary] == ["result", "model", "ladder", "cost", "time", "files", "next"]


def test_a_model_that_does_not_fit_the_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "sevenfold.py").write_text(
        "from torch import nn\n\n\ndef net():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 7))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert "[2, 7] outputs" in refused("run", WRN, "model=sevenfold:net", f"run.root={tmp_path / 'runs'}")
    assert not (tmp_path / "runs").exists()


def test_a_model_that_cannot_be_imported():
    assert "importing 'no_such_module' failed" in refused("run", WRN, "model=no_such_module:net")


def test_a_missing_data_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GROWKIT_DATA", raising=False)
    message = refused("run", WRN, "data.name=cifar10")
    assert "data.root" in message and "GROWKIT_DATA" in message


def test_a_truncated_data_file(tmp_path: Path):
    whole = tmp_path / "whole.npz"
    np.savez(whole, train_images=np.zeros((40, 8, 8), np.uint8), train_labels=np.arange(40) % 10)
    cut = tmp_path / "cut.npz"
    cut.write_bytes(whole.read_bytes()[:-200])
    assert "cut.npz" in refused("run", WRN, f"data={{name: npz, path: {cut}}}")


def test_a_root_that_is_a_file(tmp_path: Path):
    (tmp_path / "taken").write_text("")
    assert "run.root must be a folder" in refused("run", WRN, f"run.root={tmp_path / 'taken'}")


def test_no_site_left_to_grow(tmp_path: Path):
    gpt = str(Path(WRN).with_name("gpt_quarter.yaml"))
    message = refused("run", gpt, "growth.sites=[blocks.0.*query#2]", "growth.fallback=null", f"run.root={tmp_path}")
    assert "growth needs at least one site that can grow, got none" in message
    assert "query#2 (width 8): gradmax cannot serve units that norms or attention products depend on" in message
    assert list(tmp_path.iterdir()) == []


def test_a_pattern_that_fits_no_site():
    assert "growth.sites: every pattern must fit a site, got 'blocks.*.cnv1'; did you mean" in refused(
        "run", WRN, "growth.sites=['blocks.*.cnv1']"
    )


def test_a_target_below_the_seed():
    message = refused("run", WRN, "growth.target={'blocks.0.conv1': 3}")
    assert "a target must not lie below the seed's width, got 3 for blocks.0.conv1 of width 4" in message


def test_a_train_split_of_nothing():
    assert "train" in refused("run", WRN, "data.split.validate=0.5", "data.split.diagnose=0.5", "data.split.accept=0.0")


def test_a_gpu_that_is_not_there():
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert "finds no CUDA device" in refused("run", WRN, "train.device=cuda")


def test_an_unknown_option():
    assert growkit("run", WRN, "--frobnicate").exit_code == 2


BLOCKED = (
    "import sys\nfor name in {names!r}: sys.modules[name] = None\nfrom growkit.cli import main\nmain({arguments!r})"
)


@pytest.mark.parametrize(
    ("blocked", "tensorboard"),
    [
        (["torchvision", "optuna"], "true"),
        (["torchvision", "optuna", "matplotlib", "tensorboard", "jinja2.ext"], "false"),
    ],
    ids=["with-tensorboard", "bare"],
)
def test_the_main_job_needs_no_optional_package(blocked: list[str], tensorboard: str, tmp_path: Path):
    arguments = ["run", WRN, *short(tmp_path, train__epochs="2", run__tensorboard=tensorboard)]
    code = BLOCKED.format(names=blocked, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "wrn_quarter" / "latest" / "tb").exists() == (tensorboard == "true")


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path):
    arguments = " ".join(f"'{part}'" for part in ["run", WRN, *short(tmp_path, train__epochs="2")])
    shell = f"{sys.executable} -m growkit.cli {arguments} | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr
    folder = tmp_path / "wrn_quarter" / "latest"
    assert (folder / "result.json").exists()
    assert "cannot print any more" in (folder / "events.jsonl").read_text()


def test_names_too_long_or_impossible():
    assert "run.name" in refused("run", WRN, "run.name=" + "a" * 300)
    assert "run.root must be a folder that can be made" in refused("run", WRN, "run.root=" + "a" * 300)
    assert "run.root must be a folder that can be made" in refused("run", WRN, 'run.root="a\\0b"')


def test_numbers_too_large():
    message = refused(
        "run", WRN, "data.split_seed=99999999999999999999", "growth.target=1e308", "growth.how_many.fraction=1e308"
    )
    assert message.startswith("growkit: 3 settings are wrong:")
    assert "data.augment.crop must be at most the side of the images, 8 pixels" in refused(
        "run", WRN, "data.augment.crop=99"
    )
    assert "cannot be built" in refused("run", WRN, "model={name: mlp, hidden: [1000000000000]}")


def test_ctrl_c_ends_cleanly(tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "growkit.cli",
        "run",
        WRN,
        "--json",
        "run.tensorboard=false",
        f"run.root={tmp_path}",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # shells ignore it in what they background
    )
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "epoch":
            break
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    logged = [
        json.loads(line)["event"]
        for line in (tmp_path / "wrn_quarter" / "latest" / "events.jsonl").read_text().splitlines()
    ]
    assert logged[0] == "started" and logged[-1] == "interrupted"
