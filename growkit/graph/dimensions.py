"""Dimensions as expressions: every dimension of every tensor is an atom, a product or a sum.

An *atom* is one free size. A *product* of dimensions (major factor first) is a dimension whose index is a tuple:
channels and positions after `flatten`, heads and head size, groups and group width. A *sum* is a concatenation.

    pin:   the size may not change.
    flag:  the size may change, but not without changing the function.

`index_map` tells where every old index goes when atoms grow. New units stand at the end of their atom, so the map of a
compound dimension (a concatenation of flattened feature maps, say) falls out of the expression.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

__all__ = [
    "ONE",
    "Atom",
    "Dim",
    "Product",
    "Reason",
    "Sum",
    "copy_origins",
    "fixed",
    "flag",
    "free",
    "index_map",
    "leaves",
    "pin",
    "resolve",
    "same",
    "siblings",
    "size",
    "structure",
]


@dataclass(frozen=True)
class Reason:
    """Why a size may not change (pin) or not without changing the function (flag).

    Attributes:
        text: completes the sentence "this width ...", for instance "is the model's output".
        location: the user's "file:line" where it happens, if known.
        listed: False for sizes nobody would think of growing (kernel and spatial sizes, the batch).
    """

    text: str
    location: str | None = None
    listed: bool = True


class Atom:
    """One size that can change by itself; after a unification it may be bound to another expression."""

    __slots__ = ("bound", "flags", "pins", "size")

    def __init__(self, size: int):
        self.size = size
        self.bound: Dim | None = None
        self.pins: list[Reason] = []
        self.flags: list[Reason] = []

    def __repr__(self) -> str:
        return repr(self.bound) if self.bound is not None else f"{self.size}{'!' * bool(self.pins)}"


class Product:
    """A dimension whose index is a tuple of indices, major factor first; the empty product has size 1."""

    __slots__ = ("factors",)

    def __init__(self, factors: Iterable[Dim]):
        self.factors = tuple(factors)

    def __repr__(self) -> str:
        return f"({'*'.join(map(repr, self.factors)) or 1})"


class Sum:
    """A dimension made of consecutive segments."""

    __slots__ = ("segments",)

    def __init__(self, segments: Iterable[Dim]):
        self.segments = tuple(segments)

    def __repr__(self) -> str:
        return f"[{'+'.join(map(repr, self.segments))}]"


Dim = Atom | Product | Sum

ONE = Product(())
"""The dimension of size 1: it broadcasts, so it never grows."""


def free(width: int) -> Dim:
    """A new dimension of the given size that may grow (`ONE` for size 1)."""
    return ONE if width == 1 else Atom(width)


def fixed(width: int, reason: Reason) -> Dim:
    """A new dimension of the given size that may not grow."""
    dim = free(width)
    pin(dim, reason)
    return dim


def resolve(dim: Dim) -> Dim:
    """The dimension with all bindings followed and nested products (sums) flattened into one."""
    if isinstance(dim, Atom):
        if dim.bound is None:
            return dim
        dim.bound = resolve(dim.bound)
        return dim.bound
    if isinstance(dim, Product):
        factors = [resolve(factor) for factor in dim.factors]
        flat = [leaf for factor in factors for leaf in (factor.factors if isinstance(factor, Product) else (factor,))]
        return flat[0] if len(flat) == 1 else Product(flat)
    segments = [resolve(segment) for segment in dim.segments]
    flat = [leaf for segment in segments for leaf in (segment.segments if isinstance(segment, Sum) else (segment,))]
    return flat[0] if len(flat) == 1 else Sum(flat)


def same(first: Dim, second: Dim) -> bool:
    """Whether two dimensions are the same expression over the same atoms."""
    first, second = resolve(first), resolve(second)
    if isinstance(first, Product) and isinstance(second, Product):
        pairs = first.factors, second.factors
    elif isinstance(first, Sum) and isinstance(second, Sum):
        pairs = first.segments, second.segments
    else:
        return first is second
    return len(pairs[0]) == len(pairs[1]) and all(map(same, *pairs))


def structure(dim: Dim) -> Hashable:
    """The expression as a value: equal for equal expressions over the same atoms."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        return dim
    parts = dim.factors if isinstance(dim, Product) else dim.segments
    return (type(dim), *map(structure, parts))


def size(dim: Dim, sizes: Mapping[Atom, int] | None = None) -> int:
    """The size of a dimension; `sizes` gives atoms a hypothetical size."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        return dim.size if sizes is None else sizes.get(dim, dim.size)
    if isinstance(dim, Product):
        return math.prod(size(factor, sizes) for factor in dim.factors)
    return sum(size(segment, sizes) for segment in dim.segments)


def leaves(dim: Dim) -> list[Atom]:
    """The atoms of a dimension, left to right, each once."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        return [dim]
    parts = dim.factors if isinstance(dim, Product) else dim.segments
    return list(dict.fromkeys(leaf for part in parts for leaf in leaves(part)))


def pin(dim: Dim, reason: Reason) -> None:
    """Forbid every change of size."""
    for atom in leaves(dim):
        if reason not in atom.pins:
            atom.pins.append(reason)


def flag(dim: Dim, reason: Reason) -> None:
    """Note that a change of size would change the function."""
    for atom in leaves(dim):
        if reason not in atom.flags:
            atom.flags.append(reason)


def index_map(dim: Dim, sizes: Mapping[Atom, int]) -> np.ndarray:
    """The old index of every position after atoms took new sizes, -1 where the position is new; shape `[new size]`."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        new = sizes.get(dim, dim.size)
        indices = np.arange(new, dtype=np.int64)
        return np.where(indices < dim.size, indices, -1)
    if isinstance(dim, Sum):
        starts = itertools.accumulate((size(segment) for segment in dim.segments), initial=0)
        maps = [index_map(segment, sizes) for segment in dim.segments]
        return np.concatenate([np.where(old < 0, -1, old + start) for old, start in zip(maps, starts, strict=False)])
    result = np.zeros(1, dtype=np.int64)
    for part in dim.factors:
        minor = index_map(part, sizes)
        known = (result[:, None] >= 0) & (minor[None, :] >= 0)
        result = np.where(known, result[:, None] * size(part) + minor[None, :], -1).reshape(-1)
    return result


def copy_origins(dim: Dim, sizes: Mapping[Atom, int], copied: Atom) -> np.ndarray:
    """For every position under new sizes, the one it is a copy of: itself, but for new units of `copied`.

    Unit i of an atom of old size n copies unit i modulo n, in whatever compound dimension it stands.

    Returns:
        Indices of shape `[size under sizes]`, valid under `sizes`.
    """
    dim = resolve(dim)
    if isinstance(dim, Atom):
        indices = np.arange(size(dim, sizes), dtype=np.int64)
        return indices % dim.size if dim is copied else indices
    if isinstance(dim, Sum):
        starts = itertools.accumulate((size(segment, sizes) for segment in dim.segments), initial=0)
        maps = [copy_origins(segment, sizes, copied) for segment in dim.segments]
        return np.concatenate([one + start for one, start in zip(maps, starts, strict=False)])
    result = np.zeros(1, dtype=np.int64)
    for part in dim.factors:
        result = (result[:, None] * size(part, sizes) + copy_origins(part, sizes, copied)[None, :]).reshape(-1)
    return result


def siblings(dim: Dim, new: Mapping[Atom, int], old: Mapping[Atom, int]) -> np.ndarray:
    """For every position under the sizes `new`, a position under `old` that agrees in all coordinates both have.

    A coordinate beyond an atom's old size counts as 0. So a new unit of one head finds the first unit of that head:
    what is true of a part of a dimension (the rows that make keys) can be said of its new positions too.

    Returns:
        Indices of shape `[size under new]`, all of them valid under `old`.
    """
    dim = resolve(dim)
    if isinstance(dim, Atom):
        indices = np.arange(size(dim, new), dtype=np.int64)
        return np.where(indices < size(dim, old), indices, 0)
    if isinstance(dim, Sum):
        starts = itertools.accumulate((size(segment, old) for segment in dim.segments), initial=0)
        maps = [siblings(segment, new, old) for segment in dim.segments]
        return np.concatenate([one + start for one, start in zip(maps, starts, strict=False)])
    result = np.zeros(1, dtype=np.int64)
    for part in dim.factors:
        result = (result[:, None] * size(part, old) + siblings(part, new, old)[None, :]).reshape(-1)
    return result
