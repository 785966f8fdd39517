"""Recognise the plain case: one weight, element-wise operations, one weight."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import Node

from growkit.graph.dimensions import size
from growkit.graph.records import Chain
from growkit.graph.rules.context import Call, Context, TensorUse, shape_of

__all__ = ["find_chain", "makers_of_one"]

DENSE = frozenset({"linear", "conv1d", "conv2d", "conv3d"})

UNIT_BY_UNIT = frozenset({
    "batch_norm", "leaky_relu", "dropout", "dropout_", "feature_dropout", "alpha_dropout", "gelu", "relu6", "clone",
    "contiguous", "silu", "selu", "selu_", "softsign", "to", "_to_copy", "alias", "detach",
})  # fmt: skip
"""Operations besides those that torch tags as pointwise."""


def find_chain(producer: TensorUse, consumer: TensorUse, contexts: Sequence[Context]) -> Chain | None:
    """The chain from one weight to another, if every trace runs straight from the one to the other."""
    paths = [_path(producer, consumer, ctx) for ctx in contexts]
    if any(path is None for path in paths):
        return None
    return Chain(producer.names[0], consumer.names[0], tuple(paths[0] or ()))


def makers_of_one(ctx: Context) -> list[TensorUse]:
    """The dense weights that make a single unit that another dense weight reads, unit by unit between them."""
    found = []
    for node in ctx.values:
        if _dense_weight(node, ctx, 1) is None:
            continue
        source = Call(node).first
        while isinstance(source, Node) and source.op == "call_function":
            if (maker := _dense_weight(source, ctx, 0)) is not None:
                found.append(maker)
            call = Call(source)
            pointwise = torch.Tag.pointwise in getattr(source.target, "tags", ())
            if maker is not None or not (pointwise or call.name in UNIT_BY_UNIT):
                break
            source = call.first
    return found


def _dense_weight(node: Node, ctx: Context, axis: int) -> TensorUse | None:
    """The parameter of a dense operation whose dimension `axis` has size 1."""
    if node.op != "call_function" or Call(node).name not in DENSE or Call(node).get("groups", 1) != 1:
        return None
    view = ctx.weight(Call(node)["weight"])
    plain = view is not None and view.tensor.kind == "parameter" and view.positions[:2] == (0, 1)
    return view.tensor if view is not None and plain and size(view.tensor.dims[axis]) == 1 else None


def _path(producer: TensorUse, consumer: TensorUse, ctx: Context) -> list[str] | None:
    start, end = _only_use(producer, ctx), _only_use(consumer, ctx)
    if start is None or end is None or not (_is_dense(start, producer, ctx) and _is_dense(end, consumer, ctx)):
        return None
    region, path = {start}, []
    for node in start.graph.nodes:
        sources = [source for source in node.all_input_nodes if source in region]
        if not sources:
            continue
        if node is end:
            return path if Call(end).first in region and len(sources) == 1 else None
        call = Call(node)
        if node.op != "call_function" or not _is_unit_by_unit(call, start, region, ctx):
            return None
        region.add(node)
        path.append(call.name.rstrip("_"))
    return None


def _only_use(tensor: TensorUse, ctx: Context) -> Node | None:
    """The one operation that takes the weight."""
    users = [
        user
        for node, view in ctx.weights.items()
        if node.op == "placeholder" and view.tensor is tensor
        for user in node.users
    ]
    return users[0] if len(users) == 1 else None


def _is_dense(node: Node, weight: TensorUse, ctx: Context) -> bool:
    call = Call(node)
    if call.name not in DENSE or call.get("groups", 1) != 1:
        return False
    view = ctx.weight(call["weight"])
    return view is not None and view.tensor is weight


def _is_unit_by_unit(call: Call, start: Node, region: set[Node], ctx: Context) -> bool:
    """Whether an operation inside the chain keeps the shape and reads nothing but the chain and constants."""
    if call.name != "batch_norm" and not set(ctx.tensors(call)) <= region:
        return False
    pointwise = torch.Tag.pointwise in getattr(call.node.target, "tags", ())
    same_shape = call.shape is not None and call.shape == shape_of(start.meta.get("val"))
    return same_shape and (pointwise or call.name in UNIT_BY_UNIT)
