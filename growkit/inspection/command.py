"""What the command `growkit inspect` does."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growkit.config import Config, config_from_overrides, load_config
from growkit.config.base import CALLABLE_PATH
from growkit.config.yaml import YamlError, parse
from growkit.errors import ConfigError, UserInputError

if TYPE_CHECKING:
    from growkit.graph import Sites
    from growkit.inspection.facts import Facts
    from growkit.inspection.targets import Target

__all__ = ["config_of", "inspect"]

OF_TOKENS = {"lstm": "text", "gpt": "text", "seq2seq": "text_pair"}  # models, and data that they take


def inspect(
    target: str,
    overrides: Sequence[str] = (),
    *,
    shapes: Sequence[str] = (),
    svg: Path | None = None,
    graphml: Path | None = None,
    as_json: bool = False,
    verify: bool = False,
) -> None:
    """Print what growkit finds in a model, and write the files asked for.

    Args:
        target: an experiment's YAML file, a model's name in the settings, `package.module:callable` (or that of a
            module instance), `torchvision:NAME` or `timm:NAME`.
        overrides: `key.path=value`, on top of the file or the defaults.
        shapes: of the inputs of one sample; see `growkit.inspection.targets.example_of`.
        svg: where to draw the model.
        graphml: where to write its graph.
        as_json: print one JSON object in place of the table.
        verify: widen a perturbed copy at every site and compare the outputs.

    Raises:
        UserInputError: anything the user gave that does not fit.
    """
    config = config_of(target, overrides)  # before torch is imported
    from growkit.graph import find_sites
    from growkit.inspection.facts import facts_of
    from growkit.inspection.targets import target_of

    data_given = _is_file(target) or any(text.startswith("data") for text in overrides)
    found = target_of(target, config, shapes, data_given=data_given)
    sites = find_sites(found.model, found.example)
    facts = facts_of(target, found.model, sites, verify=verify)
    _write(found, sites, facts, svg, graphml)
    if as_json:
        print(json.dumps(facts.to_json()))
        return
    from rich.console import Console

    from growkit.inspection.table import print_facts

    print_facts(facts, Console(highlight=False))


def config_of(target: str, overrides: Sequence[str] = ()) -> Config:
    """The settings that a target stands for.

    Raises:
        ConfigError: the target is unknown, or settings are wrong.
    """
    _refuse_python_files(target)
    if _is_file(target):
        return load_config(target, overrides)
    if not re.fullmatch(CALLABLE_PATH, target) and target not in _model_names():
        near = difflib.get_close_matches(target, _model_names(), n=1)
        hint = f"did you mean {near[0]!r}? It" if near else "it"
        names = ", ".join(_model_names())
        raise UserInputError(
            f"nothing to inspect is called {target!r}; {hint} must be a YAML file, a model ({names}), "
            "package.module:callable, package.module:instance, torchvision:NAME or timm:NAME"
        )
    settings: dict[str, Any] = {"model": {"name": target}}
    if target in OF_TOKENS:
        settings["data"] = {"name": OF_TOKENS[target]}
    for text in overrides:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"override {text!r}: write key.path=value, such as model.depth=10")
        try:
            settings[key.strip()] = parse(value).value
        except YamlError as error:
            raise ConfigError(f"override {text!r}: {error}") from error
    return config_from_overrides(settings)


def _refuse_python_files(target: str) -> None:
    """Models in Python code are found by import: say what to write in place of a file's path."""
    path, colon, name = target.partition(":")
    if not path.endswith(".py") or not ("/" in path or Path(path).is_file()):
        return
    file, here = Path(path), Path.cwd()
    inside = file.resolve().relative_to(here) if file.resolve().is_relative_to(here) else None
    module = ".".join((inside or Path(file.name)).with_suffix("").parts)
    search = "" if inside else f", with PYTHONPATH={file.parent}"
    wanted = (
        f"{module}:{name}" if colon else f"{module}:NAME, NAME being a callable in it that builds a model, or a model"
    )
    raise UserInputError(f"{target!r} is a Python file, and a model in one is named by its module: {wanted}{search}")


def _is_file(target: str) -> bool:
    return target.endswith((".yaml", ".yml")) or ("/" in target and ":" not in target) or Path(target).is_file()


def _model_names() -> list[str]:
    """The names of the models that the settings know by name."""
    from growkit.config.tree import settings_at

    names = [cls.model_fields["name"].default for cls in settings_at(("model",))]
    return [name for name in names if isinstance(name, str) and name != "live"]


def _write(found: Target, sites: Sites, facts: Facts, svg: Path | None, graphml: Path | None) -> None:
    if svg is None and graphml is None:
        return
    from growkit.graph.network import network_of, write_graphml
    from growkit.inspection.drawing import draw

    network = network_of(sites.graph)
    try:
        if svg is not None:
            svg.write_text(draw(network, found.model, facts), encoding="utf-8")
        if graphml is not None:
            write_graphml(network, graphml)
    except OSError as error:
        raise UserInputError(
            f"{error.filename} cannot be written: {error.strerror}; give a path in a folder you may write"
        ) from error
