"""From files, overrides and Python mappings to a Config; every problem at once, each on one line."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from growkit.config.draft import Draft, explicit
from growkit.config.explain import explain
from growkit.config.problem import Place
from growkit.config.run import Config
from growkit.config.yaml import Document, YamlError, dump, parse
from growkit.errors import ConfigError

__all__ = ["config_from_overrides", "dump_config", "lay_overrides", "load_config"]


def load_config(
    path: str | Path, overrides: Sequence[str] = (), *, settings: Mapping[str, Any] | None = None
) -> Config:
    """Read a configuration file and lay overrides on top.

    Args:
        path: a YAML file. Where `run.name` is null, the run is named after it.
        overrides: `key.path=value`, each value in YAML: `train.epochs=3`, `growth.when=never`,
            `train.optimizer={name: adam, lr: 1e-3}`. A mapping without a name changes the keys it has; anything else
            replaces what the file says.
        settings: from Python, as `config_from_overrides` takes them; laid on top last.

    Raises:
        ConfigError: the file cannot be read, or settings are wrong; `problems` has a line for each.
    """
    file = Path(path)
    draft = Draft.of_document(_document(file), str(path))
    for index, text in enumerate(overrides):
        draft.override(text, index)
    if settings:
        draft.lay((), dict(settings), Place("settings", (1, 0, 0)))
    config = _validated(draft)
    if config.run.name is not None:
        return config
    name = re.sub(r"[^\w.-]+", "-", file.stem).strip(".") or "run"
    return config.model_copy(update={"run": config.run.model_copy(update={"name": name})})


def config_from_overrides(settings: Mapping[str, Any] | None, base: Config | None = None) -> Config:
    """A Config from Python: defaults, or what was set in `base`, with `settings` on top.

    Args:
        settings: dotted or nested, as in `{"train.epochs": 3, "growth": {"when": "never"}}`; values may be settings
            objects. Mappings merge as they do in `load_config`.
        base: settings left at their defaults there follow the defaults of what `settings` chooses.

    Raises:
        ConfigError: settings are wrong; `problems` has a line for each.
    """
    draft = Draft(explicit(base) if base is not None else None)
    if settings:
        draft.lay((), dict(settings), Place("settings", (1, 0, 0)))
    return _validated(draft)


def lay_overrides(values: Mapping[str, Any], overrides: Sequence[str], origin: str) -> tuple[dict[str, Any], Config]:
    """Settings as plain values with overrides on top, and the Config that they make.

    Args:
        values: nested mappings, as YAML has them; they stay as they are.
        overrides: as in `load_config`.
        origin: what messages call the place that `values` come from.

    Raises:
        ConfigError: settings are wrong; `problems` has a line for each.
    """
    draft = Draft(copy.deepcopy(dict(values)), origin)
    for index, text in enumerate(overrides):
        draft.override(text, index)
    return draft.values, _validated(draft)


def dump_config(config: Config) -> str:
    """Every setting as YAML, defaults included; it loads back to an equal Config."""
    return dump(_name_first(config.model_dump(by_alias=True)))


def _name_first(values: Any) -> Any:
    """The same mappings, each with the name of its member on top."""
    if not isinstance(values, dict):
        return values
    top = {"name": values["name"]} if "name" in values else {}
    return {**top, **{key: _name_first(value) for key, value in values.items()}}


def _validated(draft: Draft) -> Config:
    problems = list(draft.problems)
    config = None
    try:
        config = Config.model_validate(draft.values)
    except ValidationError as error:
        problems += explain(error, draft)
    if config is None or problems:
        raise ConfigError([str(problem) for problem in sorted(problems, key=lambda problem: problem.place.order)])
    return config


def _document(file: Path) -> Document:
    try:
        document = parse(_text(file))
    except YamlError as error:
        line, column = error.position
        raise ConfigError(f"{file}:{line}:{column}: {error}") from error
    if document.value is None:
        raise ConfigError(f"{file}:1:1: is empty; write at least `version: 1` to take every default")
    if not isinstance(document.value, dict):
        line, column = document.values[()]
        rule = "the top level must be a mapping such as `train: {epochs: 3}`"
        raise ConfigError(
            f"{file}:{line}:{column}: {rule}, got {document.value!r:.60}; write `key: value`, with a space"
        )
    return document


def _text(file: Path) -> str:
    try:
        if file.is_dir():
            raise ConfigError(f"{file}: is a folder; give a YAML file in it")
        raw = file.read_bytes()
    except FileNotFoundError as error:
        raise ConfigError(f"{file}: no such file{_nearest_file(file)}") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read ({error.strerror or error})") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        column = error.start - (raw.rfind(b"\n", 0, error.start) + 1) + 1
        raise ConfigError(f"{file}:{line}:{column}: is not UTF-8 text; save it as UTF-8") from error


def _nearest_file(file: Path) -> str:
    if not file.parent.is_dir():
        return f"; the folder {file.parent} does not exist"
    stems = {entry.stem: entry for entry in sorted(file.parent.iterdir()) if entry.suffix in (".yaml", ".yml")}
    nearest = get_close_matches(file.stem, stems, n=1, cutoff=0.6)
    return f"; did you mean '{stems[nearest[0]]}'?" if nearest else ""
