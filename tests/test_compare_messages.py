"""What `growkit compare` refuses: one message, exit code 2, and nothing has been run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from compare_cases import TINY
from typer.testing import CliRunner

from growkit.bench.processes import Ending
from growkit.cli import app
from growkit.compare.arms import read_arms, read_seeds
from growkit.compare.measure import choose_measure
from growkit.compare.runs import Run, Runner
from growkit.config import Config, config_from_overrides
from growkit.errors import UserInputError

Write = Callable[[str], Path]
OTHER = "other=c.yaml train.epochs=1"


@pytest.fixture
def refused(write: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The message of a comparison that must end with code 2, with one line, and run nothing."""
    write(TINY)

    def nothing(tasks: object, **_: object) -> None:
        raise AssertionError(f"{tasks} would have been run")

    monkeypatch.setattr("growkit.compare.runs.run_bounded", nothing)

    def message(*arguments: str) -> str:
        result = CliRunner().invoke(app, ["compare", *arguments])
        assert result.exit_code == 2, (result.output, result.exception)
        assert "Traceback" not in result.output
        lines = result.stderr.splitlines()
        assert len(lines) == 1 or lines[0].endswith(("setting is wrong:", "settings are wrong:")), lines
        return " ".join(line.strip() for line in lines)

    return message


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["c.yaml"], "compare needs two arms, got 1; give another YAML file, or --baselines small,big"),
        (["c.yaml", "c.yaml"], "two arms are called 'c'; give them names: NAME=FILE"),
        (["c.yaml", "d=c.yaml"], "d is c again: all their settings are equal; leave one out"),
        (["r=c.yaml growth.initializer=random", "--baselines", "random"], "random is r again"),
        (["c.yaml", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["c.yaml", "a/b=c.yaml"], "an arm's name must be a folder name"),
        (["c.yaml", OTHER, "trian.epochs=3"], "trian: unknown setting; did you mean 'train'?"),
        (["c.yaml", "other=c.yaml 'train.epochs=1"], "settings behind a file must be quoted as in a shell"),
        (["c.yaml", OTHER, "seed=3"], "seed=3: compare decides seed itself: --seeds gives the seeds; leave it out"),
        (["c.yaml", OTHER, "run.root=x"], "compare decides run.root itself: --out gives the folder"),
        (["c.yaml", OTHER, "control=full"], "compare decides control itself: --baselines small,big"),
        (
            ["c.yaml", OTHER, "--baselines", "smal"],
            "--baselines must be of small, big, random, uniform, got 'smal'; did",
        ),
        (["c.yaml", OTHER, "--baselines", "small,small"], "--baselines must name each once"),
        (["c.yaml", "--baselines", "big"], "baseline big needs a model that knows its full width"),
        (["c.yaml", OTHER, "growth.when=never", "--baselines", "small"], "growth.when is never in all of c, other"),
        (["c.yaml", OTHER, "--seeds", "x"], "--seeds must be a number of seeds, or seeds such as 0,3,7, got 'x'"),
        (["c.yaml", OTHER, "--seeds", "0"], "there must be at least one, and none below 0"),
        (["c.yaml", OTHER, "--seeds", "1,1"], "--seeds must name each seed once"),
        (["c.yaml", OTHER, "--seeds", "20261120"], "one seed alone is written 20261120,"),
        (["c.yaml", OTHER, "--match", "flop"], "--match must be one of flops, steps, none, got 'flop'"),
        (["c.yaml", OTHER, "--tune-lr", "0.1,0"], "--tune-lr must be learning rates above 0"),
        (["c.yaml", OTHER, "--tune-lr", "fast"], "--tune-lr must be learning rates above 0"),
        (["c.yaml", OTHER, "--against", "big"], "--against must be one of the arms, c, other, got 'big'"),
        (["c.yaml", OTHER, "--also-seed", "data.sed"], "data.sed: unknown setting"),
        (["c.yaml", OTHER, "--also-seed", "run.name"], "--also-seed names settings beside seed, got run.name"),
        (["c.yaml", "e=c.yaml data.limit=100"], "same data, but data.limit is 200 for c and 100 for e"),
        (["c.yaml", "e=c.yaml data={name: text}"], "data.name is 'digits' for c and 'text' for e"),
        (["c.yaml", OTHER, "--out", "c.yaml"], "--out must be a folder, got c.yaml"),
        (["c.yaml", OTHER, "--split", "accept"], "--split must be one of test, validate, train, got 'accept'"),
        (["c.yaml", OTHER, "--metric", "acuracy"], "--metric must be one of loss, accuracy for classification"),
        (["c.yaml", OTHER, "data.split.test=0.0"], "--split reads the test split, which is empty"),
        (["c.yaml", OTHER, "data.split.validate=0.0", "--tune-lr", "0.1"], "--tune-lr reads the validate split, which"),
        (
            ["c.yaml", "f=c.yaml train.loss=focal", "--metric", "loss"],
            "--metric loss needs one train.loss for all arms",
        ),
        (
            ["c.yaml", "f=c.yaml train.label_smoothing=0.1", "--metric", "loss", "--split", "train"],
            "--metric loss needs one train.label_smoothing for all arms",
        ),
        (["c.yaml", OTHER, "growth.target=1.0", "--baselines", "uniform"], "baseline uniform needs growth"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], said: str, refused: Callable[..., str]):
    # an override with spaces is one word of the command line
    arguments = [re.sub(r" (data=\{.*\})$", r" '\1'", argument) for argument in arguments]
    assert said in refused(*arguments)


def test_a_model_at_its_full_width_has_no_big_baseline(write: Write):
    write("model: {name: wrn, block_width: 1.0}\n")
    result = CliRunner().invoke(app, ["compare", "c.yaml", "--baselines", "big"])
    assert "baseline big would be baseline small: the seed of c has its full width" in result.stderr


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(refused: Callable[..., str], tmp_path: Path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "--out must be writable" in refused("c.yaml", OTHER, "--out", "locked/out")


def ended(ending: Ending, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The outcome of a run whose process ended so."""
    monkeypatch.setattr(
        "growkit.compare.runs.run_bounded", lambda tasks, **_: ((number, ending) for number, _ in tasks)
    )
    runner = Runner(1, lambda run, outcome, stored: None)
    return runner([Run("a, seed 0", Config(), tmp_path / "a" / "0")])[0]


def test_a_full_disk_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ending = Ending(1.0, False, 1, "OSError: [Errno 28] No space left on device: 'out/a/0'")
    with pytest.raises(UserInputError, match="a, seed 0: no space is left where --out lies .*what is finished is kept"):
        ended(ending, tmp_path, monkeypatch)


def test_what_a_run_finds_wrong_ends_the_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserInputError, match="^a, seed 0: train.device: no CUDA$"):
        ended(Ending(1.0, False, 2, "growkit: train.device: no CUDA"), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    ("ending", "failure"),
    [
        (Ending(1.0, False, 3, "growkit: step 4 failed: no memory is left"), "step 4 failed: no memory is left"),
        (Ending(1.0, False, -9, ""), "its process ended with code -9"),
        (Ending(1.0, False, 0, ""), "its process ended with code 0"),  # and left nothing
    ],
)
def test_a_run_that_fails_does_not(ending: Ending, failure: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert ended(ending, tmp_path, monkeypatch).failure == failure


def test_arms_on_other_training_samples_are_comparable(write: Write):
    write(TINY)
    result = CliRunner().invoke(
        app,
        [
            "compare",
            "c.yaml",
            "less=c.yaml data.train_share=0.5",
            "noisy=c.yaml data.label_noise.rate=0.2",
            "--dry-run",
        ],
    )
    assert result.exit_code == 0, result.output
    tested = "noisy=c.yaml 'data.label_noise={rate: 0.2, splits: [test]}'"
    result = CliRunner().invoke(app, ["compare", "c.yaml", tested, "--dry-run"])
    assert "arms must be tested on the same data" in result.stderr


def test_a_dry_run_says_how_long_each_arm_trains(write: Write, tmp_path: Path):
    write(TINY)
    result = CliRunner().invoke(app, ["compare", "c.yaml", "--baselines", "small", "--seeds", "3", "--dry-run"])
    assert re.search(r"arm +c +8 steps, .*FLOPs +\(c.yaml\)\narm +small +1\d steps", result.output)
    assert "seeds     0, 1, 2\nruns      6, into compare" in result.output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.yaml"]


@pytest.mark.parametrize(("text", "seeds"), [("3", [0, 1, 2]), ("0,3,7", [0, 3, 7]), ("7,", [7]), (" 2 , 1 ", [2, 1])])
def test_seeds(text: str, seeds: list[int]):
    assert read_seeds(text) == seeds


def test_arguments(write: Write, tmp_path: Path):
    write(TINY)
    (tmp_path / "with space.yml").write_text(TINY)
    arms = read_arms(
        [
            "c.yaml",
            "b-0.5=c.yaml model.hidden=[8]",
            "with space.yml",
            "data.limit=100",
            "q=c.yaml 'train.loss={name: focal}'",
        ]
    )
    assert [arm.name for arm in arms] == ["c", "b-0.5", "with-space", "q"]
    assert {arm.config.data.limit for arm in arms} == {100}
    assert [arm.config.model.hidden for arm in arms] == [(4,), (8,), (4,), (4,)]  # type: ignore[union-attr]
    assert arms[3].config.train.loss.name == "focal"


def test_the_usual_loss_is_the_same_by_its_name(write: Write):
    write(TINY)
    arguments = ["c.yaml", "named=c.yaml train.loss=cross_entropy train.epochs=1", "--metric", "loss", "--dry-run"]
    assert CliRunner().invoke(app, ["compare", *arguments]).exit_code == 0


@pytest.mark.parametrize(
    ("task", "chosen", "known"),
    [
        ("classification", "accuracy", ["accuracy", "loss"]),
        ("regression", "loss", ["loss", "rmse", "mae", "r2"]),
        ("language", "perplexity", ["accuracy", "loss", "perplexity"]),
    ],
)
def test_what_a_task_is_judged_by(task: str, chosen: str, known: list[str]):
    data = SimpleNamespace(task=task, split=lambda name: [0])
    prospects: Any = [SimpleNamespace(parts=SimpleNamespace(data=data, config=config_from_overrides({})))] * 2
    assert choose_measure("test", None, prospects, tunes=False).metric == chosen
    for metric in known:
        measure = choose_measure("test", metric, prospects, tunes=False)
        assert measure.higher_is_better == (metric in ("accuracy", "r2"))
    with pytest.raises(UserInputError, match=f"for {task}, got 'f1'"):
        choose_measure("test", "f1", prospects, tunes=False)
