"""Operations that write some entries of a tensor: the written dimension is pinned, the others pass."""

from __future__ import annotations

from collections.abc import Iterable

from torch.fx import Node

from growkit.graph.dimensions import Dim, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule
from growkit.graph.rules.registry import rule
from growkit.graph.rules.selection import cut, picked

__all__ = ["index_put", "scatter", "select_scatter", "slice_scatter", "write_slices"]

WRITTEN = "has single entries written to it"


@rule("scatter", "scatter_", "scatter_add", "scatter_add_", "scatter_reduce", "scatter_reduce_")
def scatter(ctx: Context, call: Call) -> Dims:
    """Entries written along `dim`, one index for each entry of the source."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    others = [ctx.dims(node) for node in (call["index"], call.get("src")) if isinstance(node, Node)]
    ctx.pin(dims[axis], WRITTEN)
    for other in others:
        for i, (dim, one) in enumerate(zip(dims, other, strict=True)):
            if i == axis:
                ctx.pin(one, WRITTEN)
            else:
                _meet(ctx, dim, one)
    return dims


@rule(
    "index_add", "index_add_", "index_copy", "index_copy_", "index_fill", "index_fill_", "index_reduce",
    "index_reduce_",
)  # fmt: skip
def write_slices(ctx: Context, call: Call) -> Dims:
    """Whole slices written along `dim`."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    _pin(ctx, (dims[axis], *ctx.dims(call["index"])))
    if call.get("source") is not None:
        source = ctx.dims(call["source"])
        _pin(ctx, source[axis : axis + 1])
        for i, (dim, one) in enumerate(zip(dims, source, strict=True)):
            if i != axis:
                _meet(ctx, dim, one)
    return dims


@rule("index_put", "index_put_", "_index_put_impl_", "_unsafe_index_put")
def index_put(ctx: Context, call: Call) -> Dims:
    """Entries written at tensors of indices; the values line up with what the indices pick."""
    if call.shape is None:
        raise NoRule
    dims, values = ctx.dims(call.first), ctx.dims(call["values"])
    target = picked(ctx, dims, call["indices"], WRITTEN)
    if len(values) > len(target):
        raise NoRule
    for ours, theirs in zip(reversed(target), reversed(values), strict=False):
        if size(theirs) != 1:
            _meet(ctx, ours, theirs)
    return dims


@rule("select_scatter")
def select_scatter(ctx: Context, call: Call) -> Dims:
    """One entry along `dim` replaced by a tensor of the other dimensions."""
    dims = ctx.dims(call.first)
    axis = call["dim"] % len(dims)
    _pin(ctx, dims[axis : axis + 1])
    for one, other in zip((*dims[:axis], *dims[axis + 1 :]), ctx.dims(call["src"]), strict=True):
        ctx.unify(one, other)
    return dims


@rule("slice_scatter")
def slice_scatter(ctx: Context, call: Call) -> Dims:
    """A piece along `dim` replaced by another tensor."""
    dims, source = ctx.dims(call.first), ctx.dims(call["src"])
    axis = call["dim"] % len(dims)
    piece = cut(ctx, call, dims[axis], size(source[axis]), call["start"], call["end"], call["step"])
    for i, (one, other) in enumerate(zip(dims, source, strict=True)):
        ctx.unify(piece if i == axis else one, other)
    return dims


def _meet(ctx: Context, dim: Dim, other: Dim) -> None:
    """Entry by entry where the sizes agree; a shorter one covers the first entries only."""
    if size(dim) == size(other):
        ctx.unify(dim, other)
    else:
        _pin(ctx, (dim, other))


def _pin(ctx: Context, dims: Iterable[Dim]) -> None:
    for dim in dims:
        ctx.pin(dim, WRITTEN)
