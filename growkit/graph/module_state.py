"""A module as a thing that is lent: what it holds is put back after its forward ran, and copies to try things on."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from types import ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from growkit.errors import ModelError
from growkit.graph.holdings import Holdings

__all__ = ["attributes_kept", "copy_of", "outside_inference_mode", "same_memory", "unwatched", "values_kept"]

_Module = TypeVar("_Module", bound=nn.Module)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[Holdings]:
    """Put back everything that a module and its parts hold, but not the values of tensors.

    That is attributes, torch's registries and hooks, the content of containers and records in them however deep, small
    numpy arrays, and the states of random generators. Every object stays the one it was.
    """
    holdings = Holdings(model)
    try:
        yield holdings
    finally:
        holdings.restore()


@contextmanager
def values_kept(tensors: Iterable[Tensor], at_once: Iterable[Tensor] = ()) -> Iterator[list[Tensor]]:
    """Put the values of tensors back after a block, whatever wrote to them, with their storage and `requires_grad`.

    A tensor is copied only at the moment before something writes to it, so that a forward which leaves its weights
    alone costs next to nothing; those in `at_once`, which most forwards write to, are copied at once.

    Yields:
        A list that afterwards holds the tensors that were written to behind the dispatcher's back, as compiled code may
        do; their values are lost.
    """
    guard = _Guard(tensors)
    for tensor in at_once:
        guard.before_write(tensor)
    try:
        with _watched_by(guard):
            yield guard.lost
    finally:
        guard.restore()


@contextmanager
def outside_inference_mode() -> Iterator[None]:
    """Run a block, or what this decorates, with autograd possible also where the caller is in inference mode."""
    if not torch.is_inference_mode_enabled():
        yield
        return
    with torch.inference_mode(False), torch.no_grad():
        yield


@contextmanager
def unwatched() -> Iterator[None]:
    """Suspend `values_kept` for a block that keeps values itself."""
    with _watched_by(None):
        yield


class _Guard:
    """Tensors whose storage is copied before the first write."""

    def __init__(self, tensors: Iterable[Tensor]):
        self._tensors = [(tensor, tensor.data, tensor.requires_grad, _version(tensor)) for tensor in tensors]
        self._storages = {
            storage._cdata: storage for tensor, *_ in self._tensors if (storage := _storage(tensor)) is not None
        }
        self._copies: dict[int, UntypedStorage] = {}
        self.lost: list[Tensor] = []

    def before_write(self, tensor: Tensor) -> None:
        storage = _storage(tensor)
        if storage is not None and storage._cdata in self._storages and storage._cdata not in self._copies:
            self._copies[storage._cdata] = storage.clone()

    def restore(self) -> None:
        for tensor, data, requires_grad, version in self._tensors:
            if not same_memory(tensor, data):
                tensor.data = data
            elif _version(tensor) != version and not self._copied(tensor):
                self.lost.append(tensor)
            if tensor.requires_grad != requires_grad and tensor.is_leaf:
                tensor.requires_grad_(requires_grad)
        for key, copied in self._copies.items():
            storage = self._storages[key]
            if storage.nbytes() != copied.nbytes():
                storage.resize_(copied.nbytes())
            storage.copy_(copied)

    def _copied(self, tensor: Tensor) -> bool:
        storage = _storage(tensor)
        return storage is None or storage._cdata in self._copies


class _Watch(TorchDispatchMode):
    """Tells guards of every operation that is about to write to a tensor."""

    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.guards: list[_Guard] = []

    @classmethod
    def ignore_compile_internals(cls) -> bool:
        return True

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        for position, name in _written(func):
            value = args[position] if position < len(args) else given.get(name)
            for tensor in value if isinstance(value, list | tuple) else (value,):
                if isinstance(tensor, Tensor):
                    for guard in self.guards:
                        guard.before_write(tensor)
        return func(*args, **given)


_BATCH_STATISTICS = ("running_mean", "running_var")
"""Arguments that batch norms write to although their schemas do not say so."""


@lru_cache(maxsize=4096)
def _written(func: Any) -> tuple[tuple[int, str], ...]:
    """Positions and names of the arguments that an operation writes to."""
    schema = getattr(func, "_schema", None)
    return tuple(
        (position, argument.name)
        for position, argument in enumerate(schema.arguments if schema is not None else ())
        if (argument.alias_info is not None and argument.alias_info.is_write) or argument.name in _BATCH_STATISTICS
    )


_watches: list[_Watch | None] = []
"""What is watched now, innermost last; None where watching is suspended."""


@contextmanager
def _watched_by(guard: _Guard | None) -> Iterator[None]:
    """One watch serves all guards of nested blocks: it costs a little at every operation."""
    present = _watches[-1] if _watches else None
    if guard is not None and present is not None:
        present.guards.append(guard)
        try:
            yield
        finally:
            present.guards.remove(guard)
    elif guard is not None:
        watch = _Watch()
        watch.guards.append(guard)
        _watches.append(watch)
        try:
            with watch:
                yield
        finally:
            _watches.pop()
    else:
        _watches.append(None)
        try:
            with _disable_current_modes() if present is not None else nullcontext():
                yield
        finally:
            _watches.pop()


def _storage(tensor: Tensor) -> UntypedStorage | None:
    """None where a tensor has no memory of its own: sparse ones, wrappers, those without values."""
    try:
        return None if tensor.is_meta else tensor.untyped_storage()
    except (NotImplementedError, RuntimeError):
        return None


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def same_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors are the same entries of the same memory."""
    if a.shape != b.shape or a.dtype != b.dtype or a.device != b.device or a.layout != b.layout:
        return False
    mine, other = _storage(a), _storage(b)
    if mine is None or other is None:
        return True
    return mine._cdata == other._cdata and (a.stride(), int(a.storage_offset())) == (
        b.stride(),
        int(b.storage_offset()),
    )


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
