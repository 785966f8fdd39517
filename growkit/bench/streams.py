"""Residual streams of transformers: widths that layer or RMS norms read, and to which branches are added."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

from torch.fx import Node

from growkit.graph import GrowthSite, ModelGraph
from growkit.graph.dimensions import Atom, Dim, leaves, size, structure
from growkit.graph.norms import find_norms
from growkit.graph.rules.context import Call, Context

__all__ = ["streams_of", "verified_streams"]

FEWEST_BRANCHES = 2  # an embedding plus its positions is one addition, and no stream yet

Stream = tuple[Atom, ...]
"""The sizes of which the width is made: one, or heads and their size."""


def streams_of(graph: ModelGraph) -> dict[Stream, int]:
    """Every residual stream of a model that attends, with its width; empty where nothing attends.

    A width counts where at least two additions of two activations yield it and a layer norm or an RMS norm reads it,
    unless it is the model's output too: what a model without a head returns may not change its size.
    """
    ctx = graph.contexts[1]  # in eval mode
    if not any(_attends(node) for node in ctx.values):
        return {}
    normed = {structure(dim) for norm in find_norms(ctx) for dim in norm.dims}
    added = Counter[Any]()
    found: dict[Any, tuple[Stream, int]] = {}
    for node in ctx.values:
        for dim in _sum_of_activations(ctx, node):
            key = structure(dim)
            if key in normed and size(dim) > 1 and not _is_output(dim):
                added[key] += 1
                found[key] = tuple(leaves(dim)), size(dim)
    return dict(found[key] for key, count in added.items() if count >= FEWEST_BRANCHES)


def verified_streams(streams: Collection[Stream], sites: Sequence[GrowthSite]) -> list[Stream]:
    """The streams that some site widens."""
    growing = {atom for site in sites for atom in site.atoms}
    return [stream for stream in streams if growing.intersection(stream)]


def _is_output(dim: Dim) -> bool:
    return any("is the model's output" in reason.text for atom in leaves(dim) for reason in atom.pins)


def _attends(node: Node) -> bool:
    return node.op == "call_function" and Call(node).name in ("scaled_dot_product_attention", "softmax", "_softmax")


def _sum_of_activations(ctx: Context, node: Node) -> tuple[Any, ...]:
    """The dimensions of `x + branch(x)`; nothing for other nodes, nor where a parameter is added."""
    if node.op != "call_function" or Call(node).name not in ("add", "add_"):
        return ()
    terms = node.all_input_nodes
    if len(terms) != 2 or any(ctx.weight(term) is not None for term in terms):
        return ()
    shapes = {tuple(term.meta["val"].shape) for term in terms}
    dims = ctx.values[node]
    return dims if len(shapes) == 1 and isinstance(dims, tuple) else ()
