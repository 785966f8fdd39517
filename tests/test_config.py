"""Settings from files and overrides."""

from __future__ import annotations

from pathlib import Path

import pytest
from config_cases import Write, problems_of

from growkit.config import load_config
from growkit.config.data import Cifar10Settings
from growkit.config.growth import GradMaxSettings, NeverSettings, PeriodicSettings
from growkit.config.models import WrnSettings
from growkit.config.train import AdamSettings, SGDSettings

# Reading


def test_a_file_gives_settings_and_names_the_run(write: Write) -> None:
    config = load_config(write("train: {epochs: 3, optimizer: {name: adam, lr: 1e-3}}\ngrowth: {when: never}\n"))
    assert config.train.epochs == 3
    assert config.train.optimizer == AdamSettings(lr=1e-3)
    assert config.growth.when == NeverSettings()
    assert config.run.name == "c"


def test_a_run_keeps_the_name_it_is_given(write: Write) -> None:
    assert load_config(write("run: {name: mine}")).run.name == "mine"


def test_a_mapping_without_a_name_means_the_default_member(write: Write) -> None:
    text = "model: {depth: 22}\ntrain: {optimizer: {lr: 0.2}, schedule: {final: 0.1}}\n"
    text += "growth: {when: {every: 2}, initializer: {scale: 1}}"
    config = load_config(write(text))
    assert config.model == WrnSettings(depth=22)
    assert config.train.optimizer == SGDSettings(lr=0.2)
    assert config.growth.when == PeriodicSettings(every=2)
    assert config.growth.initializer == GradMaxSettings(scale=1.0)


def test_a_section_given_in_part_keeps_the_default_of_its_owner(write: Write) -> None:
    config = load_config(write("data: {name: cifar10, augment: {crop: 2}}"))
    assert isinstance(config.data, Cifar10Settings)
    assert (config.data.augment.crop, config.data.augment.flip) == (2, True)


# Problems in files


def test_four_faults_give_four_lines(write: Write) -> None:
    text = """\
seed: 1
epochs: 3
model: {name: wrn, dept: 22}
train:
  batch_size: '64'
  optimizer:
    name: sgd
    lr: -0.1
"""
    assert problems_of(load_config, write(text)) == [
        "c.yaml:2:1: epochs: unknown setting; did you mean train.epochs?",
        "c.yaml:3:20: model.dept: unknown setting of wrn; did you mean 'depth'?",
        "c.yaml:5:15: train.batch_size: must be an integer, got '64' (a string)",
        "c.yaml:8:9: train.optimizer.lr: must be > 0, got -0.1",
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("seed: true", "1:7: seed: must be an integer, got true"),
        ("seed: 1e2", "1:7: seed: must be an integer, got 100.0; write 100"),
        ("seed: 1.5", "1:7: seed: must be an integer, got 1.5"),
        ("seed: -1", "1:7: seed: must be >= 0, got -1"),
        ("seed:", "1:1: seed: must be an integer, got nothing (null)"),
        (
            "seed: 010",
            "1:7: seed: an integer must not start with 0 (octal to some readers), got 010; write 10, or '010' for text",
        ),
        ("seed: 1\nseed: 2", "2:1: seed: given twice, first on line 1; keep one"),
        ("version: 2", "1:10: version: must be 1, got 2"),
        ("control: sed", "1:10: control: must be one of none, seed, full, got 'sed'; did you mean 'seed'?"),
        ("run: {root: 3}", "1:13: run.root: must be text, got 3"),
        ("run: {tensorboard: on}", "1:20: run.tensorboard: must be true or false, got 'on' (a string); write true"),
        (
            "run: {name: a/b}",
            "1:13: run.name: must be a folder name of letters, digits, '.', '_' and '-', got 'a/b'",
        ),
        (
            "train:",
            "1:1: train: must be a mapping of settings, got nothing (null); remove the key to take the defaults",
        ),
        ("train: {label_smoothing: 1}", "1:26: train.label_smoothing: must be < 1, got 1"),
        ("train: {optimizer: {lr: .nan}}", "1:25: train.optimizer.lr: must be finite, got nan"),
        ("train: {optimizer: {lr: 12:30}}", "1:25: train.optimizer.lr: must be a number, got '12:30' (a string)"),
        (
            "train: {optimizer: adm}",
            "1:20: train.optimizer: must be one of sgd, adam, adamw, adabound, amsbound, sam, asam, got 'adm'; did "
            "you mean 'adam'?",
        ),
        (
            "train: {optimizer: {name: 3}}",
            "1:27: train.optimizer.name: must be one of sgd, adam, adamw, adabound, amsbound, sam, asam, got 3",
        ),
        (
            "train: {optimizer: {name: adam, momentum: 0.9}}",
            "1:33: train.optimizer.momentum: is no setting of adam, only of sgd; "
            "remove it or choose train.optimizer.name: sgd",
        ),
        (
            "train: {optimizer: {momentum: 0}}",
            "1:9: train.optimizer: nesterov needs momentum > 0, got momentum 0; set nesterov: false",
        ),
        ("train.epochs: 3", "1:1: train.epochs: a dot does not open a mapping in YAML; write train: {epochs: ...}"),
        ("epoch: 3", "1:1: epoch: unknown setting; did you mean train.epochs?"),
        (
            "learning_rate: 3",
            "1:1: learning_rate: unknown setting; it has version, seed, run, data, model, train, growth, control",
        ),
        (
            "growth: {when: {name: never, hours: 1}}",
            "1:30: growth.when.hours: unknown setting of never; it has no settings",
        ),
        ("data: {name: npz}", "1:1: data.path: is required by npz; give it a value"),
        ("data: npz", "1:1: data.path: is required by npz; give it a value"),
        (
            "data: {split: {validate: 0.5, diagnose: 0.5}}",
            "1:8: data.split: validate + diagnose + accept must be < 1 so that train is not empty, got 1.1",
        ),
        ("data: {split: {validat: 0.5}}", "1:16: data.split.validat: unknown setting; did you mean 'validate'?"),
        ("data: {name: teacher, widths: [4, 0]}", "1:35: data.widths[1]: must be >= 1, got 0"),
        ("data: {name: teacher, widths: [4]}", "1:31: data.widths: must have at least 2 items, got 1"),
        ("model: {name: mlp, hidden: 64}", "1:28: model.hidden: must be a list, got 64; write [64]"),
        ("model: {depth: 11}", "1:16: model.depth: must be 6n + 4 with n >= 1 (10, 16, 22, 28, 40, ...), got 11"),
        (
            "model: {hidden: [8]}",
            "1:9: model.hidden: is no setting of wrn, only of mlp, lstm; remove it or choose model.name: mlp",
        ),
        (
            "model: wnr",
            "1:8: model: must be one of mlp, vgg, wrn, resnet, mobilenet, densenet, vit, lstm, gpt, "
            "seq2seq, live, package.module:callable, got 'wnr'; did you mean 'wrn'?",
        ),
        ("model: 'a b:c'", "1:8: model.name: must be package.module:callable, got 'a b:c'"),
        ("growth: {target: 0.5}", "1:18: growth.target: must be >= 1 (a multiple of the seed width), got 0.5"),
        ("growth: {target: wide}", "1:18: growth.target: must be a number or a mapping, got 'wide' (a string)"),
        ("growth: {target: {conv1: 0}}", "1:26: growth.target.conv1: must be >= 1, got 0"),
        ("growth: {sites: [1]}", "1:18: growth.sites[0]: must be text, got 1"),
        (
            "growth: {where: []}",
            "1:17: growth.where: must be one of all, round_robin, largest_gain, random, got the list []",
        ),
        ("growth: {fallback: {name: zero, form: zero_fan_in}}", None),
    ],
)
def test_a_problem_says_where_what_and_how_to_mend_it(write: Write, text: str, problem: str | None) -> None:
    found = problems_of(load_config, write(text))
    expected = problem or "1:39: growth.fallback.form: must be one of auto, zero_fan_out, got 'zero_fan_in'"
    assert [line.partition("; did")[0] if problem is None else line for line in found] == [f"c.yaml:{expected}"]


def test_a_syntax_error_stands_alone(write: Write) -> None:
    assert problems_of(load_config, write("epochs: 3\ntrain: {epochs: 3\nseed: 1\n"), ["x"]) == [
        "c.yaml:3:5: not valid YAML: while parsing a flow mapping that starts on line 2, expected ',' or '}', "
        "but got ':'; the line reads 'seed: 1'"
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("# nothing\n", "c.yaml:1:1: is empty; write at least `version: 1` to take every default"),
        (
            "\n- a\n",
            "c.yaml:2:1: the top level must be a mapping such as `train: {epochs: 3}`, got ['a']; "
            "write `key: value`, with a space",
        ),
        (
            "seed:1",
            "c.yaml:1:1: the top level must be a mapping such as `train: {epochs: 3}`, got 'seed:1'; "
            "write `key: value`, with a space",
        ),
    ],
)
def test_the_top_level_is_a_mapping(write: Write, text: str, problem: str) -> None:
    assert problems_of(load_config, write(text)) == [problem]


def test_files_that_cannot_be_read_are_named(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("seed: 1").rename("digits.yaml")
    Path("latin.yaml").write_bytes(b"seed: 1\nrun: {root: \xff}\n")
    assert problems_of(load_config, "digit.yaml") == ["digit.yaml: no such file; did you mean 'digits.yaml'?"]
    assert problems_of(load_config, "other.yaml") == ["other.yaml: no such file"]
    assert problems_of(load_config, "no/c.yaml") == ["no/c.yaml: no such file; the folder no does not exist"]
    assert problems_of(load_config, ".") == [".: is a folder; give a YAML file in it"]
    assert problems_of(load_config, "latin.yaml") == ["latin.yaml:2:13: is not UTF-8 text; save it as UTF-8"]

    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert problems_of(load_config, "digits.yaml") == ["digits.yaml: cannot be read (Permission denied)"]


# Overrides


def test_overrides_lie_on_top_of_the_file(write: Write) -> None:
    path = write("train: {epochs: 3, optimizer: {name: sgd, lr: 1}}\ngrowth: {when: periodic, sites: [a]}\n")
    overrides = ["train.epochs=5", "train.optimizer={name: adam, lr: 1e-3}", "growth.when.start=3", "model.width=2"]
    config = load_config(path, [*overrides, "growth.target.layer1.conv1=64", "growth={tolerance: 1e-4}", "data.limit="])
    assert config.train.epochs == 5
    assert config.train.optimizer == AdamSettings(lr=1e-3)
    assert config.growth.when == PeriodicSettings(start=3)
    assert config.model == WrnSettings(width=2)
    assert config.growth.target == {"layer1.conv1": 64}
    assert (config.growth.tolerance, config.growth.sites) == (1e-4, ("a",))
    assert config.data.limit is None


def test_a_name_replaces_the_whole_member(write: Write) -> None:
    path = write("growth: {when: {name: periodic, start: 3}}")
    assert load_config(path, ["growth.when=never"]).growth.when == NeverSettings()


def test_the_wider_override_may_come_first(write: Write) -> None:
    path = write("growth: {when: never}")
    assert load_config(path, ["growth.when=periodic", "growth.when.start=3"]).growth.when == PeriodicSettings(start=3)


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["train.epochs"], "override 'train.epochs': has no '='; write key.path=value, such as train.epochs=3"),
        (["=3"], "override '=3': has an empty key; write key.path=value, such as train.epochs=3"),
        (
            ["train..epochs=3"],
            "override 'train..epochs=3': has an empty key; write key.path=value, such as train.epochs=3",
        ),
        (["train.epoch=3"], "override 'train.epoch=3': train.epoch: unknown setting; did you mean 'epochs'?"),
        (["train.epochs='3'"], "override 'train.epochs='3'': train.epochs: must be an integer, got '3' (a string)"),
        (["train.epochs=2+1"], "override 'train.epochs=2+1': train.epochs: must be an integer, got '2+1' (a string)"),
        (["train.epochs=1", "train.epochs=2"], "override 'train.epochs=2': train.epochs: given twice; keep one"),
        (
            ["growth.when.start=3", "growth.when=never"],
            "override 'growth.when=never': growth.when: would undo growth.when.start, which was given before; "
            "give it first, or drop one",
        ),
        (
            ["seed.more=1"],
            "override 'seed.more=1': seed.more: seed is 1, which has no keys; give seed whole",
        ),
        (
            ["growth.where=["],
            "override 'growth.where=[': growth.where: not valid YAML: while parsing a flow node expected the node "
            "content, but found '<stream end>'; the line reads '['",
        ),
        (
            ["train.optimizer={lr: 1, lr: 2}"],
            "override 'train.optimizer={lr: 1, lr: 2}': train.optimizer.lr: given twice, first on line 1; keep one",
        ),
        (
            ["train.optimizer.name=adam"],
            "c.yaml:2:32: train.optimizer.momentum: is no setting of adam, only of sgd; train.optimizer.name=adam "
            "keeps the other settings of train.optimizer; train.optimizer=adam replaces them all",
        ),
        (
            ["train.optimizer.momentum=0"],
            "override 'train.optimizer.momentum=0': train.optimizer: nesterov needs momentum > 0, got momentum 0; "
            "set nesterov: false",
        ),
        (["data=npz"], "override 'data=npz': data.path: is required by npz; give it a value"),
    ],
)
def test_a_wrong_override_is_named(write: Write, overrides: list[str], problem: str) -> None:
    path = write("seed: 1\ntrain: {optimizer: {name: sgd, momentum: 0.5}}")
    assert problems_of(load_config, path, overrides) == [problem]


def test_problems_of_the_file_come_first_then_overrides_in_their_order(write: Write) -> None:
    found = problems_of(load_config, write("b: 1\na: 1\n"), ["train.epochs=0", "seed=-1"])
    places = [problem.split(": ")[0] for problem in found]
    assert places == ["c.yaml:1:1", "c.yaml:2:1", "override 'train.epochs=0'", "override 'seed=-1'"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        ("{augment: {policy: autoaugment}}", "data.augment.policy.policy: is required by autoaugment; give it a value"),
        ("{augment: {policy: {magnitude: 31}}}", "data.augment.policy.magnitude: must be <= 30, got 31"),
        ("{augment: {policy: randaugmnt}}", "data.augment.policy: must be one of randaugment, autoaugment, got"),
        ("{name: text, augment: {mixup: 0.2}}", "data.augment: is no setting of text, only of digits,"),
        (
            "{name: tabular, path: a, target: b, augment: {policy: randaugment}}",
            "data.augment: is no setting of tabular",
        ),
        ("{label_noise: 0.4}", "data.label_noise: must be a mapping of settings, got 0.4"),
        ("{label_noise: {rate: 1.5}}", "data.label_noise.rate: must be <= 1, got 1.5"),
        (
            "{label_noise: {rate: 0.1, splits: [trian]}}",
            "must be one of train, validate, diagnose, accept, test, got 'trian'",
        ),
        ("{train_share: 0}", "data.train_share: must be > 0, got 0"),
    ],
)
def test_wrong_settings_of_noise_and_augmentation_name_their_key(write: Write, data: str, problem: str) -> None:
    (found,) = problems_of(load_config, write(f"data: {data}"))
    assert found.startswith("c.yaml:1:") and problem in found
