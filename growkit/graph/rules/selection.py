"""Operations that pick entries: where the position of an entry matters the width is pinned, the others pass."""

from __future__ import annotations

from growkit.graph.dimensions import ONE, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import rule
from growkit.graph.rules.shape import follow_weight, resized
from growkit.graph.unification import split

__all__ = ["along", "gather", "index", "pad", "select", "slice_"]


@rule("slice")
def slice_(ctx: Context, call: Call) -> Dims:
    """A contiguous piece along `dim`; a piece in steps pins it."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    axis = call["dim"] % len(dims)
    whole, taken = size(dims[axis]), shape[axis]
    if taken == whole:
        ctx.literal(dims[axis], call["end"])
        follow_weight(ctx, call, dims)
        return dims
    start = call["start"] or 0
    if call["step"] != 1 or taken <= 1 or not isinstance(start, int):
        ctx.pin(dims[axis], "has single entries picked from it")
        return (*dims[:axis], ctx.fixed(taken, "is a number of picked entries"), *dims[axis + 1 :])
    start = start % whole if start < 0 else start
    widths = [start, taken, whole - start - taken]
    pieces = iter(split(dims[axis], [width for width in widths if width], call.location))
    piece = [next(pieces) if width else ONE for width in widths][1]
    for bound in (call["end"], call["start"]):
        ctx.literal(piece, abs(bound) if isinstance(bound, int) else None)
    return (*dims[:axis], piece, *dims[axis + 1 :])


@rule("select", "unbind")
def select(ctx: Context, call: Call) -> Value:
    """Single entries along `dim`: their number is part of the code."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    ctx.pin(dims[axis], f"has single entries taken by {call.name}")
    rest = (*dims[:axis], *dims[axis + 1 :])
    return rest if call.name == "select" else [rest] * size(dims[axis])


@rule("index_select", "cumsum", "cumprod", "sort", "topk", "flip", "roll", "repeat_interleave.self_int", "diff")
def along(ctx: Context, call: Call) -> Value:
    """The order of the entries matters along the named dimensions, which are pinned; the others pass."""
    dims, shape = ctx.dims(call.first), call.shape
    axes = call.get("dim", call.get("dims"))
    if shape is None or axes is None or axes == [] or len(shape) != len(dims):
        raise NoRule
    touched = {axis % len(dims) for axis in ([axes] if isinstance(axes, int) else axes)}
    indices = ctx.dims(call["index"]) if call.name == "index_select" else ()
    for dim in (*(dims[axis] for axis in touched), *indices):
        ctx.pin(dim, f"has its entries rearranged by {call.name}")
    result = resized(ctx, dims, shape, touched, f"is a result of {call.name}")
    return [result] * call.num_outputs if call.num_outputs > 1 else result


@rule("gather")
def gather(ctx: Context, call: Call) -> Dims:
    """Entries picked along `dim`, one index for each entry of the result."""
    dims, indices = ctx.dims(call.first), ctx.dims(call["index"])
    for i, (dim, other) in enumerate(zip(dims, indices, strict=True)):
        if i == call["dim"] % len(dims) or size(dim) != size(other):
            ctx.pin(dim, "has single entries picked from it")
        else:
            ctx.unify(dim, other)
    return indices


@rule("constant_pad_nd", "pad")
def pad(ctx: Context, call: Call) -> Dims:
    """Padded dimensions are positions; a padded width is refused."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    touched = {i for i, dim in enumerate(dims) if size(dim) != shape[i]}
    for axis in touched:
        ctx.pin(dims[axis], "is padded")
    return resized(ctx, dims, shape, touched, "is padded")


@rule("index")
def index(ctx: Context, call: Call) -> Dims:
    """Entries picked by one tensor of indices; the picked dimension is pinned."""
    dims, shape = ctx.dims(call.first), call.shape
    picked = [i for i, entry in enumerate(call["indices"]) if entry is not None]
    if shape is None or len(picked) != 1:
        raise NoRule
    axis = picked[0]
    for dim in (dims[axis], *ctx.dims(call["indices"][axis])):
        ctx.pin(dim, "has single entries picked from it")
    rank = len(shape) - len(dims) + 1
    chosen = tuple(ctx.fixed(width, "is a number of picked entries") for width in shape[axis : axis + rank])
    return (*dims[:axis], *chosen, *dims[axis + 1 :])
