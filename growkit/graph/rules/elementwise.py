"""Element-wise operations: widths that meet are one width; size 1 broadcasts."""

from __future__ import annotations

from torch.fx import Node

from growkit.graph.dimensions import ONE, Dim, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import rule

__all__ = ["no_tensor", "pointwise", "prelu"]

SCALES = frozenset({"mul", "mul_", "div", "div_"})
"""A parameter here is a gain: new entries take 1; elsewhere it is a shift: 0."""

KEEP_ZEROS = SCALES | {"neg", "abs", "to", "_to_copy", "type_as", "clone", "contiguous", "alias", "detach", "dropout"}
"""A zero of the (first) operand stays a zero, so a weight may be silenced before the operation."""


@rule(
    "pointwise", "_to_copy", "alpha_dropout", "bernoulli_", "celu_", "clamp", "clone", "contiguous", "copy_",
    "detach", "detach_", "dropout", "dropout_", "elu_", "empty_like", "feature_alpha_dropout",
    "feature_dropout", "fill_", "full_like", "gelu", "gelu_", "hardswish_", "hardtanh_", "leaky_relu", "leaky_relu_",
    "lerp", "lift_fresh_copy", "log_sigmoid", "masked_fill", "masked_fill_", "max.other", "min.other", "mish_",
    "nan_to_num", "native_dropout", "normal_", "ones_like", "positive", "rand_like", "randn_like", "relu6",
    "relu6_", "rrelu", "rrelu_", "rsub", "selu", "selu_", "silu_", "softsign", "square", "threshold_", "to",
    "type_as", "uniform_", "where", "zero_", "zeros_like",
)  # fmt: skip
def pointwise(ctx: Context, call: Call) -> Value:
    """Operands line up from the last dimension; all that is not broadcast is one width."""
    if call.shape is None:
        raise NoRule
    operands = [ctx.dims(node) for node in ctx.tensors(call)]
    result = tuple(_column(ctx, operands, call.shape, axis) for axis in range(-len(call.shape), 0))
    _note_weights(ctx, call, result)
    return [result] * call.num_outputs if call.num_outputs > 1 else result


@rule("prelu", "_prelu_kernel")
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


def _column(ctx: Context, operands: list[Dims], shape: tuple[int, ...], axis: int) -> Dim:
    """The dimension at `axis` (negative) of the result."""
    width = shape[axis]
    if width == 1:
        return ONE
    aligned = [dims[axis] for dims in operands if len(dims) >= -axis and size(dims[axis]) == width]
    if not aligned:
        return ctx.fixed(width, "is the size of a broadcast")
    for other in aligned[1:]:
        ctx.unify(aligned[0], other)
    return aligned[0]


def _note_weights(ctx: Context, call: Call, result: Dims) -> None:
    """Parameters that act here are gains or shifts; a weight with a gain is still a weight."""
    nodes = ctx.tensors(call)
    main = None if call.node in ctx.depends_on_input else _scaled_weight(ctx, call, nodes, result)
    for node in nodes:
        view = ctx.weight(node)
        if node is not main and view is not None and view.tensor.kind == "parameter":
            ctx.neutral(node, 1.0 if call.name in SCALES else 0.0)
    if main is not None and call.name in KEEP_ZEROS:
        ctx.weights[call.node] = ctx.weights[main]


def _scaled_weight(ctx: Context, call: Call, nodes: list[Node], result: Dims) -> Node | None:
    """The parameter that has the shape of the result, if a zero of it is a zero of the result."""
    factors = nodes if call.name in ("mul", "mul_") else nodes[:1]
    shape = [size(dim) for dim in result]
    for node in factors:
        view = ctx.weight(node)
        whole = [size(dim) for dim in ctx.dims(node)] == shape
        if view is not None and view.tensor.kind == "parameter" and whole:
            return node
    return None
