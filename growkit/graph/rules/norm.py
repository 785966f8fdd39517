"""Normalisations: batch statistics stand per channel and are harmless; statistics over units are flagged."""

from __future__ import annotations

from growkit.graph.dimensions import Product, free, size
from growkit.graph.rules.context import Call, Context, Dims, Value
from growkit.graph.rules.registry import rule

__all__ = ["batch_norm", "group_norm", "layer_norm"]

NEUTRAL = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}
"""New channels are passed on as they come."""


@rule(
    "batch_norm",
    "instance_norm",
    "cudnn_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
)
def batch_norm(ctx: Context, call: Call) -> Value:
    """Statistics per channel (dimension 1); with batch statistics they run over all other dimensions."""
    dims = ctx.dims(call.first)
    for name, fill in NEUTRAL.items():
        vector = call.get(name)
        if vector is not None:
            ctx.unify(dims[1], ctx.dims(vector)[0])
            ctx.neutral(vector, fill)
    if call.get("training") or call.get("use_input_stats"):
        for axis, dim in enumerate(dims):
            if axis != 1:
                ctx.flag(dim, f"{call.name} statistics run over it")
    if call.num_outputs == 1:
        return dims
    return [dims] + [(dims[1],)] * (call.num_outputs - 1)


@rule("layer_norm", "rms_norm")
def layer_norm(ctx: Context, call: Call) -> Dims:
    """Statistics over the last dimensions."""
    dims = ctx.dims(call.first)
    normalised = dims[len(dims) - len(call["normalized_shape"]) :]
    for name in ("weight", "bias"):
        vector = call.get(name)
        if vector is not None:
            for dim, other in zip(normalised, ctx.dims(vector), strict=True):
                ctx.unify(dim, other)
            ctx.neutral(vector, NEUTRAL[name])
    for dim, width in zip(normalised, call["normalized_shape"], strict=True):
        ctx.flag(dim, f"{call.name} statistics run over it")
        ctx.literal(dim, width)
    return dims


@rule("group_norm")
def group_norm(ctx: Context, call: Call) -> Dims:
    """Channels are groups times width; new groups are independent, a wider group has other statistics."""
    dims = ctx.dims(call.first)
    groups, width = free(call["num_groups"]), free(size(dims[1]) // call["num_groups"])
    ctx.unify(dims[1], Product((groups, width)))
    for name in ("weight", "bias"):
        vector = call.get(name)
        if vector is not None:
            ctx.unify(dims[1], ctx.dims(vector)[0])
            ctx.neutral(vector, NEUTRAL[name])
    ctx.flag(width, "group_norm statistics run over it")
    ctx.literal(groups, call["num_groups"])
    return dims
