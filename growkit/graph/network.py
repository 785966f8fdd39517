"""The traced module as a networkx graph, to draw, to search or to write as GraphML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import networkx as nx
from torch.fx import Node

from growkit.errors import ModelError
from growkit.graph.dimensions import Atom, Dim, Sum, leaves, resolve, size
from growkit.graph.growth_site import GrowthSite, role_of
from growkit.graph.rules.context import Context, TensorUse
from growkit.graph.tracing import Trace, location_of, owners_of

if TYPE_CHECKING:
    from growkit.graph.model_graph import ModelGraph

__all__ = ["EDGE_ATTRIBUTES", "NODE_ATTRIBUTES", "network_of", "to_networkx", "write_graphml"]

NODE_ATTRIBUTES = {
    "kind": "str",
    "name": "str",
    "op": "str",
    "module": "str",
    "location": "str",
    "shape": "tuple[int, ...]",
    "dims": "tuple[str, ...]",
    "sites": "tuple[tuple[str, ...], ...]",
    "refused": "tuple[str, ...]",
    "roles": "tuple[str, ...]",
}
"""Name and type of every attribute of a node; `to_networkx` says what each means."""

EDGE_ATTRIBUTES = {name: NODE_ATTRIBUTES[name] for name in ("shape", "dims", "sites", "refused")}
"""Name and type of every attribute of an edge."""


def network_of(graph: ModelGraph) -> nx.DiGraph:
    """The network of a traced module, with its growth sites; see `to_networkx`."""
    return to_networkx(graph._trace, graph.contexts[0], graph.sites)


def to_networkx(trace: Trace, ctx: Context, sites: Iterable[GrowthSite] = ()) -> nx.DiGraph:
    """The operations of one forward pass in train mode and the tensors they read, in the order of the pass.

    Every node has all of these attributes; what does not apply is empty.

        kind (str): "op", "parameter", "buffer", "input", "constant" or "output".
        name (str): of a tensor, its name in the module; of an input, the argument; of an operation, the node's own.
        op (str): the ATen operation with its overload, such as "aten.linear.default"; of operations only.
        module (str): the innermost module whose forward runs the operation, or that owns the tensor; "" is the root.
        location (str): "file:line" of the user's code that runs the operation, or first uses the tensor.
        shape (tuple[int, ...]): the size of each dimension, at the present widths.
        dims (tuple[str, ...]): each dimension as an expression over sites and numbers: "conv2 * 49", "left + right".
        sites (tuple[tuple[str, ...], ...]): for each dimension the names of the sites that move it.
        refused (tuple[str, ...]): for each dimension why it cannot grow; "" where a site moves it, and for size 1.
        roles (tuple[str, ...]): of parameters and buffers, for each dimension what it is to its sites: "producer",
            "consumer" or "pass_through"; "" where no site moves it.

    The attributes per dimension are equally long. They are empty for what is no tensor, such as an operation that
    yields several; the nodes that take its parts have them. An edge leads from what is read to what reads it, and has
    `shape`, `dims`, `sites` and `refused` of what flows.

    Args:
        trace: the operations.
        ctx: their dimensions.
        sites: the widths that can grow, by which dimensions are named.
    """
    names = {atom: site.name for site in sites for atom in site.atoms}
    graph = nx.DiGraph()
    for node in trace.graph.nodes:
        graph.add_node(node.name, **_identity(node, trace, ctx), **_dimensions(node, ctx, names), roles=())
        if node in ctx.weights and node.op == "placeholder":
            graph.nodes[node.name]["roles"] = _roles(ctx.weights[node].tensor, names)
        for source in node.all_input_nodes:
            graph.add_edge(source.name, node.name, **_dimensions(source, ctx, names))
    return graph


def write_graphml(graph: nx.DiGraph, path: str | Path) -> None:
    """Write a network as GraphML, which knows only text, numbers and truth values.

    Tuples and lists become JSON text, so that `json.loads` gives them back (as lists); characters that XML forbids
    become U+FFFD.

    Raises:
        ModelError: an attribute is neither text, a number, a truth value nor a tuple or list of such.
        OSError: the file cannot be written.
    """
    plain = nx.DiGraph()
    for name, data in graph.nodes(data=True):
        plain.add_node(name, **_plain(data))
    for source, target, data in graph.edges(data=True):
        plain.add_edge(source, target, **_plain(data))
    nx.write_graphml(plain, path)


def _identity(node: Node, trace: Trace, ctx: Context) -> dict[str, str]:
    if node.op == "placeholder":
        source = trace.sources[node.name]
        record = ctx.weights[node].tensor if node in ctx.weights else None
        owner = source.name.rpartition(".")[0] if source.kind in ("parameter", "buffer") else ""
        return _named(source.kind, source.name, module=owner, location=(record.location if record else None) or "")
    if node.op != "call_function":
        return _named("output" if node.op == "output" else "constant", node.name)
    module = next(iter(owners_of(node)), "")
    return _named("op", node.name, op=str(node.target), module=module, location=location_of(node) or "")


def _named(kind: str, name: str, *, op: str = "", module: str = "", location: str = "") -> dict[str, str]:
    return {"kind": kind, "name": name, "op": op, "module": module, "location": location}


def _dimensions(node: Node, ctx: Context, names: Mapping[Atom, str]) -> dict[str, tuple]:
    """What the edges of a node carry; the same four attributes for the node itself."""
    value = ctx.values.get(node)
    dims = value if isinstance(value, tuple) else ()
    return {
        "shape": tuple(size(dim) for dim in dims),
        "dims": tuple(_expression(resolve(dim), names) for dim in dims),
        "sites": tuple(_sites(dim, names) for dim in dims),
        "refused": tuple(_reason(dim, names) for dim in dims),
    }


def _expression(dim: Dim, names: Mapping[Atom, str]) -> str:
    if isinstance(dim, Atom):
        return names.get(dim, str(dim.size))
    if isinstance(dim, Sum):
        return " + ".join(_expression(part, names) for part in dim.segments)
    parts = [_expression(part, names) for part in dim.factors]
    grouped = [f"({text})" if isinstance(part, Sum) else text for part, text in zip(dim.factors, parts, strict=True)]
    return " * ".join(grouped) or "1"


def _sites(dim: Dim, names: Mapping[Atom, str]) -> tuple[str, ...]:
    return tuple(names[atom] for atom in leaves(dim) if atom in names)


def _reason(dim: Dim, names: Mapping[Atom, str]) -> str:
    atoms = [atom for atom in leaves(dim) if atom.size > 1]
    if not atoms or _sites(dim, names):
        return ""
    texts = [reason.text for atom in atoms for reason in atom.pins or atom.flags]
    return texts[0] if texts else "has no weight that makes its units, or none that reads them"


def _roles(record: TensorUse, names: Mapping[Atom, str]) -> tuple[str, ...]:
    return tuple(role_of(record, axis) if _sites(dim, names) else "" for axis, dim in enumerate(record.dims))


def _plain(data: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    return {name: _plain_value(name, value) for name, value in data.items()}


def _plain_value(name: str, value: Any) -> str | int | float | bool:
    if isinstance(value, (tuple, list)):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):
        return _FORBIDDEN.sub("\ufffd", value)
    if isinstance(value, (bool, int, float)):
        return value
    raise ModelError(
        f"GraphML holds text, numbers, truth values, and tuples of them as JSON, got {type(value).__name__} for "
        f"{name!r}; convert it first"
    )


_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
