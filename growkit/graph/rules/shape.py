"""Operations on shapes: views re-factor dimensions, permutations reorder them, concatenations add, splits cut."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from growkit.graph.dimensions import ONE, Atom, Dim, Product, Sum, free, same, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value, WeightView
from growkit.graph.rules.registry import rule
from growkit.graph.unification import factor, regroup, split, unify

__all__ = ["cat", "expand", "follow_weight", "permute", "resized", "split_", "view"]


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_",
    "view_copy", "view_as", "reshape_as", "ravel",
)  # fmt: skip
def view(ctx: Context, call: Call) -> Dims:
    """The same elements in the same order under other dimensions; sizes written as numbers are recorded."""
    dims = ctx.dims(call.first)
    if call.shape is None:
        raise NoRule
    groups = regroup(
        [dim for dim in dims if size(dim) != 1], [width for width in call.shape if width != 1], call.location
    )
    if groups is None:
        for dim in dims:
            ctx.pin(dim, "is reshaped across its boundaries")
        return tuple(ctx.fixed(width, "is reshaped across its boundaries") for width in call.shape)
    remaining = iter(groups)
    result = tuple(ONE if width == 1 else next(remaining) for width in call.shape)
    _record_sizes(ctx, call, result)
    follow_weight(ctx, call, result)
    return result


@rule(
    "permute",
    "transpose",
    "transpose_",
    "swapaxes",
    "swapdims",
    "t",
    "numpy_T",
    "mT",
    "adjoint",
    "movedim.int",
    "moveaxis.int",
)
def permute(ctx: Context, call: Call) -> Dims:
    """Another order of the dimensions."""
    dims = ctx.dims(call.first)
    order = _order(call, len(dims))
    weight = ctx.weight(call.first)
    if weight is not None:
        ctx.weights[call.node] = WeightView(weight.tensor, tuple(weight.positions[i] for i in order))
    return tuple(dims[i] for i in order)


@rule("expand", "expand_as", "broadcast_to", "repeat", "tile")
def expand(ctx: Context, call: Call) -> Dims:
    """Dimensions of size 1 are repeated any number of times; others only once."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    padded = (ONE,) * (len(shape) - len(dims)) + dims
    for dim, width in zip(padded, shape, strict=True):
        if size(dim) != width:
            ctx.pin(dim, "is repeated")
    touched = {i for i, dim in enumerate(padded) if size(dim) != shape[i]}
    result = resized(ctx, padded, shape, touched, "is a number of copies")
    follow_weight(ctx, call, result)
    return result


@rule("cat", "concat", "concatenate")
def cat(ctx: Context, call: Call) -> Dims:
    """Segments along `dim`; all other dimensions are one and the same."""
    if call.shape is None:
        raise NoRule
    parts = [ctx.dims(node) for node in call.first]  # type: ignore[attr-defined]
    parts = [part for part in parts if len(part) == len(call.shape)]
    axis = call.get("dim", 0) % len(call.shape)
    for part in parts[1:]:
        for i in range(len(call.shape)):
            if i != axis:
                ctx.unify(parts[0][i], part[i])
    segments = [part[axis] if size(part[axis]) != 1 else _single(ctx) for part in parts]
    return (*parts[0][:axis], Sum(segments), *parts[0][axis + 1 :])


@rule("stack")
def stack(ctx: Context, call: Call) -> Dims:
    """Equal tensors along a new dimension."""
    parts = [ctx.dims(node) for node in call["tensors"]]
    for part in parts[1:]:
        for one, other in zip(parts[0], part, strict=True):
            ctx.unify(one, other)
    axis = call["dim"] % (len(parts[0]) + 1)
    return (*parts[0][:axis], ctx.fixed(len(parts), "is a number of stacked tensors"), *parts[0][axis:])


@rule("split", "split_with_sizes", "chunk", "tensor_split", "unsafe_split", "unsafe_chunk", "split_with_sizes_copy")
def split_(ctx: Context, call: Call) -> list[Value]:
    """Segments along `dim`, with the sizes that the trace found."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    widths = [int(part.shape[axis]) for part in call.node.meta["val"]]
    pieces = split(dims[axis], widths, call.location)
    given = call.get("split_size", call.get("split_sizes"))
    for i, (piece, width) in enumerate(zip(pieces, widths, strict=True)):
        if given is not None:
            ctx.literal(piece, given[i] if isinstance(given, Sequence) else width)
    return [(*dims[:axis], piece, *dims[axis + 1 :]) for piece in pieces]


@rule("alias")
def alias(ctx: Context, call: Call) -> Dims:
    """Export writes a slice `x[:, :k]` that keeps everything as an alias: the number `k` may stand in the code."""
    dims = ctx.dims(call.first)
    for dim in dims[1:]:
        ctx.literal(dim, size(dim))
    follow_weight(ctx, call, dims)
    return dims


@rule("zeros", "ones", "full", "empty", "new_zeros", "new_ones", "new_full", "new_empty")
def constant(ctx: Context, call: Call) -> Dims:
    """A constant tensor takes the sizes of what it meets, if its own sizes in the code can follow."""
    if call.shape is None:
        raise NoRule
    result = tuple(free(width) for width in call.shape)
    for dim, width in zip(result, call["size"], strict=True):
        ctx.literal(dim, width)
    return result


@rule("pixel_shuffle")
def pixel_shuffle(ctx: Context, call: Call) -> Dims:
    """Channels `C * r * r` become `C` channels on `r` times as many rows and columns."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    channels = free(shape[-3])
    steps = [ctx.fixed(call["upscale_factor"], "is a step of pixel_shuffle") for _ in range(2)]
    ctx.unify(dims[-3], Product((channels, *steps)))
    return (*dims[:-3], channels, *ctx.spatial(dims[-2:], shape[-2:]))


@rule("pixel_unshuffle")
def pixel_unshuffle(ctx: Context, call: Call) -> Dims:
    """`C` channels become `C * r * r` on fewer rows and columns."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    steps = [ctx.fixed(call["downscale_factor"], "is a step of pixel_unshuffle") for _ in range(2)]
    return (*dims[:-3], Product((dims[-3], *steps)), *ctx.spatial(dims[-2:], shape[-2:]))


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(ctx: Context, call: Call) -> Dims:
    """Channels `G * C` become `C * G`."""
    dims, groups = ctx.dims(call.first), call["groups"]
    parts = factor(dims[1], [groups, size(dims[1]) // groups], call.location)
    if parts is None:
        raise NoRule
    ctx.literal(parts[0], groups)
    return (dims[0], Product((parts[1], parts[0])), *dims[2:])


@rule("glu")
def glu(ctx: Context, call: Call) -> Dims:
    """One half gates the other."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    half = size(dims[axis]) // 2
    value, gate = split(dims[axis], [half, half], call.location)
    unify(value, gate, call.location)
    return (*dims[:axis], value, *dims[axis + 1 :])


def _order(call: Call, rank: int) -> list[int]:
    """The old position of every new dimension."""
    if call.name == "permute":
        return [axis % rank for axis in call["dims"]]
    order = list(range(rank))
    if call.name in ("t", "numpy_T"):
        return order[::-1]
    if call.name in ("mT", "adjoint"):
        return [*order[:-2], rank - 1, rank - 2]
    first, second = (call.at(position) % rank for position in (1, 2))
    if call.name.startswith("move"):
        order.insert(second, order.pop(first))
    else:
        order[first], order[second] = order[second], order[first]
    return order


def _record_sizes(ctx: Context, call: Call, result: Dims) -> None:
    """Record the sizes that the call names (a view's `-1` is no number)."""
    sizes = call.get("size", call.get("shape", call.get("sizes")))
    if not isinstance(sizes, Sequence):
        return
    offset = call["dim"] % len(ctx.dims(call.first)) if call.name == "unflatten" else 0
    for dim, width in zip(result[offset:], sizes, strict=False):
        ctx.literal(dim, width)


def follow_weight(ctx: Context, call: Call, result: Dims) -> None:
    """A weight seen through a view is still that weight along the dimensions that are kept whole."""
    weight = ctx.weight(call.first)
    if weight is None:
        return
    before = ctx.dims(call.first)

    def position(axis: int, dim: Dim) -> int | None:
        if len(before) == len(result) and size(before[axis]) == size(dim) and same(before[axis], dim):
            return weight.positions[axis]
        matches = [i for i, old in enumerate(before) if size(dim) != 1 and same(old, dim)]
        return weight.positions[matches[0]] if len(matches) == 1 else None

    ctx.weights[call.node] = WeightView(weight.tensor, tuple(position(axis, dim) for axis, dim in enumerate(result)))


def resized(ctx: Context, dims: Dims, shape: Sequence[int], touched: set[int], text: str) -> Dims:
    """The dimensions with new fixed ones at the touched positions."""
    return tuple(ctx.fixed(shape[i], text) if i in touched else dim for i, dim in enumerate(dims))


def _single(ctx: Context) -> Any:
    """A segment of one entry, which takes part in a sum but never grows."""
    atom = Atom(1)
    ctx.pin(atom, "is a segment of size 1")
    return atom
