"""Users' callables by name: `package.module:callable`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from typing import Any

from growkit.errors import UserInputError

__all__ = ["call", "named"]


def call(kind: str, name: str, arguments: Mapping[str, Any], error: type[UserInputError]) -> Any:
    """Import `package.module:callable` and call it.

    Args:
        kind: what it makes, for messages: "model" or "data".
        name: of the callable.
        arguments: by keyword.
        error: raised where it cannot be imported or called.
    """
    make = named(kind, name, error)
    if not callable(make):
        raise error(f"{kind} {name!r} must be callable, got {type(make).__name__}")
    try:
        return make(**arguments)
    except (Exception, SystemExit) as raised:  # the user's code may raise anything
        raise error(f"{kind} {name!r} failed: {type(raised).__name__}: {raised}") from raised


def named(kind: str, name: str, error: type[UserInputError]) -> Any:
    """What `package.module:object` names; arguments as for `call`."""
    module_name, _, path = name.partition(":")
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as raised:  # importing runs the user's code, which may raise anything
        file = module_name.endswith(".py") and isinstance(raised, ModuleNotFoundError)
        asked = f"is its folder on PYTHONPATH?{_nearest_module(module_name, raised)}"
        hint = f"did you mean {module_name[:-3]}:{path}?" if file else asked
        raise error(
            f"{kind} {name!r}: importing {module_name!r} failed: {type(raised).__name__}: {raised}; {hint}"
        ) from raised
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise error(f"{kind} {name!r}: {module_name!r} has no {attribute!r}{_nearest(attribute, dir(found), '; ')}")
        found = getattr(found, attribute)
    return found


def _nearest_module(name: str, raised: BaseException) -> str:
    """The module beside the missing one whose name is nearest; nothing where another module is missing."""
    missing = getattr(raised, "name", None)
    if not isinstance(raised, ModuleNotFoundError) or not missing or not f"{name}.".startswith(f"{missing}."):
        return ""
    package, _, word = missing.rpartition(".")
    path = getattr(importlib.import_module(package), "__path__", []) if package else None
    return _nearest(word, (module.name for module in pkgutil.iter_modules(path)), " Or ")


def _nearest(word: str, known: Iterable[str], lead: str) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"{lead}did you mean {near[0]!r}?" if near else ""
