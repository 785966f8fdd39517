"""Operations that put tensors side by side, or one tensor several times: sums, and products with a number of copies."""

from __future__ import annotations

from collections.abc import Sequence

from torch.fx import Node

from growkit.graph.dimensions import ONE, Atom, Dim, Product, Sum, free, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule
from growkit.graph.rules.elementwise import aligned
from growkit.graph.rules.registry import rule
from growkit.graph.rules.shape import follow_weight

__all__ = ["broadcast", "cat", "expand", "expand_as", "meshgrid", "repeat", "repeat_interleave", "stack", "stack_flat"]

COPIES = "is a number of copies"


@rule("cat", "concat", "concatenate")
def cat(ctx: Context, call: Call) -> Dims:
    """Segments along `dim`; all other dimensions are one and the same."""
    if call.shape is None:
        raise NoRule
    parts = [ctx.dims(node) for node in call.first]  # type: ignore[attr-defined]
    parts = [part for part in parts if len(part) == len(call.shape)]
    return _cat(ctx, parts, call.get("dim", 0) % len(call.shape))


@rule("stack")
def stack(ctx: Context, call: Call) -> Dims:
    """Equal tensors along a new dimension."""
    parts = [ctx.dims(node) for node in call["tensors"]]
    for part in parts[1:]:
        for one, other in zip(parts[0], part, strict=True):
            ctx.unify(one, other)
    axis = call["dim"] % (len(parts[0]) + 1)
    return (*parts[0][:axis], ctx.fixed(len(parts), "is a number of stacked tensors"), *parts[0][axis:])


@rule("hstack", "vstack", "row_stack", "dstack", "column_stack")
def stack_flat(ctx: Context, call: Call) -> Dims:
    """Concatenations that first give tensors of a low rank the dimensions they lack."""
    parts = [ctx.dims(node) for node in call["tensors"]]
    if call.name == "hstack":
        return _cat(ctx, [part or (ONE,) for part in parts], 0 if len(parts[0]) < 2 else 1)
    if call.name == "column_stack":
        return _cat(ctx, [part if len(part) > 1 else (*(part or (ONE,)), ONE) for part in parts], 1)
    parts = [part if len(part) > 1 else (ONE, *(part or (ONE,))) for part in parts]
    if call.name == "dstack":
        return _cat(ctx, [part if len(part) > 2 else (*part, ONE) for part in parts], 2)
    return _cat(ctx, parts, 0)


@rule("expand", "broadcast_to")
def expand(ctx: Context, call: Call) -> Dims:
    """Dimensions of size 1 are repeated: any number of copies will do."""
    if call.shape is None:
        raise NoRule
    dims = ctx.dims(call.first)
    padded = (ONE,) * (len(call.shape) - len(dims)) + dims
    result = tuple(dim if size(dim) == width else free(width) for dim, width in zip(padded, call.shape, strict=True))
    for old, dim, width in zip(padded, result, call["size"], strict=True):
        if dim is not old:
            ctx.literal(dim, width)
    follow_weight(ctx, call, result)
    return result


@rule("expand_as")
def expand_as(ctx: Context, call: Call) -> Dims:
    """Dimensions of size 1 become those of another tensor, the others are the same."""
    dims, other = ctx.dims(call.first), ctx.dims(call["other"])
    result = aligned(ctx, [other, dims], tuple(size(dim) for dim in other))
    follow_weight(ctx, call, result)
    return result


@rule("broadcast_tensors")
def broadcast(ctx: Context, call: Call) -> list[Dims]:
    """All tensors in the shape of their broadcast."""
    if call.shape is None:
        raise NoRule
    nodes: Sequence[Node] = call["tensors"]
    result = aligned(ctx, [ctx.dims(node) for node in nodes], call.shape)
    return [result] * len(nodes)


@rule("meshgrid")
def meshgrid(ctx: Context, call: Call) -> list[Dims]:
    """Vectors `[N]`, `[M]`, ... as tensors `[N, M, ...]`, the first two swapped for `indexing="xy"`."""
    vectors = [ctx.dims(node) for node in call["tensors"]]
    grid = [vector[0] if vector else ONE for vector in vectors]
    if call.get("indexing") == "xy":
        grid[:2] = grid[1::-1]
    return [tuple(grid)] * len(vectors)


@rule("repeat", "tile")
def repeat(ctx: Context, call: Call) -> Dims:
    """Copies one after the other: a product of their number and the dimension."""
    if call.shape is None:
        raise NoRule
    dims, counts = ctx.dims(call.first), call.get("repeats", call.get("dims"))
    rank = len(call.shape)
    counts = [1] * (rank - len(counts)) + list(counts)
    padded = (ONE,) * (rank - len(dims)) + dims
    result = tuple(_copies(ctx, dim, count) for dim, count in zip(padded, counts, strict=True))
    follow_weight(ctx, call, result)
    return result


@rule("repeat_interleave.self_int")
def repeat_interleave(ctx: Context, call: Call) -> Dims:
    """Every entry several times: a product of the dimension and the number of copies."""
    dims, axis = ctx.dims(call.first), call["dim"]
    if axis is None and len(dims) != 1:
        raise NoRule
    axis = (axis or 0) % len(dims)
    count = call["repeats"]
    alone = size(dims[axis]) == 1
    copies = _copies(ctx, ONE, count) if alone else Product((dims[axis], ctx.fixed(count, COPIES)))
    return (*dims[:axis], copies, *dims[axis + 1 :])


def _copies(ctx: Context, dim: Dim, count: int) -> Dim:
    if size(dim) != 1:
        return dim if count == 1 else Product((ctx.fixed(count, COPIES), dim))
    copies = free(count)
    ctx.literal(copies, count)
    return copies


def _cat(ctx: Context, parts: Sequence[Dims], axis: int) -> Dims:
    for part in parts[1:]:
        for i in range(len(parts[0])):
            if i != axis:
                ctx.unify(parts[0][i], part[i])
    segments = [part[axis] if size(part[axis]) != 1 else _single(ctx) for part in parts if size(part[axis])]
    return (*parts[0][:axis], Sum(segments), *parts[0][axis + 1 :])


def _single(ctx: Context) -> Dim:
    """A segment of one entry, which takes part in a sum but never grows."""
    atom = Atom(1)
    ctx.pin(atom, "is a segment of size 1")
    return atom
