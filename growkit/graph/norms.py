"""Recognise normalisations over units: torch's own operations and the forms that people write by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch.fx import Node

from growkit.graph.dimensions import Dim
from growkit.graph.rules.context import Call, Context, WeightView
from growkit.graph.tracing import owners_of

__all__ = ["NormCall", "find_norms"]

CASTS = frozenset({"to", "_to_copy", "type_as", "contiguous", "clone", "alias", "detach"})


@dataclass(frozen=True, eq=False)
class NormCall:
    """One normalisation: `(x - mean) / sqrt(var + eps) * weight + bias`, or without the mean.

    Attributes:
        centred: True for a layer norm, False for a root-mean-square norm.
        input: the node that is normalised.
        output: the node whose value is normalised; the gain may already be in it.
        inner: the nodes that belong to a norm written by hand, the output and its gain among them.
        dims: the normalised dimensions.
        gains: the weights that multiply the output; empty if there is none.
        eps: what is added to the variance, None where torch chooses it.
        owners: the modules around it, innermost first.
    """

    centred: bool
    input: Node
    output: Node
    inner: frozenset[Node]
    dims: tuple[Dim, ...]
    gains: tuple[WeightView, ...]
    eps: float | None
    owners: tuple[str, ...] = field(default=())


def find_norms(ctx: Context) -> list[NormCall]:
    """All normalisations of a trace that can be told by their form."""
    return [norm for node in ctx.values if (norm := _torch_norm(ctx, node) or _written_norm(ctx, node)) is not None]


def _torch_norm(ctx: Context, node: Node) -> NormCall | None:
    if node.op != "call_function" or (call := Call(node)).name not in ("layer_norm", "rms_norm"):
        return None
    dims = ctx.dims(call.first)
    gain = ctx.weight(call.get("weight"))
    return NormCall(
        centred=call.name == "layer_norm",
        input=call.first,
        output=node,
        inner=frozenset({node}),
        dims=dims[len(dims) - len(call["normalized_shape"]) :],
        gains=() if gain is None else (gain,),
        eps=call.get("eps"),
        owners=owners_of(node),
    )


def _written_norm(ctx: Context, node: Node) -> NormCall | None:
    """`mean(x^2)` or `mean((x - mean(x))^2)`, plus eps, its root, x divided by it."""
    square = _argument(node, "mean")
    centred = _squared(square)
    if square is None or centred is None:
        return None
    statistic = Call(node)
    dim = statistic.get("dim")
    axes = [dim] if isinstance(dim, int) else dim
    if not axes or not statistic.get("keepdim"):
        return None
    root, eps, path = _root(node)
    subject, first = _without_mean(centred)
    divided, numerator = (None, None) if root is None else _divided(root, centred)
    if divided is None or numerator is None:
        return None
    dims = ctx.dims(subject)
    gain, outputs = _gain(ctx, divided)
    return NormCall(
        centred=first is not None,
        input=subject,
        output=outputs[-1],
        inner=frozenset({node, square, centred, numerator, *path, *outputs} | ({first} if first is not None else set()))
        - {subject},
        dims=tuple(dims[axis % len(dims)] for axis in axes),
        gains=() if gain is None else (gain,),
        eps=eps,
        owners=owners_of(node),
    )


def _argument(node: Any, *names: str) -> Node | None:
    """The first argument of a call of one of the operations."""
    if not isinstance(node, Node) or node.op != "call_function":
        return None
    call = Call(node)
    return call.first if call.name in names and isinstance(call.first, Node) else None


def _squared(node: Node | None) -> Node | None:
    if node is None or node.op != "call_function":
        return None
    call = Call(node)
    if call.name == "pow" and call.at(1) == 2:
        return call.first
    if call.name == "mul" and call.at(0) is call.at(1):
        return call.first
    return call.first if call.name == "square" else None


def _root(variance: Node) -> tuple[Node | None, float | None, list[Node]]:
    """The node `rsqrt(variance + eps)` or `sqrt(variance + eps)`, the eps, and the nodes on the way."""
    for user in variance.users:
        call = Call(user)
        added = call.at(1) if call.name in ("add", "add_") else None
        if isinstance(added, float | int):
            for root in user.users:
                if _argument(root, "rsqrt", "sqrt") is user:
                    return root, float(added), [user, root]
    return None, None, []


def _without_mean(node: Node) -> tuple[Node, Node | None]:
    """For `x - mean(x)` the node x and the node of the mean; for anything else the node itself."""
    minuend = _argument(node, "sub", "sub_")
    mean = Call(node).at(1) if minuend is not None else None
    if minuend is not None and isinstance(mean, Node) and _argument(mean, "mean") is minuend:
        return minuend, mean
    return node, None


def _divided(root: Node, subject: Node) -> tuple[Node | None, Node | None]:
    """The product of the subject with the inverse root, or its quotient with the root, and the subject in it."""
    wanted = ("mul", "mul_") if Call(root).name == "rsqrt" else ("div", "div_")
    for user in root.users:
        if Call(user).name in wanted:
            for source in user.all_input_nodes:
                if _alike(_uncast(source), _uncast(subject)):
                    return user, source
    return None, None


def _alike(one: Node, other: Node) -> bool:
    """The same node, or the same difference written twice."""
    return one is other or (_argument(one, "sub") is not None and (one.target, one.args) == (other.target, other.args))


def _uncast(node: Node) -> Node:
    while (source := _argument(node, *CASTS)) is not None:
        node = source
    return node


def _gain(ctx: Context, node: Node) -> tuple[WeightView | None, list[Node]]:
    """The weight that multiplies the normalised value next, and the nodes up to there."""
    path = [node]
    for last in _only_users(node):
        path.append(last)
        views = [ctx.weight(source) for source in last.all_input_nodes if source not in path]
        if Call(last).name in ("mul", "mul_") and views and views[0] is not None:
            return views[0], path
    return None, [node]


def _only_users(node: Node) -> Iterator[Node]:
    """The chain of single users through casts, and the first user that is no cast."""
    while len(users := [user for user in node.users if "_assert" not in str(user.target)]) == 1:
        node = users[0]
        if node.op != "call_function":
            return
        yield node
        if Call(node).name not in CASTS:
            return
