"""What a module holds beside its weights: containers, records, arrays and random streams, found and put back.

Nothing is copied but the containers themselves (never what they hold), small arrays and states of random generators.
"""

from __future__ import annotations

import operator
import random
import sys
from argparse import Namespace
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from functools import lru_cache
from types import MethodType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = ["REGISTRIES", "Holdings", "held_by", "is_record", "parts_of", "slots_of"]

REGISTRIES = frozenset(vars(nn.Module()))
"""The attributes of every module that are torch's own."""

MOST_ENTRIES = 10_000
"""Of a container with more, the entries are kept but not looked into: they are data, not state."""

LARGEST_ARRAY = 64 * 2**20
"""Bytes; a larger numpy array is data too, and its values are not put back."""

_PLAIN = frozenset({
    int, float, bool, str, bytes, complex, type(None), type, range, slice, torch.dtype, torch.device, torch.Size,
    torch.layout, torch.memory_format, type(lambda: None), type(len), type(sys),
})  # fmt: skip
_FOREIGN = frozenset(sys.stdlib_module_names - {"__main__"}) | {"torch", "numpy"}
_RECORDS = (SimpleNamespace, Namespace)
_DICTS = (dict, OrderedDict)


class Holdings:
    """Everything reachable from a module, as it was when this was made.

    Attributes:
        tensors: every tensor on the way, parameters and buffers too; their values are not kept here.
    """

    def __init__(self, root: nn.Module):
        self.tensors: list[Tensor] = []
        self._empty: list[Any] = []
        self._kept: list[tuple[Any, Any, Callable[[Any, Any], Any]]] = []
        for value in held_by(root):
            kind = type(value)
            if issubclass(kind, Tensor):
                self.tensors.append(value)
            elif kind in _DICTS and not value:  # most of what a module holds, and soon put back
                self._empty.append(value)
            else:
                self._keep(value, kind)

    def restore(self) -> None:
        """Put back, in place, what was added, removed or exchanged since; every object stays the one it was."""
        for value in self._empty:
            if value:
                value.clear()
        failed: list[Exception] = []
        for value, content, put in self._kept:
            try:
                put(value, content)
            except Exception as error:  # one that cannot be put back must not keep the others from it
                failed.append(error)
        if failed:
            raise failed[0]

    def _keep(self, value: Any, kind: type) -> None:
        if is_record(kind):
            if (attributes := _attributes_of(value)) is not None:
                self._kept.append((attributes, dict(attributes), _put_dict))
            for name in slots_of(kind):
                self._kept.append(((value, name), getattr(value, name, _MISSING), _put_slot))
        if (how := _how_to_keep(kind)) is not None:
            self._kept.append((value, how[0](value), how[1]))


def held_by(root: Any) -> Iterator[Any]:
    """Every object reachable from `root`, itself first, each once; parts of libraries and large data not looked into.

    Each comes before its parts are looked for.
    """
    seen: set[int] = set()
    waiting = [root]
    while waiting:
        value = waiting.pop()
        if type(value) not in _PLAIN and id(value) not in seen:
            seen.add(id(value))
            yield value
            waiting.extend(parts_of(value))


def parts_of(value: Any) -> list[Any]:
    """What an object holds directly, as far as it is the user's own: modules, records, containers; none of a tensor."""
    kind = type(value)  # not isinstance, which asks the object itself: it may stand for another that is gone
    if kind in _DICTS:
        return [*value.values()] if len(value) <= MOST_ENTRIES else []
    found: list[Any] = []
    if issubclass(kind, dict):
        found.extend(value.values() if len(value) <= MOST_ENTRIES else ())
    elif issubclass(kind, (list, tuple, set, frozenset, deque)):
        found.extend(value if len(value) <= MOST_ENTRIES else ())
    elif issubclass(kind, MethodType):
        found.append(value.__self__)
    if is_record(kind):
        found.extend((_attributes_of(value) or {}).values())
        found.extend(getattr(value, name, None) for name in slots_of(kind))
    return found


@lru_cache(maxsize=1024)
def is_record(kind: type) -> bool:
    """Whether objects of a class have attributes of the user's own making: they are modules, or of no library."""
    if issubclass(kind, (nn.Module, *_RECORDS)):
        return True
    return not issubclass(kind, (type, Tensor)) and kind.__module__.partition(".")[0] not in _FOREIGN


@lru_cache(maxsize=1024)
def slots_of(kind: type) -> tuple[str, ...]:
    """The attributes that a record's class lists in `__slots__`."""
    if not is_record(kind):
        return ()
    listed = [(one, vars(one).get("__slots__", ())) for one in kind.__mro__]
    owned = [(kind, name) for kind, one in listed for name in ([one] if isinstance(one, str) else one)]
    names = [_mangled(kind, name) for kind, name in owned]
    return tuple(name for name in names if name not in ("__dict__", "__weakref__"))


def _mangled(kind: type, name: str) -> str:
    """The name under which Python keeps a private attribute."""
    private = name.startswith("__") and not name.endswith("__")
    return f"_{kind.__name__.lstrip('_')}{name}" if private else name


def _attributes_of(value: Any) -> dict[str, Any] | None:
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return found if type(found) is dict else None


class _Missing:
    """Stands for a slot without a value."""


_MISSING = _Missing()


def _put_slot(place: tuple[Any, str], value: Any) -> None:
    owner, name = place
    now = getattr(owner, name, _MISSING)
    if now is value:
        return
    if value is _MISSING:
        object.__delattr__(owner, name)
    else:
        object.__setattr__(owner, name, value)


def _put_dict(value: dict[Any, Any], content: dict[Any, Any]) -> None:
    if _same(value, content) and _same(value.values(), content.values()):
        return
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # a class of the user's may count its writes
    kind.clear(value)
    for key, one in content.items():
        kind.__setitem__(value, key, one)


def _put_list(value: list[Any], content: list[Any]) -> None:
    if not _same(value, content):
        list.__setitem__(value, slice(None), content)


def _put_set(value: set[Any], content: set[Any]) -> None:
    if value != content or len(value) != len(content):
        set.clear(value)
        set.update(value, content)


def _put_deque(value: deque[Any], content: list[Any]) -> None:
    if not _same(value, content):
        deque.clear(value)
        deque.extend(value, content)


def _put_bytes(value: bytearray, content: bytes) -> None:
    if value != content:
        value[:] = content


def _put_array(value: np.ndarray, content: np.ndarray | None) -> None:
    if content is not None and (value.shape != content.shape or value.tobytes() != content.tobytes()):
        if value.shape != content.shape:
            value.resize(content.shape, refcheck=False)
        value[...] = content


def _same(now: Any, before: Any) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _put_numpy(value: Any, state: Any) -> None:
    value.bit_generator.state = state


_KEPT: tuple[tuple[Any, Callable[[Any], Any], Callable[[Any, Any], Any]], ...] = (
    (dict, dict, _put_dict),
    (list, list, _put_list),
    (set, set, _put_set),
    (deque, list, _put_deque),
    (bytearray, bytes, _put_bytes),
    (np.ndarray, lambda value: value.copy() if value.nbytes <= LARGEST_ARRAY else None, _put_array),
    (torch.Generator, torch.Generator.get_state, torch.Generator.set_state),
    (random.Random, lambda value: value.getstate(), lambda value, state: value.setstate(state)),
    (np.random.Generator, lambda value: value.bit_generator.state, _put_numpy),
    (np.random.RandomState, lambda value: value.get_state(), lambda value, state: value.set_state(state)),
)
"""What has a content of its own: its class, the content, and how it is put back."""


@lru_cache(maxsize=1024)
def _how_to_keep(kind: type) -> tuple[Callable[[Any], Any], Callable[[Any, Any], Any]] | None:
    return next(((content, put) for known, content, put in _KEPT if issubclass(kind, known)), None)
