"""The traced module as a networkx graph, to draw or to search."""

from __future__ import annotations

import networkx as nx
from torch.fx import Node

from growkit.graph.dimensions import size
from growkit.graph.rules.context import Context, Value
from growkit.graph.tracing import Trace, location_of, owners_of

__all__ = ["to_networkx"]


def to_networkx(trace: Trace, ctx: Context) -> nx.DiGraph:
    """Nodes are operations, inputs and tensors of the module; edges carry the shape of what flows.

    Node attributes: `kind` ("op", "parameter", "buffer", "input", "constant", "output"), `op` or `name`, `module`
    (the innermost owner) and `location`. Edge attribute: `shape` at the present widths.
    """
    graph = nx.DiGraph()
    for node in trace.graph.nodes:
        graph.add_node(node.name, **_attributes(node, trace))
        for source in node.all_input_nodes:
            graph.add_edge(source.name, node.name, shape=_shape(ctx.values.get(source)))
    return graph


def _attributes(node: Node, trace: Trace) -> dict[str, object]:
    if node.op == "placeholder":
        source = trace.sources[node.name]
        return {"kind": source.kind, "name": source.name}
    if node.op != "call_function":
        return {"kind": "output" if node.op == "output" else "constant", "name": node.name}
    return {
        "kind": "op",
        "op": str(node.target),
        "module": next(iter(owners_of(node)), ""),
        "location": location_of(node),
    }


def _shape(value: Value) -> object:
    if isinstance(value, tuple):
        return tuple(size(dim) for dim in value)
    return [_shape(item) for item in value] if isinstance(value, list) else None
