"""Operations in place: what shares memory with the written tensor changes with it."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import replace

from torch.fx import Node

from growkit.graph.rules.context import Call, Context
from growkit.graph.rules.elementwise import KEEP_ZEROS

__all__ = ["note_writes"]

HARMLESS = frozenset({"zero_", "t_", "transpose_", "swapaxes_", "swapdims_", "squeeze_", "unsqueeze_"})
"""Zeros stay zeros, for all entries become zero or none is written to."""


def note_writes(ctx: Context, call: Call) -> None:
    """After a call: a weight that was written to is a weight no more, unless its zeros are still zeros.

    The widths themselves need no care: a view shares its dimensions with what it is a view of.
    """
    written = [node for node in _arguments(call.node, written=True) if isinstance(ctx.values.get(node), tuple)]
    if not written:
        return
    if call.node in ctx.depends_on_input:
        ctx.depends_on_input.update(one for node in written for one in _sources(ctx, node))
    if call.name.rstrip("_") in KEEP_ZEROS or call.name in HARMLESS:
        return
    storages = {_storage(ctx, node) for node in written} & (ctx.weights.keys() | ctx.parts.keys())
    for table in (ctx.weights, ctx.parts):
        for node, view in list(table.items()) if storages else ():
            if view.tensor.kind == "parameter" and _storage(ctx, node) in storages:
                del table[node]
                ctx.parts[node] = replace(view, keeps_zeros=False)


def _arguments(node: Node, *, written: bool) -> Iterator[Node]:
    """The arguments that share memory with the result; only those written to if asked."""
    schema = getattr(node.target, "_schema", None)
    for i, argument in enumerate(schema.arguments if schema else ()):
        value = node.args[i] if i < len(node.args) else node.kwargs.get(argument.name)
        alias = argument.alias_info
        if isinstance(value, Node) and alias is not None and (alias.is_write or not written):
            yield value


def _sources(ctx: Context, node: Node) -> Iterator[Node]:
    """The node, what it is a view of, and so on to the tensor that owns the memory."""
    current: Node | None = node
    while current is not None:
        yield current
        if current.target is operator.getitem:
            current = current.args[0]  # type: ignore[assignment]
        else:
            current = ctx.outer.get(current) or next(_arguments(current, written=False), None)


def _storage(ctx: Context, node: Node) -> Node:
    *_, owner = _sources(ctx, node)
    return owner
