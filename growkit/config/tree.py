"""The tree of settings classes, read as data: what stands where, and how pydantic's locations map to users' paths.

A *section* is a key that holds one settings class; a *family* holds one of several, told apart by `name`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import JsonValue
from pydantic.fields import FieldInfo

from growkit.config.base import Settings
from growkit.config.problem import Path, dotted
from growkit.config.run import Config

__all__ = ["ANY_CALLABLE", "Spot", "classes_in", "fields", "homes", "locate", "member_name", "settings_at", "split"]

ANY_CALLABLE = "package.module:callable"


@dataclass(frozen=True)
class Spot:
    """Where an error of pydantic belongs.

    Attributes:
        path: the user's path, without the tags that pydantic puts between.
        owner: the class whose setting the last key is, or would be; None below a plain value.
        family: the classes that `owner` was chosen from; empty if it was the only one.
        union: the path of the plain union (such as number or mapping) that the error is one branch of.
    """

    path: Path
    owner: type[Settings] | None = None
    family: tuple[type[Settings], ...] = ()
    union: Path | None = None


def fields(settings: type[Settings]) -> dict[str, FieldInfo]:
    """The settings of a class by the key users write."""
    return {info.alias or name: info for name, info in settings.model_fields.items()}


def classes_in(annotation: Any) -> tuple[type[Settings], ...]:
    """The settings classes an annotation admits: one for a section, several for a family, none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return (annotation,)
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return tuple(found for arm in _arms(annotation) for found in classes_in(arm))
    return ()


def member_name(settings: type[Settings]) -> str:
    """The name that chooses a class from its family."""
    annotation = settings.model_fields["name"].annotation
    return get_args(annotation)[0] if get_origin(annotation) is Literal else ANY_CALLABLE


def settings_at(path: Path) -> tuple[type[Settings], ...]:
    """The settings classes that may stand at a path of keys; empty where there is a plain value or nothing."""
    return classes_in(_annotation_at(path))


def split(dotted_key: str, below: Path = ()) -> Path:
    """The path of a dotted key; the keys of a mapping of patterns keep their dots.

    Example:
        >>> split("growth.target.layer1.conv1")
        ('growth', 'target', 'layer1.conv1')
    """
    path = below
    parts = dotted_key.split(".")
    for index, part in enumerate(parts):
        if _maps_patterns(_annotation_at(path)):
            return (*path, ".".join(parts[index:]))
        path = (*path, part)
    return path


def locate(location: tuple[int | str, ...]) -> Spot:
    """Translate a location of pydantic, which names the chosen member and union branch, into the user's path."""
    path: Path = ()
    annotation: Any = Config
    owner, family, union = None, (), None
    for key in location:
        classes = classes_in(annotation)
        if len(classes) > 1:
            family, annotation = classes, _tagged(classes, key)
            continue
        if classes:
            (owner,) = classes
            family = family if owner in family else ()
            annotation = fields(owner)[str(key)].annotation if key in fields(owner) else None
        elif len(_arms(annotation)) > 1:
            union, annotation, owner = path, None, None
            continue
        elif key == "[key]":
            continue
        else:
            annotation, owner, family = None, None, ()
        path = (*path, key)
    return Spot(path, owner, family if owner in family else (), union)


@cache
def homes() -> dict[str, tuple[str, ...]]:
    """Every key of every settings class, with the dotted paths where it stands."""
    found: dict[str, dict[str, None]] = {}
    for path in _paths(Config, ()):
        found.setdefault(str(path[-1]), {})[dotted(path)] = None
    return {key: tuple(paths) for key, paths in found.items()}


def _paths(settings: type[Settings], below: Path) -> Iterator[Path]:
    for key, info in fields(settings).items():
        yield (*below, key)
        for member in classes_in(info.annotation):
            yield from _paths(member, (*below, key))


def _annotation_at(path: Path) -> Any:
    annotation: Any = Config
    for key in path:
        found = [fields(member)[str(key)].annotation for member in classes_in(annotation) if key in fields(member)]
        annotation = found[0] if found else None
    return annotation


def _arms(annotation: Any) -> list[Any]:
    """The alternatives of a union, without None; an annotation that is none alone."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return [get_args(annotation)[0]]
    if origin in (Union, types.UnionType):
        return [arm for arm in get_args(annotation) if arm is not type(None)]
    return [annotation]


def _maps_patterns(annotation: Any) -> bool:
    return any(get_origin(arm) is dict and get_args(arm)[1] is not JsonValue for arm in _arms(annotation))


def _tagged(classes: tuple[type[Settings], ...], tag: int | str) -> type[Settings]:
    by_name = {member_name(member): member for member in classes}
    return by_name.get(str(tag)) or by_name[ANY_CALLABLE]
