"""Reductions, pooling and soft-max: positions may be pooled freely, a reduction over units is flagged."""

from __future__ import annotations

from growkit.graph.dimensions import ONE
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import rule

__all__ = ["pool", "reduce", "softmax"]


@rule(
    "mean", "sum", "amax", "amin", "max.dim", "min.dim", "max", "min", "var", "std", "var_mean", "std_mean",
    "logsumexp", "special_logsumexp", "prod", "argmax", "argmin", "linalg_vector_norm", "linalg_norm",
    "linalg_matrix_norm", "norm.ScalarOpt_dim", "norm.ScalarOpt_dim_dtype", "norm.Scalar", "frobenius_norm.dim",
    "nuclear_norm", "any", "all", "nansum", "nanmean", "count_nonzero", "median", "nanmedian", "mode", "kthvalue",
    "quantile", "nanquantile", "aminmax",
)  # fmt: skip
def reduce(ctx: Context, call: Call) -> Value:
    """The reduced dimensions are flagged and vanish (or keep size 1)."""
    dims = ctx.dims(call.first)
    axes = call.get("dim")
    axes = range(len(dims)) if axes is None or axes == [] else [axes] if isinstance(axes, int) else axes
    reduced = {axis % len(dims) for axis in axes} if dims else set()
    for axis in reduced:
        ctx.flag(dims[axis], f"{call.name} runs over it")
    keep = bool(call.get("keepdim", False))
    result = tuple(ONE if i in reduced else dim for i, dim in enumerate(dims) if keep or i not in reduced)
    return [result] * call.num_outputs if call.num_outputs > 1 else result


@rule(
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "adaptive_max_pool1d",
    "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool1d",
    "max_pool2d", "max_pool3d", "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_linear1d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa", "_upsample_nearest_exact1d", "_upsample_nearest_exact2d",
    "_upsample_nearest_exact3d", "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d",
    "replication_pad2d", "replication_pad3d",
)  # fmt: skip
def pool(ctx: Context, call: Call) -> Value:
    """Channels pass, the last one, two or three dimensions become new positions."""
    if call.shape is None:
        raise NoRule
    spatial = next(
        int(digit) for digit, letter in zip(call.name, call.name[1:], strict=False) if letter == "d" and digit.isdigit()
    )
    dims = ctx.dims(call.first)
    result = (*dims[:-spatial], *ctx.spatial(dims[-spatial:], call.shape[-spatial:]))
    return [result] * call.num_outputs if call.num_outputs > 1 else result


@rule("softmax", "_softmax", "log_softmax", "_log_softmax", "special_softmax", "special_log_softmax")
def softmax(ctx: Context, call: Call) -> Dims:
    """Every output depends on all entries along the dimension."""
    dims = ctx.dims(call.first)
    ctx.flag(dims[call["dim"]], f"{call.name} runs over it")
    return dims
