"""Element-wise operations: widths that meet are one width; size 1 broadcasts."""

from __future__ import annotations

from dataclasses import replace

from torch.fx import Node

from growkit.graph.dimensions import ONE, Dim, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import rule

__all__ = ["KEEP_ZEROS", "aligned", "column", "no_tensor", "pointwise", "prelu"]

SCALES = frozenset({"mul", "mul_", "div", "div_"})
"""A parameter here is a gain: new entries take 1; elsewhere it is a shift: 0."""

DIVERGE = frozenset({
    "log", "log2", "log10", "reciprocal", "rsqrt", "sqrt", "pow", "float_power", "addcdiv", "digamma", "xlogy",
})  # fmt: skip
"""These have no value, or no slope, at 0: new entries of a parameter take 1."""

KEEP_ZEROS = SCALES | {"neg", "abs", "to", "_to_copy", "type_as", "clone", "contiguous", "alias", "detach", "dropout"}
"""A zero of the (first) operand stays a zero, so a weight may be silenced before the operation."""


@rule(
    "pointwise", "__and__", "__iand__", "__ior__", "__or__", "_conj",
    "_prelu_kernel", "_to_copy", "alpha_dropout", "bernoulli_", "celu_", "clamp", "clone",
    "complex", "contiguous", "copy_", "detach", "detach_", "dropout", "dropout_", "elu_", "empty_like", "exponential_",
    "feature_alpha_dropout", "feature_dropout", "fill_", "full_like", "gelu", "gelu_", "hardswish", "hardswish_",
    "hardtanh_", "imag", "leaky_relu", "leaky_relu_", "lerp", "lift_fresh_copy", "log_sigmoid", "masked_fill",
    "masked_fill_", "max.other", "min.other", "mish_", "nan_to_num", "native_dropout", "normal_", "ones_like",
    "polar", "positive", "rand_like", "randn_like", "real", "relu6", "relu6_", "resolve_conj", "resolve_neg", "rrelu",
    "rrelu_", "rsub", "selu", "selu_", "silu_", "softsign", "square", "threshold_", "to", "uniform_", "where",
    "zero_", "zeros_like",
)  # fmt: skip
def pointwise(ctx: Context, call: Call) -> Value:
    """Operands line up from the last dimension; all that is not broadcast is one width."""
    if call.shape is None:
        raise NoRule
    result = aligned(ctx, [ctx.dims(node) for node in ctx.tensors(call)], call.shape)
    _note_weights(ctx, call, result)
    return [result] * call.num_outputs if call.num_outputs > 1 else result


@rule("type_as", "to.other")
def like(ctx: Context, call: Call) -> Dims:
    """The first operand in another type; the second one gives nothing but the type."""
    if call.first in ctx.weights:
        ctx.weights[call.node] = ctx.weights[call.first]
    return ctx.dims(call.first)


@rule("prelu")
def prelu(ctx: Context, call: Call) -> Dims:
    """One slope per channel (dimension 1), or one for all."""
    dims = ctx.dims(call.first)
    slopes = ctx.dims(call["weight"])
    if size(slopes[0]) > 1:
        ctx.unify(dims[1], slopes[0])
        ctx.neutral(call["weight"], 0.25)  # torch's own initial slope
    return dims


@rule("item", "_local_scalar_dense", "_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_size")
def no_tensor(ctx: Context, call: Call) -> None:
    """Checks and plain numbers: nothing flows on."""


def aligned(ctx: Context, operands: list[Dims], shape: tuple[int, ...]) -> Dims:
    """The dimensions of operands broadcast to one shape."""
    if any(len(dims) > len(shape) for dims in operands):
        raise NoRule  # not element by element, whatever the operation says
    return tuple(column(ctx, operands, shape[axis], axis) for axis in range(-len(shape), 0))


def column(ctx: Context, operands: list[Dims], width: int, axis: int) -> Dim:
    """The dimension at `axis` (negative) of operands broadcast to `width`."""
    present = [dims[axis] for dims in operands if len(dims) >= -axis and size(dims[axis]) != 1]
    if any(size(dim) != width for dim in present):
        raise NoRule
    if not present:
        return ONE if width == 1 else ctx.fixed(width, "is the size of a broadcast")
    for other in present[1:]:
        ctx.unify(present[0], other)
    return present[0]


def _note_weights(ctx: Context, call: Call, result: Dims) -> None:
    """Parameters that act here are gains or shifts; a weight with a gain is still a weight."""
    nodes = ctx.tensors(call)
    keeps = call.name in KEEP_ZEROS
    main = None if call.node in ctx.depends_on_input else _main_weight(ctx, call, nodes, result, keeps)
    for node in nodes:
        view = ctx.part(node)
        if view is None or view.tensor.kind != "parameter" or (node is main and keeps):
            continue
        if call.name.rstrip("_") in DIVERGE or (call.name in ("div", "div_") and node is not call.first):
            view.tensor.neutral = 1.0  # whatever else it does
        else:
            ctx.neutral(node, 1.0 if call.name in SCALES else 0.0)
    if main is None:
        return
    if keeps and main in ctx.weights:
        ctx.weights[call.node] = ctx.weights[main]
    elif (view := ctx.part(main)) is not None:
        ctx.parts[call.node] = replace(view, keeps_zeros=keeps and view.keeps_zeros)


def _main_weight(ctx: Context, call: Call, nodes: list[Node], result: Dims, keeps: bool) -> Node | None:
    """The parameter of the result's shape that the result is computed from; its zeros stay zeros if `keeps`."""
    factors = nodes[:1] if keeps and call.name not in ("mul", "mul_") else nodes
    shape = [size(dim) for dim in result]
    for node in factors:
        view = ctx.part(node)
        whole = [size(dim) for dim in ctx.dims(node)] == shape
        if view is not None and view.tensor.kind == "parameter" and whole:
            return node
    return None
