"""Operations on shapes: views re-factor dimensions, permutations reorder them, splits cut."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch.fx import Node

from growkit.graph.dimensions import ONE, Dim, Product, Sum, free, same, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value, WeightView
from growkit.graph.rules.registry import rule
from growkit.graph.unification import factor, regroup, split, unify

__all__ = ["follow_items", "follow_part", "follow_weight", "permute", "resized", "split_", "view"]


@rule(
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "squeeze_", "unsqueeze", "unsqueeze_",
    "view_copy", "view_as", "reshape_as", "ravel", "atleast_1d", "atleast_2d", "atleast_3d",
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
    if call.name in ("view_as", "reshape_as"):
        for one, other in zip(result, ctx.dims(call["other"]), strict=True):
            ctx.unify(one, other)
    _record_sizes(ctx, call, result)
    follow_weight(ctx, call, result)
    return result


@rule(
    "permute", "transpose", "transpose_", "swapaxes", "swapaxes_", "swapdims", "swapdims_", "t", "t_", "numpy_T",
    "matrix_H", "mT", "mH", "adjoint", "movedim", "moveaxis",
)  # fmt: skip
def permute(ctx: Context, call: Call) -> Dims:
    """Another order of the dimensions."""
    dims = ctx.dims(call.first)
    order = _order(call, len(dims))
    _follow(ctx, call.first, call.node, lambda view: tuple(view.positions[i] for i in order))
    return tuple(dims[i] for i in order)


@rule(
    "split", "split_with_sizes", "chunk", "tensor_split", "hsplit", "vsplit", "dsplit", "unsafe_split", "unsafe_chunk",
    "split_with_sizes_copy", "unsafe_split_with_sizes",
)  # fmt: skip
def split_(ctx: Context, call: Call) -> list[Value]:
    """Segments along `dim`, with the sizes that the trace found; segments that share one size stay equal."""
    dims = ctx.dims(call.first)
    default = {"hsplit": min(len(dims) - 1, 1), "vsplit": 0, "dsplit": 2}.get(call.name)
    axis = call.get("dim", default) % len(dims)
    widths = [int(part.shape[axis]) for part in call.node.meta["val"]]
    cut = iter(split(dims[axis], [width for width in widths if width], call.location))
    pieces = [next(cut) if width else ctx.fixed(0, "is an empty piece") for width in widths]
    given = call.get("split_size", call.get("split_sizes", call.get("indices")))
    if not isinstance(given, Sequence):
        _keep_equal(ctx, pieces, widths, given)
    elif call.get("indices") is not None:
        for i, bound in enumerate(given):
            ctx.literal(Sum(pieces[: i + 1]), bound)
    else:
        for i, (piece, width) in enumerate(zip(pieces, given, strict=True)):
            ctx.literal(piece, width, given, i)
    result: list[Value] = [(*dims[:axis], piece, *dims[axis + 1 :]) for piece in pieces]
    follow_items(ctx, call, lambda view: view.positions)
    return result


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


def _keep_equal(ctx: Context, pieces: list[Dim], widths: list[int], given: int | None) -> None:
    """One number says how long the pieces are, or how many: they grow together, or not at all if they differ."""
    whole = [piece for piece, width in zip(pieces, widths, strict=True) if width == widths[0]]
    for piece in whole[1:]:
        ctx.unify(whole[0], piece)
    if given is not None:
        ctx.literal(whole[0], given)
    rest = [piece for piece, width in zip(pieces, widths, strict=True) if width != widths[0]]
    for piece in rest if given is not None else pieces if rest else ():
        ctx.pin(piece, "is what an uneven split leaves over")


def _order(call: Call, rank: int) -> list[int]:
    """The old position of every new dimension."""
    if call.name == "permute":
        return [axis % rank for axis in call["dims"]]
    order = list(range(rank))
    if call.name in ("t", "t_", "numpy_T", "matrix_H"):
        return order[::-1]
    if call.name in ("mT", "mH", "adjoint"):
        return [*order[:-2], rank - 1, rank - 2]
    if call.name.startswith("move"):
        return _moved(call, rank)
    first, second = (call.at(position) % rank for position in (1, 2))
    order[first], order[second] = order[second], order[first]
    return order


def _moved(call: Call, rank: int) -> list[int]:
    """The order after dimensions moved from `source` to `destination`, one or several."""
    ends = [[end] if isinstance(end, int) else end for end in (call["source"], call["destination"])]
    places = {to % rank: axis % rank for axis, to in zip(*ends, strict=True)}
    rest = iter(axis for axis in range(rank) if axis not in places.values())
    return [places[i] if i in places else next(rest) for i in range(rank)]


def _record_sizes(ctx: Context, call: Call, result: Dims) -> None:
    """Record the sizes that the call names (a view's `-1` is no number), and the products of neighbours.

    Of heads and their size, one is often written as a quotient of the product: `C // heads`.
    """
    sizes = call.get("size", call.get("shape", call.get("sizes")))
    if not isinstance(sizes, Sequence):
        return
    offset = call["dim"] % len(ctx.dims(call.first)) if call.name == "unflatten" else 0
    named = list(zip(result[offset:], sizes, strict=False))
    for dim, width in named:
        ctx.literal(dim, width)
    for (first, width), (second, other) in pairwise(named):
        if isinstance(width, int) and isinstance(other, int) and width > 1 and other > 1:
            ctx.quotient(Product((first, second)))


def follow_weight(ctx: Context, call: Call, result: Dims) -> None:
    """A weight seen through a view is still that weight along the dimensions that are kept whole."""
    if ctx.part(call.first) is None:
        return
    before = ctx.dims(call.first)

    def position(view: WeightView, axis: int, dim: Dim) -> int | None:
        if len(before) == len(result) and size(before[axis]) == size(dim) and same(before[axis], dim):
            return view.positions[axis]
        matches = [i for i, old in enumerate(before) if size(dim) != 1 and same(old, dim)]
        return view.positions[matches[0]] if len(matches) == 1 else None

    _follow(ctx, call.first, call.node, lambda view: tuple(position(view, i, dim) for i, dim in enumerate(result)))


def follow_part(ctx: Context, call: Call, positions: Callable[[WeightView], tuple[int | None, ...]]) -> None:
    """A piece of a weight: its entries along a dimension are some of those of the weight."""
    view = ctx.part(call.first)
    if view is not None:
        ctx.parts[call.node] = replace(view, positions=positions(view))


def follow_items(ctx: Context, call: Call, positions: Callable[[WeightView], tuple[int | None, ...]]) -> None:
    """The same for each tensor of a list of pieces."""
    view = ctx.part(call.first)
    if view is not None:
        ctx.parts.update({user: replace(view, positions=positions(view)) for user in call.node.users})


def _follow(ctx: Context, source: Node, node: Node, positions: Callable[[WeightView], tuple[int | None, ...]]) -> None:
    table = ctx.weights if source in ctx.weights else ctx.parts
    if source in table:
        table[node] = replace(table[source], positions=positions(table[source]))


def resized(ctx: Context, dims: Dims, shape: Sequence[int], touched: set[int], text: str) -> Dims:
    """The dimensions with new fixed ones at the touched positions."""
    return tuple(ctx.fixed(shape[i], text) if i in touched else dim for i, dim in enumerate(dims))
