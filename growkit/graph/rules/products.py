"""Rarer products of tensors, told as contractions: outer, inner and chained products, products with a sum added."""

from __future__ import annotations

import itertools

from growkit.graph.dimensions import ONE, Dim, Product, size
from growkit.graph.rules.context import Call, Context, Dims, NoRule
from growkit.graph.rules.contraction import contract_first
from growkit.graph.rules.elementwise import aligned
from growkit.graph.rules.registry import rule

__all__ = ["add_product", "chain", "inner", "kron", "outer", "tensordot"]


@rule("outer", "ger", "linalg_outer")
def outer(ctx: Context, call: Call) -> Dims:
    """`a[N] b[M]` gives `[N, M]`."""
    (rows,), (columns,) = ctx.dims(call.at(0)), ctx.dims(call.at(1))
    for node in (call.at(0), call.at(1)):
        ctx.produce(node, 0)
    ctx.count(rows, columns)
    return rows, columns


@rule("inner")
def inner(ctx: Context, call: Call) -> Dims:
    """`a[..., I] b[..., I]` contracted over the last dimensions."""
    return _contract(ctx, call, [-1], [-1])


@rule("tensordot")
def tensordot(ctx: Context, call: Call) -> Dims:
    """Several pairs of dimensions contracted at once."""
    return _contract(ctx, call, call["dims_self"], call["dims_other"])


@rule("linalg_multi_dot", "chain_matmul")
def chain(ctx: Context, call: Call) -> Dims:
    """A product of matrices, the first and the last of which may be vectors."""
    nodes = list(call.first)  # type: ignore[call-overload]
    for left, right in itertools.pairwise(nodes):
        ctx.unify(ctx.dims(left)[-1], ctx.dims(right)[0])
        contract_first(ctx, [(right, 0), (left, -1)])
        ctx.count(*ctx.dims(left), *ctx.dims(right)[1:])
    first, last = ctx.dims(nodes[0]), ctx.dims(nodes[-1])
    if len(last) > 1:
        ctx.produce(nodes[-1], 1)
    return (*first[:-1], *last[1:])


@rule("kron")
def kron(ctx: Context, call: Call) -> Dims:
    """Every entry of the first times the whole second: each dimension is a product."""
    a, b = ctx.dims(call.at(0)), ctx.dims(call.at(1))
    rank = max(len(a), len(b))
    pairs = zip((ONE,) * (rank - len(a)) + a, (ONE,) * (rank - len(b)) + b, strict=True)
    for node, dims in ((call.at(0), a), (call.at(1), b)):
        for axis in range(len(dims)):
            ctx.produce(node, axis)
    return tuple(Product(pair) for pair in pairs)


@rule("addmv", "addbmm", "addr")
def add_product(ctx: Context, call: Call) -> Dims:
    """`b + A x`, `b + sum of A_i B_i`, `b + x y^T`."""
    if call.shape is None:
        raise NoRule
    left, right = call.at(1), call.at(2)
    a, b = ctx.dims(left), ctx.dims(right)
    pairs = {"addmv": [(1, 0)], "addbmm": [(0, 0), (2, 1)], "addr": []}[call.name]
    for one, other in pairs:
        ctx.unify(a[one], b[other])
        contract_first(ctx, [(left, one), (right, other)])
    ctx.count(*a, *(dim for axis, dim in enumerate(b) if axis not in [other for _, other in pairs]))
    rest = _rest(a, [one for one, _ in pairs]) + _rest(b, [other for _, other in pairs])
    for node, dims, used in ((left, a, 0), (right, b, 1)):
        for axis in set(range(len(dims))) - {pair[used] for pair in pairs}:
            ctx.produce(node, axis)
    ctx.produce(call.first, -1)
    return aligned(ctx, [rest, ctx.dims(call.first)], call.shape)


def _contract(ctx: Context, call: Call, of_first: list[int], of_second: list[int]) -> Dims:
    left, right = call.at(0), call.at(1)
    a, b = ctx.dims(left), ctx.dims(right)
    pairs = [(one % len(a), other % len(b)) for one, other in zip(of_first, of_second, strict=True)]
    for one, other in pairs:
        if size(a[one]) != size(b[other]):
            raise NoRule  # one of them is broadcast
        ctx.unify(a[one], b[other])
        contract_first(ctx, [(left, one), (right, other)])
    for node, dims, used in ((left, a, 0), (right, b, 1)):
        for axis in set(range(len(dims))) - {pair[used] for pair in pairs}:
            ctx.produce(node, axis)
    rest = _rest(b, [other for _, other in pairs])
    ctx.count(*a, *rest)
    return _rest(a, [one for one, _ in pairs]) + rest


def _rest(dims: Dims, without: list[int]) -> tuple[Dim, ...]:
    return tuple(dim for axis, dim in enumerate(dims) if axis not in without)
