"""Unification: what an operation says of its operands' dimensions, told as equations between expressions.

Two tensors that are added have the same width, so their expressions are unified: a free atom is bound to the other
expression, factors and segments are cut until they align. What cannot be aligned is pinned, which is always safe.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from growkit.graph.dimensions import Atom, Dim, Product, Reason, Sum, fixed, flag, free, leaves, pin, resolve, size

__all__ = ["factor", "regroup", "split", "unify"]


def unify(first: Dim, second: Dim, location: str | None = None) -> None:
    """Make two dimensions of equal size one and the same; pins both where their structure cannot be aligned."""
    first, second = resolve(first), resolve(second)
    if first is second:
        return
    if size(first) != size(second):
        _clash(first, second, f"meets a size it cannot follow ({size(first)} and {size(second)})", location)
    elif isinstance(first, Atom):
        _bind(first, second)
    elif isinstance(second, Atom):
        _bind(second, first)
    elif isinstance(first, Product) and isinstance(second, Product):
        _unify_products(first, second, location)
    elif isinstance(first, Sum) and isinstance(second, Sum):
        _unify_sums(first, second, location)
    elif isinstance(first, Sum):
        assert isinstance(second, Product)
        _unify_sum_with_product(first, second, location)
    else:
        assert isinstance(second, Sum)
        _unify_sum_with_product(second, first, location)


def split(dim: Dim, sizes: Sequence[int], location: str | None = None) -> list[Dim]:
    """Cut a dimension into consecutive segments of the given sizes (`chunk`, `split`, `narrow`).

    Equal segments of a product share one expression: cutting `(3 * heads * size)` in three gives `(heads * size)`
    three times.
    """
    dim = resolve(dim)
    assert size(dim) == sum(sizes), (dim, sizes)
    if len(sizes) == 1:
        return [dim]
    if _is_fixed(dim):
        return [fixed(width, leaves(dim)[0].pins[0]) for width in sizes]
    if isinstance(dim, Atom):
        parts = [free(width) for width in sizes]
        _bind(dim, Sum(parts))
        return parts
    if isinstance(dim, Sum):
        return _split_sum(dim, sizes, location)
    if len(set(sizes)) == 1:
        parts = factor(dim, [len(sizes), sizes[0]], location)
        if parts is not None:
            pin(parts[0], Reason("is a number of equal chunks", location))
            return [parts[1]] * len(sizes)
    reason = Reason("is cut into unequal pieces across its factors", location)
    pin(dim, reason)
    return [fixed(width, reason) for width in sizes]


def factor(dim: Dim, sizes: Sequence[int], location: str | None = None) -> list[Dim] | None:
    """Factor one dimension into factors of the given sizes, major first; None where the structure does not allow it."""
    return regroup([dim], sizes, location)


def regroup(dims: Sequence[Dim], sizes: Sequence[int], location: str | None = None) -> list[Dim] | None:
    """Re-factor consecutive dimensions into dimensions of other sizes with the same order of elements (`view`).

    Returns:
        One dimension for each entry of `sizes`, or None where a boundary falls inside a piece that cannot be cut.
    """
    parts = [part for dim in dims for part in _factors(dim)]
    found = _regrouped(parts, sizes, location)
    merged = _merged(parts) if found is None else parts
    return _regrouped(merged, sizes, location) if len(merged) < len(parts) else found


def _merged(parts: Sequence[Dim]) -> list[Dim]:
    """Neighbours that may not grow as one number, which can be cut anywhere: 8 windows of 7 rows are 28 pairs of 2."""
    result: list[Dim] = []
    for fast, run in itertools.groupby(parts, key=_is_fixed):
        run = list(run)
        if fast and len(run) > 1:
            run = [fixed(math.prod(map(size, run)), leaves(run[0])[0].pins[0])]
        result += run
    return result


def _is_fixed(dim: Dim) -> bool:
    atoms = leaves(dim)
    return bool(atoms) and all(atom.pins for atom in atoms)


def _regrouped(parts: Sequence[Dim], sizes: Sequence[int], location: str | None) -> list[Dim] | None:
    todo = [*parts]
    result: list[Dim] = []
    for wanted in sizes:
        taken, got = [], 1
        while got < wanted:
            if not todo:
                return None
            part = resolve(todo.pop(0))
            width = size(part)
            if wanted % (got * width) == 0:
                taken.append(part)
                got *= width
                continue
            major = wanted // got
            cut = _cut_factor(part, major, location) if wanted % got == 0 and width % major == 0 else None
            if cut is None:
                return None
            taken.append(cut[0])
            got *= major
            todo[:0] = _factors(cut[1])
        result.append(resolve(Product(taken)))
    return None if todo else result


def _factors(dim: Dim) -> tuple[Dim, ...]:
    dim = resolve(dim)
    return dim.factors if isinstance(dim, Product) else (dim,)


def _clash(first: Dim, second: Dim, text: str, location: str | None) -> None:
    pin(first, Reason(text, location))
    pin(second, Reason(text, location))


def _bind(atom: Atom, target: Dim) -> None:
    """Bind a free atom; what was said of it now holds for all it is made of."""
    if atom in leaves(target):  # only through segments of size 0
        pin(atom, Reason("would have to contain itself"))
        return
    atom.bound = target
    for reason in atom.pins:
        pin(target, reason)
    for reason in atom.flags:
        flag(target, reason)


def _unify_products(first: Product, second: Product, location: str | None) -> None:
    """Unify factor by factor from the minor end, cutting the larger factor where they differ."""
    if not first.factors or not second.factors:
        return
    left, right = first.factors[-1], second.factors[-1]
    if size(left) == size(right):
        unify(left, right, location)
        unify(Product(first.factors[:-1]), Product(second.factors[:-1]), location)
        return
    if size(left) < size(right):
        first, second, left, right = second, first, right, left
    minor = size(right)
    cut = None if size(left) % minor else factor(left, [size(left) // minor, minor], location)
    if cut is None:
        _clash(first, second, "is factored in two ways that do not align", location)
    else:
        unify(Product((*first.factors[:-1], *cut)), second, location)


def _unify_sums(first: Sum, second: Sum, location: str | None) -> None:
    """Cut both sums at every boundary of either, then unify segment by segment."""
    cuts, others = (set(itertools.accumulate(map(size, dim.segments))) for dim in (first, second))
    if cuts != others and set(leaves(first)) & set(leaves(second)):  # each cut would make another one, unit by unit
        _clash(first, second, "meets itself shifted by some units", location)
        return
    widths = [end - start for start, end in itertools.pairwise([0, *sorted(cuts | others)])]
    for left, right in zip(split(first, widths, location), split(second, widths, location), strict=True):
        unify(left, right, location)


def _unify_sum_with_product(total: Sum, product: Product, location: str | None) -> None:
    """`k` equal segments are the product `k * segment`; anything else clashes."""
    widths = {size(segment) for segment in total.segments}
    count = len(total.segments)
    parts = factor(product, [count, widths.pop()], location) if len(widths) == 1 else None
    if parts is None:
        _clash(total, product, "is a concatenation here and a product there", location)
        return
    pin(parts[0], Reason("is a number of equal chunks", location))
    for segment in total.segments:
        unify(segment, parts[1], location)


def _split_sum(dim: Sum, sizes: Sequence[int], location: str | None) -> list[Dim]:
    todo = list(dim.segments)
    result: list[Dim] = []
    for wanted in sizes:
        taken: list[Dim] = []
        while wanted:
            part = resolve(todo.pop(0))
            width = size(part)
            if width > wanted:
                part, rest = split(part, [wanted, width - wanted], location)
                width = wanted
                todo.insert(0, rest)
            taken.append(part)
            wanted -= width
        result.append(resolve(Sum(taken)))
    return result


def _cut_factor(dim: Dim, major: int, location: str | None) -> tuple[Dim, Dim] | None:
    """Cut one factor (an atom or a sum) into `major` times the rest."""
    minor = size(dim) // major
    if isinstance(dim, Atom):
        parts = free(major), free(minor)
        _bind(dim, Product(parts))
        return parts
    assert isinstance(dim, Sum)
    count = len(dim.segments)
    if len({size(segment) for segment in dim.segments}) != 1:
        return None
    if count % major == 0:  # whole segments stay together: 4 segments as 2 pairs
        together = count // major
        groups = [Sum(dim.segments[start : start + together]) for start in range(0, count, together)]
        for group in groups[1:]:
            unify(groups[0], group, location)
        return fixed(major, Reason("is a number of equal chunks", location)), resolve(groups[0])
    if major % count:
        return None
    for segment in dim.segments[1:]:
        unify(dim.segments[0], segment, location)
    inner = factor(dim.segments[0], [major // count, minor], location)
    if inner is None:
        return None
    return Product([fixed(count, Reason("is a number of equal chunks", location)), inner[0]]), inner[1]
