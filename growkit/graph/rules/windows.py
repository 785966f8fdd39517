"""Windows that slide over positions, and maps of positions: channels pass, positions are positions."""

from __future__ import annotations

from collections.abc import Sequence

from growkit.graph.dimensions import Dim, Product, Sum, free, leaves, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import rule

__all__ = ["affine_grid", "fold", "fractional_pool", "pad", "sample", "unfold", "unfold_along", "unpool"]


@rule("constant_pad_nd", "pad")
def pad(ctx: Context, call: Call) -> Dims:
    """Constant entries before and behind are segments of their own; other kinds of padding copy entries."""
    dims = list(ctx.dims(call.first))
    amounts: Sequence[int] = call["pad"]
    for i, (before, behind) in enumerate(zip(amounts[::2], amounts[1::2], strict=True)):
        axis = len(dims) - 1 - i
        if before or behind:
            constant = call.get("mode", "constant") == "constant" and min(before, behind) >= 0
            dims[axis] = _padded(ctx, dims[axis], before, behind, constant)
    return tuple(dims)


@rule("im2col")
def unfold(ctx: Context, call: Call) -> Dims:
    """Patches `[..., C, H, W]` to `[..., C * kernel, L]`."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    (places,) = ctx.spatial(dims[-2:], shape[-1:])
    return (*dims[:-3], Product((dims[-3], *_kernel(ctx, call))), places)


@rule("col2im")
def fold(ctx: Context, call: Call) -> Dims:
    """Patches `[..., C * kernel, L]` added up to `[..., C, H, W]`."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None:
        raise NoRule
    kernel = _kernel(ctx, call)
    channels = free(shape[-3])
    ctx.unify(dims[-2], Product((channels, *kernel)))
    return (*dims[:-2], channels, *ctx.spatial(dims[-1:], shape[-2:]))


@rule("unfold")
def unfold_along(ctx: Context, call: Call) -> Dims:
    """Windows along one dimension, as a new last dimension."""
    dims, shape = ctx.dims(call.first), call.shape
    if shape is None or not dims:
        raise NoRule
    axis = call["dimension"] % len(dims)
    windows, width = ctx.spatial(dims[axis : axis + 1], (shape[axis], shape[-1]))
    return (*dims[:axis], windows, *dims[axis + 1 :], width)


@rule("max_unpool2d", "max_unpool3d")
def unpool(ctx: Context, call: Call) -> Dims:
    """Entries put back to the places they came from, channel by channel."""
    dims, indices, shape = ctx.dims(call.first), ctx.dims(call["indices"]), call.shape
    if shape is None:
        raise NoRule
    for one, other in zip(dims, indices, strict=True):
        ctx.unify(one, other)
    spatial = int(call.name[-2])
    return (*dims[:-spatial], *ctx.spatial(dims[-spatial:], shape[-spatial:]))


@rule("fractional_max_pool2d", "fractional_max_pool3d")
def fractional_pool(ctx: Context, call: Call) -> Value:
    """Random windows, of their own for every sample and channel."""
    dims, samples, shape = ctx.dims(call.first), ctx.dims(call["random_samples"]), call.shape
    if shape is None:
        raise NoRule
    spatial = int(call.name[-2])
    for one, other in zip(dims[:-spatial][-2:], samples[:2], strict=False):
        ctx.unify(one, other)
    return [(*dims[:-spatial], *ctx.spatial(dims[-spatial:], shape[-spatial:]))] * call.num_outputs


@rule("grid_sampler", "grid_sampler_2d", "grid_sampler_3d")
def sample(ctx: Context, call: Call) -> Dims:
    """`[N, C, H, W]` read at the coordinates `[N, H', W', 2]`."""
    dims, grid, shape = ctx.dims(call.first), ctx.dims(call["grid"]), call.shape
    if shape is None:
        raise NoRule
    ctx.unify(dims[0], grid[0])
    for dim in grid[1:]:
        ctx.pin(dim, "is a grid of coordinates")
    return (*dims[:2], *ctx.spatial(dims[2:], shape[2:]))


@rule("affine_grid_generator")
def affine_grid(ctx: Context, call: Call) -> Dims:
    """Coordinates `[N, H, W, 2]` from matrices `[N, 2, 3]`."""
    dims, shape = ctx.dims(call["theta"]), call.shape
    if shape is None:
        raise NoRule
    for dim in dims[1:]:
        ctx.pin(dim, "makes coordinates")
    return (dims[0], *(ctx.fixed(width, "is a grid of coordinates") for width in shape[1:]))


def _kernel(ctx: Context, call: Call) -> list[Dim]:
    sizes = call["kernel_size"]
    pair = [sizes, sizes] if isinstance(sizes, int) else sizes * 2 if len(sizes) == 1 else sizes
    return [ctx.fixed(width, "is a kernel size") for width in pair]


def _padded(ctx: Context, dim: Dim, before: int, behind: int, constant: bool) -> Dim:
    """The dimension between its padding."""
    if constant and any(not atom.pins for atom in leaves(dim)):
        margins = [[ctx.fixed(width, "is padding")] if width else [] for width in (before, behind)]
        return Sum([*margins[0], dim, *margins[1]])
    ctx.pin(dim, "is padded")
    return ctx.fixed(size(dim) + before + behind, "is padded")
