"""Objects that hold numbers for modules, such as a configuration: a model that grows gets its own.

The same object may serve another model, or build the seed again; neither may see what became of this one.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn

from growkit.errors import GrowthRefused
from growkit.graph.attribute_path import like_tuple
from growkit.graph.holdings import REGISTRIES, held_by, parts_of, slots_of

__all__ = ["Rebinding", "own_copies"]

Rebinding = tuple[dict[str, Any], str, Any, Any]
"""The attributes of a module, the name of one, what it is and what it shall be."""


def own_copies(model: nn.Module, holders: Sequence[Any]) -> list[Rebinding]:
    """What to bind in the modules of `model` for all that they reach of `holders` to be copies of the model's own.

    Modules and tensors are not copied; what leads to a holder is (a record in a list).

    Raises:
        GrowthRefused: an object on the way does not allow a shallow copy.
    """
    if not holders:
        return []
    everything = list(held_by(model))
    leading = _leading_to(holders, everything)
    copies: dict[int, Any] = {}
    return [
        (vars(module), name, value, new)
        for module in everything
        if isinstance(module, nn.Module)
        for name, value in vars(module).items()
        if id(value) in leading and (new := _copied(value, leading, copies)) is not value
    ]


def _leading_to(holders: Sequence[Any], everything: Sequence[Any]) -> set[int]:
    """The objects, by id, from which a holder is reached without passing a module; the holders too."""
    parents: dict[int, list[int]] = {}
    for value in everything:
        if not isinstance(value, nn.Module | Tensor):
            for part in parts_of(value):
                parents.setdefault(id(part), []).append(id(value))
    registries = {id(held) for one in everything if isinstance(one, nn.Module) for held in _registries(one)}
    found: set[int] = set()
    waiting = [id(holder) for holder in holders if not isinstance(holder, nn.Module)]
    while waiting:
        one = waiting.pop()
        if one not in found and one not in registries:
            found.add(one)
            waiting += parents.get(one, ())
    return found


def _registries(module: nn.Module) -> list[Any]:
    return [value for name, value in vars(module).items() if name in REGISTRIES]


def _copied(value: Any, leading: set[int], copies: dict[int, Any]) -> Any:
    if id(value) not in leading:
        return value
    if id(value) in copies:
        return copies[id(value)]

    def inside(one: Any) -> Any:
        return _copied(one, leading, copies)

    if isinstance(value, tuple):
        entries = [inside(one) for one in value]
        copies[id(value)] = like_tuple(value, entries)
        return copies[id(value)]
    if isinstance(value, MethodType):
        return MethodType(value.__func__, inside(value.__self__))
    try:
        new = copies[id(value)] = copy.copy(value)
    except Exception as error:  # a class of the user's may forbid it in any way
        raise GrowthRefused(
            f"a {type(value).__name__} that holds a size must allow copy.copy, for another model may share it, got "
            f"{type(error).__name__}: {error}; keep the size in the module, or give the class a __copy__ that works"
        ) from error
    if isinstance(new, dict):
        for key in [key for key, one in new.items() if id(one) in leading]:
            dict.__setitem__(new, key, inside(new[key]))
    elif isinstance(new, list | deque):
        for place in [place for place, one in enumerate(new) if id(one) in leading]:
            new[place] = inside(new[place])
    attributes = getattr(new, "__dict__", {})
    for name in [name for name, one in attributes.items() if id(one) in leading]:
        attributes[name] = inside(attributes[name])
    for name in slots_of(type(new)):
        if id(getattr(new, name, None)) in leading:
            object.__setattr__(new, name, inside(getattr(new, name)))
    return new
