"""Operations that take a tensor as a whole, or whose result depends on the data in size: refused, with the reason."""

from __future__ import annotations

from typing import Any

from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value, shape_of
from growkit.graph.rules.registry import rule

__all__ = ["as_complex", "as_real", "branch", "fourier", "whole", "with_data_dependent_size"]


@rule(
    "fft_fft", "fft_ifft", "fft_rfft", "fft_irfft", "fft_hfft", "fft_ihfft", "fft_fft2", "fft_ifft2", "fft_rfft2",
    "fft_irfft2", "fft_hfft2", "fft_ihfft2", "fft_fftn", "fft_ifftn", "fft_rfftn", "fft_irfftn", "fft_hfftn",
    "fft_ihfftn", "fft_fftshift", "fft_ifftshift",
)  # fmt: skip
def fourier(ctx: Context, call: Call) -> Dims:
    """Frequencies mix all entries along the transformed dimensions; the others pass."""
    dims, shape, axes = ctx.dims(call.first), call.shape, call["dim"]
    if shape is None:
        raise NoRule
    if axes is None:
        axes = range(-len(call.get("s") or dims), 0)
    touched = {axis % len(dims) for axis in ([axes] if isinstance(axes, int) else axes)}
    for axis in touched:
        ctx.pin(dims[axis], f"is transformed by {call.name}")
    return tuple(
        ctx.fixed(shape[i], f"is a result of {call.name}") if i in touched else dim for i, dim in enumerate(dims)
    )


@rule("view_as_complex")
def as_complex(ctx: Context, call: Call) -> Dims:
    """The last dimension holds real and imaginary part."""
    dims = ctx.dims(call.first)
    ctx.pin(dims[-1], "is a pair of real and imaginary part")
    return dims[:-1]


@rule("view_as_real")
def as_real(ctx: Context, call: Call) -> Dims:
    """Real and imaginary part become a new last dimension."""
    return (*ctx.dims(call.first), ctx.fixed(2, "is a pair of real and imaginary part"))


@rule(
    "stft", "istft", "matrix_exp", "linalg_matrix_exp", "linalg_inv", "linalg_inv_ex", "inverse", "linalg_pinv",
    "linalg_svd", "_linalg_svd", "linalg_qr", "linalg_eigh", "linalg_eig", "linalg_cholesky", "linalg_cholesky_ex",
    "linalg_solve", "linalg_solve_triangular", "linalg_det", "linalg_slogdet", "linalg_lstsq",
    "linalg_householder_product", "matrix_power", "linalg_matrix_power", "det", "logdet", "trace", "pdist", "renorm",
    "cov", "corrcoef", "linalg_cross", "cross", "view.dtype", "as_strided", "tril", "triu", "tril_", "triu_", "diag",
    "diagonal", "diag_embed", "diagonal_scatter", "fill_diagonal_", "take", "put", "put_", "histc", "bincount",
    "multinomial", "ctc_loss", "masked_scatter", "masked_scatter_", "trapezoid", "cartesian_prod", "combinations",
    "block_diag",
)  # fmt: skip
def whole(ctx: Context, call: Call) -> Value:
    """Every entry of the result may depend on all entries, or on where they stand."""
    return _refused(ctx, call, f"is taken as a whole by {call.name}")


@rule(
    "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave.Tensor",
    "repeat_interleave.self_Tensor", "nonzero_numpy", "argwhere",
)  # fmt: skip
def with_data_dependent_size(ctx: Context, call: Call) -> Value:
    """How many entries come out depends on the values."""
    return _refused(ctx, call, f"goes through {call.name}, whose result depends on the data in size")


@rule("cond", "while_loop", "map_impl", "scan", "associative_scan")
def branch(ctx: Context, call: Call) -> Value:
    """Bodies that run on a condition, or many times."""
    return _refused(ctx, call, f"goes through torch's control flow ({call.name})")


def _refused(ctx: Context, call: Call, text: str) -> Value:
    for node in call.node.all_input_nodes:
        for dim in _flat(ctx.values.get(node)):
            ctx.pin(dim, text)
    return _fixed(ctx, call.node.meta.get("val"), text)


def _flat(value: Value) -> list[Any]:
    return [dim for item in value for dim in _flat(item)] if isinstance(value, list) else list(value or ())


def _fixed(ctx: Context, value: Any, text: str) -> Value:
    if isinstance(value, (tuple, list)):
        return [_fixed(ctx, item, text) for item in value]
    shape = shape_of(value)
    return None if shape is None else tuple(ctx.fixed(width, text) for width in shape)
