"""What a model returns, in containers that torch knows: libraries and users have classes of their own for it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

__all__ = ["output_tensors", "plain_outputs"]


def output_tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, in order, whatever the classes that hold them."""
    return [leaf for leaf in pytree.tree_leaves(_plain(output)) if isinstance(leaf, Tensor)]


@contextmanager
def plain_outputs(model: nn.Module) -> Iterator[None]:
    """Let `model` return tuples of tensors in place of objects that torch does not know as containers.

    A hook does it, the last of the root module, so that names of modules stay as they are.
    """
    hook = model.register_forward_hook(lambda module, args, output: _plain(output))
    try:
        yield
    finally:
        hook.remove()


def _plain(output: Any) -> Any:
    return pytree.tree_map(lambda leaf: tuple(_tensors(leaf, set())) or leaf if _is_object(leaf) else leaf, output)


def _is_object(leaf: Any) -> bool:
    return not isinstance(leaf, Tensor | nn.Module | ModuleType | type)


def _tensors(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif _is_object(value) and id(value) not in seen:
        seen.add(id(value))
        for part in _parts(value):
            yield from _tensors(part, seen)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, Mapping):
        return value.values()
    if isinstance(value, list | tuple):
        return value
    if is_dataclass(value):
        return [getattr(value, one.name, None) for one in fields(value)]
    return getattr(value, "__dict__", {}).values()
