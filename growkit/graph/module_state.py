"""What a module keeps in plain attributes, put back after its forward ran: caches, counters, last outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["attributes_kept"]

_REGISTRIES = frozenset(vars(nn.Module()))


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
