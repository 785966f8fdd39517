"""The JSON schema of a configuration, for editors that complete and check YAML."""

from __future__ import annotations

import re
from typing import Any

from pydantic.fields import FieldInfo

from growkit.config.base import Settings
from growkit.config.run import Config
from growkit.config.tree import ANY_CALLABLE, classes_in, fields, member_name

__all__ = ["json_schema"]


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a configuration file.

    Editors take it from a first line `# yaml-language-server: $schema=growkit.schema.json`.
    """
    schema = Config.model_json_schema(by_alias=True)
    definitions = schema["$defs"]
    for settings in _all_settings(Config):
        body = schema if settings is Config else definitions[settings.__name__]
        for key, info in fields(settings).items():
            _amend(body["properties"][key], settings, key, info)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "growkit configuration"}


def _amend(body: dict[str, Any], settings: type[Settings], key: str, info: FieldInfo) -> None:
    """Add what pydantic cannot know: the shorthand of a family, and descriptions that stand in docstrings."""
    members = classes_in(info.annotation)
    if len(members) > 1:
        body["anyOf"] = [_names(members), *_alternatives(body)]
    description = _described(settings).get(key)
    if description:
        body["description"] = description


def _alternatives(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The members, any of which may fit: without a name, `{lr: 0.1}` fits several and means the default one."""
    body.pop("discriminator", None)
    arms = body.pop("oneOf", None) or body.pop("anyOf")
    return [inner for arm in arms for inner in arm.get("oneOf", [arm])]


def _names(members: tuple[type[Settings], ...]) -> dict[str, Any]:
    names = [member_name(member) for member in members]
    known: dict[str, Any] = {"type": "string", "enum": [name for name in names if name != ANY_CALLABLE]}
    return {"anyOf": [known, {"type": "string", "pattern": ":"}]} if ANY_CALLABLE in names else known


def _described(settings: type[Settings]) -> dict[str, str]:
    """The `name: text` parts of the docstrings of a class and its bases, by name."""
    names = "|".join(re.escape(key) for key in fields(settings))
    described: dict[str, str] = {}
    for owner in reversed(settings.__mro__):  # a class's own words win over those of its base
        text = " ".join((owner.__dict__.get("__doc__") or "").split()) if issubclass(owner, Settings) else ""
        parts = re.split(rf"(?:^|(?<=[.;] ))({names}): ", text)
        described |= {name: words.strip() for name, words in zip(parts[1::2], parts[2::2], strict=True)}
    return described


def _all_settings(settings: type[Settings]) -> set[type[Settings]]:
    found = {settings}
    for info in fields(settings).values():
        for member in classes_in(info.annotation):
            found |= _all_settings(member)
    return found
