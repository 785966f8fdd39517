"""Operations that pick entries: where the position of an entry matters the width is pinned, the others pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import bool as boolean
from torch import uint8
from torch.fx import Node

from growkit.graph.dimensions import ONE, Dim, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value, WeightView
from growkit.graph.rules.elementwise import column
from growkit.graph.rules.registry import rule
from growkit.graph.rules.shape import follow_items, follow_part, follow_weight, resized
from growkit.graph.unification import split

__all__ = ["along", "cut", "gather", "index", "picked", "select", "slice_"]

PICKED = "has single entries picked from it"

SHAPE_ONLY = frozenset({
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones",
    "new_full", "new_empty",
})  # fmt: skip
"""Operations that read no entries."""


@rule("slice", "narrow")
def slice_(ctx: Context, call: Call) -> Dims:
    """A contiguous piece along `dim`; a piece in steps pins it."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    axis = call["dim"] % len(dims)
    if shape[axis] == size(dims[axis]):
        ctx.literal(dims[axis], call.get("end", call.get("length")))
        follow_weight(ctx, call, dims)
        return dims
    follow_part(ctx, call, lambda view: view.positions)
    piece = cut(
        ctx, call, dims[axis], shape[axis], call["start"], call.get("end", call.get("length")), call.get("step", 1)
    )
    return (*dims[:axis], piece, *dims[axis + 1 :])


@rule("select", "unbind")
def select(ctx: Context, call: Call) -> Value:
    """Single entries along `dim`: their number is part of the code."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    ctx.pin(dims[axis], f"is taken apart by number ({call.name}: x[0], x[1], ...)")
    rest = (*dims[:axis], *dims[axis + 1 :])
    follow = follow_part if call.name == "select" else follow_items
    follow(ctx, call, lambda view: (*view.positions[:axis], *view.positions[axis + 1 :]))
    return rest if call.name == "select" else [rest] * size(dims[axis])


@rule(
    "index_select", "cumsum", "cumsum_", "cumprod", "cumprod_", "cummax", "cummin", "logcumsumexp", "sort", "argsort",
    "msort", "topk", "flip", "fliplr", "flipud", "roll", "rot90", "diff",
)  # fmt: skip
def along(ctx: Context, call: Call) -> Value:
    """The order of the entries matters along the named dimensions, which are pinned; the others pass."""
    dims, shape = ctx.dims(call.first), call.shape
    axes = {"msort": 0, "flipud": 0, "fliplr": 1}.get(call.name, call.get("dim", call.get("dims")))
    beside = call.get("prepend") or call.get("append")
    if shape is None or axes is None or axes == [] or len(shape) != len(dims) or beside:
        raise NoRule
    touched = {axis % len(dims) for axis in ([axes] if isinstance(axes, int) else axes)}
    indices = ctx.dims(call["index"]) if call.name == "index_select" else ()
    for dim in (*(dims[axis] for axis in touched), *indices):
        ctx.pin(dim, f"has its entries rearranged by {call.name}")
    result = resized(ctx, dims, shape, touched, f"is a result of {call.name}")
    if call.name == "index_select":
        follow_part(ctx, call, lambda view: tuple(None if i in touched else at for i, at in enumerate(view.positions)))
    return [result] * call.num_outputs if call.num_outputs > 1 else result


@rule("gather")
def gather(ctx: Context, call: Call) -> Dims:
    """Entries picked along `dim`, one index for each entry of the result."""
    dims, indices = ctx.dims(call.first), ctx.dims(call["index"])
    for i, (dim, other) in enumerate(zip(dims, indices, strict=True)):
        if i == call["dim"] % len(dims):
            ctx.pin(dim, PICKED)
        elif size(dim) == size(other):
            ctx.unify(dim, other)
        else:  # the first entries only
            ctx.pin(dim, PICKED)
            ctx.pin(other, PICKED)
    return indices


@rule("take_along_dim")
def take_along(ctx: Context, call: Call) -> Dims:
    """As `gather`, but tensor and indices are broadcast."""
    dims, indices, shape = ctx.dims(call.first), ctx.dims(call["indices"]), call.shape
    if shape is None or call["dim"] is None or len(dims) != len(indices):
        raise NoRule
    axis = call["dim"] % len(dims)
    ctx.pin(dims[axis], PICKED)
    rank = len(dims)
    return tuple(indices[i] if i == axis else column(ctx, [dims, indices], shape[i], i - rank) for i in range(rank))


@rule("index")
def index(ctx: Context, call: Call) -> Dims:
    """Entries picked by tensors of indices; the picked dimensions are pinned."""
    if call.shape is None:
        raise NoRule
    result = picked(ctx, ctx.dims(call.first), call["indices"], PICKED)
    axes = [i for i, entry in enumerate(call["indices"]) if entry is not None]

    def positions(view: WeightView) -> tuple[int | None, ...]:
        number = len(result) - len(view.positions) + len(axes)
        return tuple(_arranged(list(view.positions), axes, [None] * number))

    follow_part(ctx, call, positions)
    return result


@rule("bucketize", "searchsorted", "isin")
def place(ctx: Context, call: Call) -> Dims:
    """Where (or whether) each value stands in a table."""
    values, table = ("self", "boundaries") if call.name == "bucketize" else ("self", "sorted_sequence")
    if call.name == "isin":
        values, table = "elements", "test_elements"
    rows = ctx.dims(call[table])
    if len(rows) != 1 and call.name == "searchsorted":
        raise NoRule
    for dim in rows:
        ctx.pin(dim, f"is the table of {call.name}")
    return ctx.dims(call[values])


@rule("one_hot")
def one_hot(ctx: Context, call: Call) -> Dims:
    """Numbers of classes as vectors."""
    if call.shape is None:
        raise NoRule
    return (*ctx.dims(call.first), ctx.fixed(call.shape[-1], "is a number of classes"))


def cut(ctx: Context, call: Call, dim: Dim, taken: int, start: object, bound: object, step: int) -> Dim:
    """The piece `start : start + taken` of a dimension; `bound` is the other number that the code gives."""
    whole, start = size(dim), start or 0
    if taken == whole:
        return dim
    if step != 1 or taken <= 1 or not isinstance(start, int):
        if not all(Call(user).name in SHAPE_ONLY for user in call.node.users):
            ctx.pin(dim, PICKED)
        return ctx.fixed(taken, "is a number of picked entries")
    begin = max(start + whole, 0) if start < 0 else start
    widths = [begin, taken, whole - begin - taken]
    pieces = iter(split(dim, [width for width in widths if width], call.location))
    piece = [next(pieces) if width else ONE for width in widths][1]
    for number in (bound, start):
        ctx.literal(piece, abs(number) if isinstance(number, int) else None)
    return piece


def picked(ctx: Context, dims: Dims, indices: Sequence[Node | None], text: str) -> Dims:
    """The dimensions of `x[indices]`; what is indexed and the tensors of indices are pinned.

    Raises:
        NoRule: an index is a mask, whose result depends on the data in size.
    """
    axes = [i for i, entry in enumerate(indices) if entry is not None]
    nodes = [entry for entry in indices if entry is not None]
    if not axes or any(node.meta["val"].dtype in (boolean, uint8) for node in nodes):
        raise NoRule
    tables = [ctx.dims(node) for node in nodes]
    for dim in (*(dims[axis] for axis in axes), *(dim for table in tables for dim in table)):
        ctx.pin(dim, text)
    rank = max(len(table) for table in tables)
    widths = [max(size(table[i]) for table in tables if len(table) >= -i) for i in range(-rank, 0)]
    chosen = tuple(ctx.fixed(width, "is a number of picked entries") for width in widths)
    return tuple(_arranged(list(dims), axes, list(chosen)))


def _arranged(items: list[Any], axes: list[int], chosen: list[Any]) -> list[Any]:
    """What stands for the dimensions of `x[indices]`: `chosen` for those at `axes`, the other items as they are."""
    rest = [item for axis, item in enumerate(items) if axis not in axes]
    together = axes == list(range(axes[0], axes[-1] + 1))
    place = axes[0] if together else 0  # indices that do not stand together put their dimensions first
    return [*rest[:place], *chosen, *rest[place:]]
