"""Distances, similarities and losses: sums over a width, so the width is flagged."""

from __future__ import annotations

from growkit.graph.dimensions import ONE, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule
from growkit.graph.rules.elementwise import aligned
from growkit.graph.rules.registry import rule

__all__ = ["all_pairs", "classification_loss", "loss", "pairs"]


@rule("cosine_similarity", "pairwise_distance", "linalg_vecdot")
def pairs(ctx: Context, call: Call) -> Dims:
    """One number for each pair of vectors along `dim` (the last one by default)."""
    first, second = ctx.dims(call.at(0)), ctx.dims(call.at(1))
    rank = max(len(first), len(second))
    shape = [1] * rank
    for dims in (first, second):
        for i, dim in enumerate(dims, start=rank - len(dims)):
            shape[i] = max(shape[i], size(dim))
    result = aligned(ctx, [first, second], tuple(shape))
    axis = call.get("dim", -1) % rank
    ctx.flag(result[axis], f"{call.name} runs over it")
    rest = (*result[:axis], *result[axis + 1 :])
    return (*result[:axis], ONE, *result[axis + 1 :]) if call.get("keepdim") else rest


@rule("cdist", "_cdist_forward", "_euclidean_dist")
def all_pairs(ctx: Context, call: Call) -> Dims:
    """`a[..., P, M]` and `b[..., R, M]` give `[..., P, R]`."""
    if call.shape is None:
        raise NoRule
    a, b = ctx.dims(call.at(0)), ctx.dims(call.at(1))
    ctx.unify(a[-1], b[-1])
    ctx.flag(a[-1], f"{call.name} runs over it")
    return (*aligned(ctx, [a[:-2], b[:-2]], call.shape[:-2]), a[-2], b[-2])


@rule(
    "mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "kl_div", "soft_margin_loss", "poisson_nll_loss",
)  # fmt: skip
def loss(ctx: Context, call: Call) -> Dims:
    """Element by element, then a mean or a sum over everything unless `reduction` is 0."""
    operands = [ctx.dims(node) for node in ctx.tensors(call)]
    shape = tuple(size(dim) for dim in max(operands, key=len))
    result = aligned(ctx, operands, shape)
    if not call.get("reduction", 1):
        return result
    for dim in result:
        ctx.flag(dim, f"{call.name} runs over it")
    return ()


@rule("cross_entropy_loss", "nll_loss", "nll_loss_nd", "nll_loss2d")
def classification_loss(ctx: Context, call: Call) -> Dims:
    """Classes in dimension 1 (or in the only one) against their numbers or their probabilities."""
    dims, target = ctx.dims(call.first), ctx.dims(call["target"])
    classes = 1 if len(dims) > 1 else 0
    ctx.pin(dims[classes], "is a number of classes")
    rest = (*dims[:classes], *dims[classes + 1 :])
    for one, other in zip(rest if len(target) == len(rest) else dims, target, strict=True):
        ctx.unify(one, other)
    if call["weight"] is not None:
        ctx.unify(dims[classes], ctx.dims(call["weight"])[0])
    if not call["reduction"]:
        return rest
    for dim in rest:
        ctx.flag(dim, f"{call.name} runs over it")
    return ()
