"""A module as a thing that is lent: plain attributes put back after its forward ran, and copies to try things on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any, TypeVar

from torch import Tensor, nn

from growkit.errors import ModelError

__all__ = ["attributes_kept", "copy_of"]

_REGISTRIES = frozenset(vars(nn.Module()))
_Module = TypeVar("_Module", bound=nn.Module)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put every attribute outside torch's own registries back, and the content of those that are containers."""
    modules = list(model.modules())
    saved = [_attributes(module) for module in modules]
    try:
        yield
    finally:
        for module, attributes in zip(modules, saved, strict=True):
            _restore(module, attributes)


def _attributes(module: nn.Module) -> dict[str, tuple[Any, Any]]:
    """Each attribute, with a shallow copy if it is a container (a cache, perhaps)."""
    own = {name: value for name, value in vars(module).items() if name not in _REGISTRIES}
    return {name: (value, value.copy() if type(value) in (dict, list, set) else None) for name, value in own.items()}


def _restore(module: nn.Module, saved: dict[str, tuple[Any, Any]]) -> None:
    for name in [name for name in vars(module) if name not in _REGISTRIES and name not in saved]:
        del module.__dict__[name]
    for name, (value, content) in saved.items():
        if isinstance(value, list) and content is not None:
            value[:] = content
        elif isinstance(value, (dict, set)) and content is not None:
            value.clear()
            value.update(content)
        if module.__dict__.get(name) is not value:
            module.__dict__[name] = value


def copy_of(model: _Module) -> _Module:
    """A deep copy to try things on, also where a plain attribute cannot be copied.

    Such an attribute (a lock, a generator, an open file) is shared with the model; a tensor with history is copied
    without it. Modules and parameters are never shared.

    Raises:
        ModelError: a module cannot be copied for another reason.
    """
    try:
        return copy.deepcopy(model)
    except Exception:  # a user's module may hold anything
        memo: dict[int, Any] = {}
        _spare(model, memo, set())
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        raise ModelError(
            f"a model must allow a deep copy, on which growth is tried out, got {type(error).__name__}: {error}; "
            "give the module a __deepcopy__ that works"
        ) from error


def _spare(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    """Enter in a memo of deepcopy what is to stand for the parts of `value` that cannot be copied."""
    if id(value) in seen or _copies(value, memo):
        return
    seen.add(id(value))
    parts = list(_parts(value))
    for part in parts:
        _spare(part, memo, seen)
    if isinstance(value, nn.Module | nn.Parameter) or _copies(value, memo):
        return
    if all(_copies(part, memo) for part in parts):  # else another part, further up, is what cannot be copied
        memo[id(value)] = value.detach().clone() if isinstance(value, Tensor) else value


def _copies(value: Any, memo: dict[int, Any]) -> bool:
    try:
        copy.deepcopy(value, dict(memo))
    except Exception:
        return False
    return True


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    if isinstance(value, list | tuple | set | frozenset):
        return value
    return () if isinstance(value, ModuleType | Tensor) else getattr(value, "__dict__", {}).values()
