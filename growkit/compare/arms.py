"""What is compared: arms, read from YAML files and overrides; everything that settings alone can rule out."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from growkit.config import Config, config_from_overrides, load_config
from growkit.config.run import FOLDER_NAME
from growkit.errors import UserInputError

__all__ = ["Arm", "check_arms", "check_follow", "differing", "read_arms", "read_seeds"]

YAML = (".yaml", ".yml")
MOST_SEEDS = 1000
DECIDED = {
    "seed": "--seeds gives the seeds",
    "run.root": "--out gives the folder",
    "run.name": "--out gives the folder",
    "control": "--baselines small,big makes such arms",
}
# of the training samples alone: arms may differ in it and are still tested on the same samples
OF_TRAINING = ("augment", "transforms", "workers", "train_share")
NOISE = "label_noise"  # likewise, where it is on the train split alone


@dataclass(frozen=True)
class Arm:
    """One of the things compared.

    Attributes:
        name: also of its folder.
        config: its settings but for seed and folder.
        origin: where they come from.
        uniform: its final width is chosen by the parameters that the growing arm ends with.
    """

    name: str
    config: Config
    origin: str
    uniform: bool = False

    @property
    def grows(self) -> bool:
        """Whether its settings ask for growth."""
        return self.config.growth.when.name != "never"


def read_arms(arguments: Sequence[str]) -> list[Arm]:
    """The arms that a command line names.

    Args:
        arguments: `FILE`, `NAME=FILE`, either with settings of that arm alone behind it ("wide=a.yaml model.width=2" as
            one argument), and `key.path=value` for all arms.

    Raises:
        UserInputError: an argument or a file is wrong; all problems of a file come together.
    """
    named = [(text, _as_arm(text)) for text in arguments]
    shared = [text for text, arm in named if arm is None]
    return [_arm(name, file, [*shared, *own]) for name, file, own in (arm for _, arm in named if arm is not None)]


def _as_arm(text: str) -> tuple[str | None, str, list[str]] | None:
    """Name, file and settings of its own; None for settings of all arms."""
    key, equals, value = text.partition("=")
    for name, file in ((None, text), (key, value)):
        if Path(file).is_file() and (name is None or _may_name(name)):
            return name, file, []
    head, _, rest = text.partition(" ")
    key, equals, value = head.partition("=")
    if equals and not (value.endswith(YAML) and _may_name(key)):
        return None
    try:
        own = shlex.split(rest)
    except ValueError as error:
        raise UserInputError(f"{text!r}: settings behind a file must be quoted as in a shell: {error}") from error
    return (key, value, own) if equals else (None, head, own)


def _may_name(key: str) -> bool:
    """Whether `key` in `key=value` can be the name of an arm, and not that of a setting."""
    return key.partition(".")[0].strip() not in Config.model_fields


def _arm(name: str | None, file: str, overrides: Sequence[str]) -> Arm:
    for text in overrides:
        key = text.partition("=")[0].strip()
        if key in DECIDED:
            raise UserInputError(f"{text}: compare decides {key} itself: {DECIDED[key]}; leave it out")
    config = load_config(file, overrides)
    name = config.run.name if name is None else name
    if name is None or not re.fullmatch(FOLDER_NAME, name) or not name.strip("."):
        raise UserInputError(
            f"an arm's name must be a folder name of letters, digits, '.', '_' and '-', got {name!r}; write NAME={file}"
        )
    if config.control != "none":
        raise UserInputError(f"{name}: control must be none, got {config.control}: {DECIDED['control']}")
    return Arm(name, config, " ".join([file, *map(shlex.quote, overrides)]))


def check_arms(arms: Sequence[Arm]) -> None:
    """Refuse arms that say nothing beside each other.

    Raises:
        UserInputError: fewer than two, two of one name or of the same settings, or arms on different data.
    """
    if len(arms) < 2:
        raise UserInputError(
            f"compare needs two arms, got {len(arms)}; give another YAML file, or --baselines small,big,random,uniform"
        )
    for index, arm in enumerate(arms):
        for other in arms[:index]:
            if arm.name == other.name:
                raise UserInputError(f"two arms are called {arm.name!r}; give them names: NAME=FILE")
            if not arm.uniform and not differing(arm.config, other.config):
                raise UserInputError(f"{arm.name} is {other.name} again: all their settings are equal; leave one out")
        _check_comparable(arm, arms[0])


def _check_comparable(arm: Arm, first: Arm) -> None:
    """Refuse arms that would not be tested on the same samples."""
    free = OF_TRAINING if _noise_elsewhere(arm.config) or _noise_elsewhere(first.config) else (*OF_TRAINING, NOISE)
    keys = [
        (key, ours, theirs)
        for key, ours, theirs in differing(arm.config, first.config)
        if key.startswith("data.") and key.split(".")[1] not in free
    ]
    if keys:
        key, ours, theirs = min(keys, key=lambda found: found[0] != "data.name")  # other data differ in much else
        raise UserInputError(
            f"arms must be tested on the same data, but {key} is {theirs!r} for {first.name} and {ours!r} for "
            f"{arm.name}"
        )


def _noise_elsewhere(config: Config) -> bool:
    noise = config.data.label_noise
    return noise is not None and set(noise.splits) != {"train"}


def differing(ours: Config, theirs: Config) -> list[tuple[str, Any, Any]]:
    """(dotted key, our value, their value) of every setting that differs, but for seed and folder of the run.

    A key that one of them does not have counts as None there.
    """
    mine, other = (
        dict(_flat(config.model_dump(mode="json", by_alias=True, exclude={"seed", "run"}))) for config in (ours, theirs)
    )
    return [(key, mine.get(key), other.get(key)) for key in {**mine, **other} if mine.get(key) != other.get(key)]


def _flat(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def read_seeds(text: str) -> list[int]:
    """The seeds that `N` (0 to N - 1) or a list such as `0,3,7` names; `7,` is 7 alone.

    Raises:
        UserInputError: no such thing, a seed below 0 or a seed twice.
    """
    rule = f"--seeds must be a number of seeds, or seeds such as 0,3,7, got {text!r}"
    try:
        numbers = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise UserInputError(rule) from None
    if "," not in text and numbers and numbers[0] > MOST_SEEDS:
        raise UserInputError(f"{rule}; it is the number of seeds, and one seed alone is written {numbers[0]},")
    seeds = numbers if "," in text else list(range(sum(numbers)))
    if not seeds or min(seeds) < 0 or max(seeds) >= 2**63:
        raise UserInputError(f"{rule}; there must be at least one, and none below 0")
    if len(set(seeds)) < len(seeds):
        raise UserInputError(f"--seeds must name each seed once, got {text!r}")
    return seeds


def check_follow(keys: Sequence[str], config: Config) -> None:
    """Refuse settings that cannot take the seed.

    Raises:
        UserInputError: one is unknown or no whole number, or is decided otherwise.
    """
    for key in keys:
        if key in DECIDED:
            raise UserInputError(f"--also-seed names settings beside seed, got {key}: {DECIDED[key]}")
        config_from_overrides({key: 0}, base=config)
