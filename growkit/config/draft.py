"""Settings on their way to a Config: plain values laid over each other, each with the place it came from."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from growkit.config.base import Settings
from growkit.config.problem import Path, Place, Problem, dotted
from growkit.config.tree import settings_at, split
from growkit.config.yaml import Document, YamlError, parse

__all__ = ["Draft", "explicit"]


class Draft:
    """Values as given in a file, with overrides on top.

    Attributes:
        values: nested dicts, as YAML has them.
        problems: what was wrong with giving them.
    """

    def __init__(self, values: dict[str, Any] | None = None, origin: str = "settings"):
        self.values: dict[str, Any] = values or {}
        self.problems: list[Problem] = []
        self._keys: dict[Path, Place] = {}
        self._values: dict[Path, Place] = {(): Place(origin)}
        self._given: dict[Path, Place] = {}  # by overrides, so that none undoes another

    @classmethod
    def of_document(cls, document: Document, file: str) -> Draft:
        """The settings of a YAML file whose top level is a mapping."""
        draft = cls(document.value)
        draft._keys = {path: Place.in_file(file, *position) for path, position in document.keys.items()}
        draft._values = {path: Place.in_file(file, *position) for path, position in document.values.items()}
        draft.problems = [
            Problem(Place.in_file(file, *position), path, message) for position, path, message in document.problems
        ]
        return draft

    def __contains__(self, path: Path) -> bool:
        return path in self._values

    def place_of(self, path: Path, *, key: bool = False) -> Place:
        """Where the value (or the key) of a setting stands; for one that is not given, where its section starts."""
        if path in self._values:
            return self._keys.get(path, self._values[path]) if key else self._values[path]
        if path[-1:] == ("name",) and path[:-1] in self._values:
            return self._values[path[:-1]]  # `when: never`
        while path and path not in self._keys:
            path = path[:-1]
        return self._keys[path] if path else self._values[()]

    def overriding(self, path: Path) -> Place | None:
        """The override that was the last to change something at or below a path."""
        places = [place for given, place in self._given.items() if given[: len(path)] == path]
        return max(places, key=lambda place: place.order, default=None)

    def override(self, text: str, index: int) -> None:
        """Lay `key.path=value` on top; the value is YAML. `index` is its position among the overrides, from 0."""
        place = Place(f"override '{text}'", (1, index, 0))
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(part.strip() for part in key.split(".")):
            remedy = "write key.path=value, such as train.epochs=3"
            fault = "has an empty key" if equals else "has no '='"
            self.problems.append(Problem(place, (), f"{fault}; {remedy}"))
            return
        try:
            document = parse(value)
        except YamlError as error:
            self.problems.append(Problem(place, split(key), str(error)))
            return
        path = split(key)
        self.problems += [Problem(place, path + below, message) for _, below, message in document.problems]
        self.lay(path, document.value, place)

    def lay(self, path: Path, value: Any, place: Place) -> None:
        """Put a value on top.

        A mapping for a section, or for a family without naming a member, changes the keys it has; anything else
        replaces what stood there. Within one mapping the wider settings go first.
        """
        for below, replacement in sorted(self._replacements(path, value, place), key=lambda pair: len(pair[0])):
            earlier = next((given for given in self._given if given[: len(below)] == below), None)
            if earlier is None:
                self._given[below] = place
                self._put(below, replacement, place)
                continue
            undone = f"would undo {dotted(earlier)}, which was given before; give it first, or drop one"
            self.problems.append(Problem(place, below, "given twice; keep one" if earlier == below else undone))

    def _replacements(self, path: Path, value: Any, place: Place) -> Iterator[tuple[Path, Any]]:
        """What a value replaces: itself at `path`, or the entries of a mapping, each at its own path."""
        value = _plain(value)
        classes = settings_at(path)
        if not isinstance(value, dict) or not classes or (len(classes) > 1 and "name" in value):
            yield path, value
            return
        for key, below in value.items():
            if isinstance(key, str):
                yield from self._replacements(split(key, path), below, place)
            else:
                self.problems.append(Problem(place, path, f"a key must be text, got {key!r}"))

    def _put(self, path: Path, value: Any, place: Place) -> None:
        node: dict[str, Any] = self.values
        for depth, key in enumerate(path[:-1], start=1):
            above = path[:depth]
            below = node.get(str(key))
            if below is None:
                node[str(key)] = below = {}
                self._forget(above)
                self._keys[above] = self._values[above] = place
            elif isinstance(below, str) and settings_at(above):
                node[str(key)] = below = {"name": below}
                self._keys[(*above, "name")] = self._values[(*above, "name")] = self._values[above]
            elif not isinstance(below, dict):
                whole = dotted(above)
                self.problems.append(
                    Problem(place, path, f"{whole} is {below!r:.60}, which has no keys; give {whole} whole")
                )
                return
            node = below
        node[str(path[-1])] = value
        self._forget(path)
        self._keys[path] = place
        self._record(path, value, place)

    def _record(self, path: Path, value: Any, place: Place) -> None:
        self._values[path] = place
        entries = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
        )
        for key, below in entries:
            self._keys[(*path, key)] = place
            self._record((*path, key), below, place)

    def _forget(self, path: Path) -> None:
        for places in (self._keys, self._values):
            for known in [known for known in places if known[: len(path)] == path]:
                del places[known]


def _plain(value: Any) -> Any:
    if isinstance(value, Settings):
        return explicit(value)
    if isinstance(value, Mapping):
        return dict(value)
    return os.fspath(value) if isinstance(value, os.PathLike) else value


def explicit(settings: Settings) -> dict[str, Any]:
    """What was set on purpose, with the name of every member, so that the rest still follows its own defaults."""
    values: dict[str, Any] = {}
    for attribute, info in type(settings).model_fields.items():
        key = info.alias or attribute
        if attribute in settings.model_fields_set or (attribute == "name" and info.default is not None):
            value = getattr(settings, attribute)
            values[key] = explicit(value) if isinstance(value, Settings) else value
    return values
