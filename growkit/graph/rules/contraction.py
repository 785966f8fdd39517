"""Contractions: where an activation meets a weight, one width ends (the weight is silenced there) and one begins.

Legend: `x` activation, `w` weight, `I` fan-in, `O` fan-out, `G` groups.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

from torch.fx import Node

from growkit.graph.dimensions import ONE, Dim, Product, free, pin, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import rule

__all__ = [
    "COMPUTED",
    "addmm",
    "attention",
    "bilinear",
    "contract_first",
    "convolution",
    "einsum",
    "embedding",
    "embedding_bag",
    "embedding_renorm",
    "linear",
    "matmul",
]

COMPUTED = "is contracted with a weight that is computed in the forward"


@rule("linear")
def linear(ctx: Context, call: Call) -> Dims:
    """`x[..., I] w[O, I] + b[O]`."""
    x, w = ctx.dims(call["input"]), ctx.dims(call["weight"])
    ctx.unify(x[-1], w[1])
    _contract(ctx, call["weight"], 1, w[1])
    ctx.produce(call["weight"], 0)
    _bias(ctx, call["bias"], w[0])
    ctx.count(*x, w[0])
    return (*x[:-1], w[0])


@rule("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def convolution(ctx: Context, call: Call) -> Dims:
    """`w[G*O, I, kernel...]` on `x[G*I]` channels; transposed: `w[G*I, O, kernel...]`."""
    if call.shape is None:
        raise NoRule
    x, w = ctx.dims(call["input"]), ctx.dims(call["weight"])
    transposed = "transpose" in call.name
    channel = 1 if len(x) == len(w) else 0
    for dim in w[2:]:
        pin(dim, ctx.reason("is a kernel size", listed=False))
    inward, outward = (0, 1) if transposed else (1, 0)
    groups = call["groups"]
    fan_out = w[outward] if groups == 1 else _grouped(ctx, call, x[channel], w, transposed)
    if groups == 1:
        ctx.unify(x[channel], w[inward])
    _contract(ctx, call["weight"], inward, w[inward])
    if groups == 1 or size(w[0]) != groups or transposed:  # a depthwise kernel passes its units on, it makes none
        ctx.produce(call["weight"], outward)
    positions = _slid_over(ctx, call, x[channel + 1 :], w[2:])
    _bias(ctx, call["bias"], fan_out)
    ctx.count(*x[:channel], *(x[channel + 1 :] if transposed else positions), *w)
    return (*x[:channel], fan_out, *positions)


def _slid_over(ctx: Context, call: Call, before: Dims, kernel: Dims) -> Dims:
    """The positions after a convolution; along a kernel of size 1 without stride or padding each stays by itself."""
    assert call.shape is not None
    steps = [_each(call.get(name, default), len(before)) for name, default in (("stride", 1), ("padding", 0))]
    result = []
    for axis, (dim, width) in enumerate(zip(before, call.shape[-len(before) :], strict=True)):
        alone = size(kernel[axis]) == 1 and [one[axis] for one in steps] == [1, 0] and size(dim) == width
        result += [dim] if alone else ctx.spatial((dim,), (width,))
    return tuple(result)


def _each(value: Any, count: int) -> Sequence[Any]:
    """A number for every axis; "same" and "valid" pad a kernel of size 1 by nothing."""
    if isinstance(value, str):
        return [0] * count
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


@rule("addmm", "baddbmm")
def addmm(ctx: Context, call: Call) -> Dims:
    """`b + x @ w`."""
    left, right = (call["mat1"], call["mat2"]) if call.name == "addmm" else (call["batch1"], call["batch2"])
    result = _matmul(ctx, left, right)
    shift = ctx.dims(call.first)
    for ours, theirs in zip(reversed(result), reversed(shift), strict=False):
        if size(theirs) != 1:
            ctx.unify(ours, theirs)
    ctx.produce(call.first, -1)
    return result


@rule("matmul", "mm", "bmm", "mv", "dot", "vdot", "linalg_matmul")
def matmul(ctx: Context, call: Call) -> Dims:
    """Batched matrix products, with vectors on either side."""
    if any(kind.endswith("SpectralNorm") for kind in _owner_types(call)):
        for node in ctx.tensors(call):
            for dim in ctx.dims(node):
                ctx.pin(dim, "is under a spectral norm, which every new row or column would change")
    return _matmul(ctx, call.at(0), call.at(1))


@rule("embedding")
def embedding(ctx: Context, call: Call) -> Dims:
    """Rows of `w[vocabulary, O]` by index."""
    return (*ctx.dims(call["indices"]), _embedded(ctx, call))


@rule("embedding_bag")
def embedding_bag(ctx: Context, call: Call) -> Value:
    """Rows added up (or averaged, or their maximum) in bags; three tensors of numbers come along."""
    for name in ("indices", "offsets", "per_sample_weights"):
        for dim in ctx.dims(call[name]) if call[name] is not None else ():
            ctx.pin(dim, "is a number of indices")
    width = _embedded(ctx, call)
    shapes = [tuple(value.shape) for value in call.node.meta["val"]]
    results = [[ctx.fixed(extent, "is a number of bags") for extent in shape] for shape in shapes]
    for i, shape in enumerate(shapes):
        if len(shape) == 2:
            results[i][1] = width
    return [tuple(result) for result in results]


@rule("embedding_renorm_")
def embedding_renorm(ctx: Context, call: Call) -> Dims:
    """Rows that are too long are shortened."""
    w = ctx.dims(call.first)
    ctx.flag(w[1], f"{call.name} runs over it")
    return w


@rule("bilinear")
def bilinear(ctx: Context, call: Call) -> Dims:
    """`x1[..., I] w[O, I, J] x2[..., J] + b[O]`."""
    x1, x2, w = ctx.dims(call["input1"]), ctx.dims(call["input2"]), ctx.dims(call["weight"])
    for x, axis in ((x1, 1), (x2, 2)):
        ctx.unify(x[-1], w[axis])
        _contract(ctx, call["weight"], axis, w[axis])
    for one, other in zip(x1[:-1], x2[:-1], strict=True):
        ctx.unify(one, other)
    ctx.produce(call["weight"], 0)
    _bias(ctx, call["bias"], w[0])
    return (*x1[:-1], w[0])


@rule("scaled_dot_product_attention")
def attention(ctx: Context, call: Call) -> Dims:
    """`softmax(q k^T / sqrt(D) + mask) v` with `q[..., L, D] k[..., S, D] v[..., S, E]`."""
    q, k, v = (ctx.dims(call[name]) for name in ("query", "key", "value"))
    ctx.unify(q[-1], k[-1])
    ctx.unify(k[-2], v[-2])
    for of_q, of_k, of_v in zip(q[:-2], k[:-2], v[:-2], strict=True):
        for one, other in ((of_q, of_k), (of_k, of_v)):
            if size(one) == size(other):
                ctx.unify(one, other)
            else:
                ctx.pin(one, "is repeated for several query heads")
                ctx.pin(other, "is repeated for several query heads")
    ctx.flag(q[-1], "the scale of attention depends on it (1/sqrt of the head size)")
    ctx.flag(k[-2], "softmax runs over it")
    mask = call.get("attn_mask")
    if mask is not None:
        for ours, theirs in zip(reversed((*q[:-1], k[-2])), reversed(ctx.dims(mask)), strict=False):
            if size(theirs) == size(ours):
                ctx.unify(ours, theirs)
    ctx.count(*q, k[-2])
    ctx.count(*q[:-1], k[-2], v[-1])
    return (*q[:-1], v[-1])


@rule("einsum")
def einsum(ctx: Context, call: Call) -> Dims:
    """One width per letter; a letter that the result lacks is contracted."""
    operands = list(call["tensors"])
    terms, result = _einsum_labels(call["equation"], [len(ctx.dims(node)) for node in operands])
    if any(len(set(labels)) < len(labels) for labels in (*terms, result)):
        raise NoRule  # a diagonal
    widths: dict[str, Dim] = {}
    for node, labels in zip(operands, terms, strict=True):
        for label, dim in zip(labels, ctx.dims(node), strict=True):
            if label not in widths or size(widths[label]) == 1:
                widths[label] = dim
            elif size(dim) != 1:
                ctx.unify(widths[label], dim)
    for node, labels in zip(operands, terms, strict=True):
        for axis, label in enumerate(labels):
            if label in result:
                ctx.produce(node, axis)
    contracted = [label for label in widths if label not in result]
    for label in contracted:
        places = [(node, labels.index(label)) for node, labels in zip(operands, terms, strict=True) if label in labels]
        contract_first(ctx, [(node, axis) for node, axis in places if size(ctx.dims(node)[axis]) != 1])
    if contracted and len(operands) == 2:
        ctx.count(*widths.values())
    return tuple(widths[label] for label in result)


def _owner_types(call: Call) -> list[str]:
    """The names of the types of the modules whose forward runs the call."""
    return [str(kind) for _, kind in (call.node.meta.get("nn_module_stack") or {}).values()]


def _embedded(ctx: Context, call: Call) -> Dim:
    w = ctx.dims(call["weight"])
    ctx.pin(w[0], "is the vocabulary of an embedding")
    ctx.produce(call["weight"], 1)
    return w[1]


def _matmul(ctx: Context, left: Any, right: Any) -> Dims:
    a, b = ctx.dims(left), ctx.dims(right)
    inner = -2 if len(b) > 1 else -1
    ctx.unify(a[-1], b[inner])
    contract_first(ctx, [(left, -1), (right, inner)])
    rows, columns = a[-2:-1], (b[-1:] if len(b) > 1 else ())
    if rows:
        ctx.produce(left, -2)
    if columns:
        ctx.produce(right, -1)
    batch = _broadcast(ctx, a[:-2], b[:-2])
    ctx.count(*batch, *rows, a[-1], *columns)
    return (*batch, *rows, *columns)


def _contract(ctx: Context, weight: Node, axis: int, dim: Dim) -> None:
    """The weight is silenced along `axis`; a weight that is computed cannot be."""
    if not ctx.consume(weight, axis):
        ctx.flag(dim, COMPUTED)


def contract_first(ctx: Context, operands: list[tuple[Node, int]]) -> None:
    """Silence the first operand that is a parameter; what it is contracted with then makes its units."""
    silenced = next(((node, axis) for node, axis in operands if ctx.consume(node, axis)), None)
    if silenced is None and operands:
        node, axis = operands[0]
        computed = any(one not in ctx.depends_on_input for one, _ in operands)
        ctx.flag(ctx.dims(node)[axis], COMPUTED if computed else "is contracted between two activations")
    for node, axis in operands:
        if (node, axis) != silenced:
            ctx.produce(node, axis)


def _grouped(ctx: Context, call: Call, channels: Dim, w: Dims, transposed: bool) -> Dim:
    """Unify for a grouped convolution and return the fan-out; the number of groups is a width of its own."""
    count = call["groups"]
    groups, rest = free(count), free(size(w[0]) // count)
    ctx.unify(w[0], Product((groups, rest)))
    ctx.literal(groups, count)
    if transposed:
        ctx.unify(channels, w[0])
        return Product((groups, w[1]))
    ctx.unify(channels, Product((groups, w[1])))
    return w[0]


def _bias(ctx: Context, bias: Any, fan_out: Dim) -> None:
    if bias is not None:
        ctx.unify(ctx.dims(bias)[0], fan_out)
        ctx.produce(bias, 0)


def _broadcast(ctx: Context, a: Dims, b: Dims) -> Dims:
    """The batch dimensions of a product."""
    result = []
    for axis in range(-max(len(a), len(b)), 0):
        present = [dims[axis] for dims in (a, b) if len(dims) >= -axis and size(dims[axis]) != 1]
        if len(present) == 2:
            ctx.unify(*present)
        result.append(present[0] if present else ONE)
    return tuple(result)


def _einsum_labels(equation: str, ranks: list[int]) -> tuple[list[list[str]], list[str]]:
    """The label of every dimension of every operand and of the result; "..." becomes labels counted from the right."""
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    hidden = [rank - len(term.replace("...", "")) for term, rank in zip(terms, ranks, strict=True)]
    if "->" not in equation:
        letters = sorted(c for c in set(left) if c in string.ascii_letters and left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(letters)

    def labels(term: str, count: int) -> list[str]:
        before, dots, after = term.partition("...")
        return [*before, *([f"...{i}" for i in range(count, 0, -1)] if dots else []), *after]

    return [labels(*pair) for pair in zip(terms, hidden, strict=True)], labels(right, max(hidden, default=0))
