"""Heads that grow wider: keys get zeros for the new entries, and queries make up for a scale that follows the size.

The product of queries and keys is one contraction between activations, so neither side is a weight that could be
silenced. But zeros in the new entries of all keys leave every product as it was, and queries times sqrt(D' / D) undo a
scale of 1 / sqrt(D) that becomes 1 / sqrt(D'). Where it cannot be told which weights make the keys, zeros in the
queries do as well.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from growkit.graph.dimensions import Atom, index_map, leaves, siblings, size
from growkit.graph.records import Scale, Silence, ValueEdit
from growkit.graph.rules.context import Call, Context, TensorUse, shape_of
from growkit.graph.size_attributes import plain_numbers
from growkit.graph.tracing import owners_of

__all__ = ["HeadSize", "NoHeadSize", "head_size"]

SHAPES = frozenset({
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "permute", "transpose", "unbind", "split",
    "split_with_sizes", "chunk", "select", "slice", "squeeze", "unsqueeze", "contiguous", "clone", "expand", "to",
    "_to_copy", "alias", "detach", "movedim", "t", "type_as", "view_as", "reshape_as", "unfold", "pad",
    "constant_pad_nd", "roll", "flip", "amax", "amin", "max_pool1d", "max_pool2d", "max_pool3d",
})  # fmt: skip
"""Operations that only move entries or pick the largest, put zeros between them, and take out a positive factor."""

SCALINGS = frozenset({"mul", "mul_", "div", "div_"})

KEEPING = SCALINGS | {"to", "_to_copy", "alias", "detach", "type_as"}
"""Operations after which every entry stands where it stood."""

MAKERS = frozenset({"linear", "addmm", "conv1d", "conv2d", "batch_norm"})
"""A batch norm has a weight per channel too, and forgets the scale of what comes before."""


class NoHeadSize(Exception):
    """Queries or keys come about in a way that cannot be followed back to the rows of a weight."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of a weight (and of its bias), as positions under the sizes of the trace.

    Attributes:
        tensor: the weight or the bias.
        axis: the dimension of the rows.
        positions: the rows.
        sizes: the sizes of the atoms then.
    """

    tensor: TensorUse
    axis: int
    positions: frozenset[int]
    sizes: Mapping[Atom, int]

    def now(self, sizes: Mapping[Atom, int]) -> np.ndarray:
        """A mask over all positions under `sizes`: those that belong to the rows."""
        origin = siblings(self.tensor.dims[self.axis], sizes, self.sizes)
        return np.isin(origin, np.array(sorted(self.positions)))


@dataclass(frozen=True, eq=False)
class HeadSize:
    """What keeps one attention as it is when its heads grow wider.

    Attributes:
        queries: the rows that make queries, scaled if `rescale`.
        silent: the rows that make keys, or else the queries: their new ones are zero.
        rescale: whether the scale follows the size of the heads.
    """

    queries: tuple[Rows, ...]
    silent: tuple[Rows, ...]
    rescale: bool
    atom: Atom

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        """The edits for atoms taking new sizes."""
        edits: list[ValueEdit] = []
        if self.rescale:
            factor = math.sqrt(size(self.atom, sizes) / self.atom.size)
            for rows in self.queries:
                positions = np.flatnonzero(rows.now({}))
                edits.append(Scale(rows.tensor.names[0], rows.tensor.kind, rows.axis, positions, factor))
        for rows in self.silent:
            new = index_map(rows.tensor.dims[rows.axis], sizes) < 0
            edits.append(Silence(rows.tensor.names[0], rows.axis, np.flatnonzero(new & rows.now(sizes))))
        return edits


def head_size(ctx: Context, node: Node, atom: Atom, modules: Mapping[str, Any]) -> HeadSize:
    """The remedy for one product of queries and keys along `atom`.

    Raises:
        NoHeadSize: with the reason, as a clause of a sentence.
    """
    call = Call(node)
    if call.name == "scaled_dot_product_attention":
        query, key, rescale = call["query"], call["key"], call.get("scale") is None
        if atom in leaves(ctx.dims(key)[-2]):  # channels attend to one another
            raise NoHeadSize("new entries would change its result")
    elif call.name in ("matmul", "bmm"):
        query, key, rescale = call.at(0), call.at(1), _follows_the_size(ctx, node, atom, modules)
    elif call.name == "einsum" and len(call["tensors"]) == 2:
        query, key = call["tensors"]
        rescale = _follows_the_size(ctx, node, atom, modules)
    else:
        raise NoHeadSize("new entries would change its result")
    queries, error = _try_rows(ctx, query, atom)
    keys, missing = _try_rows(ctx, key, atom)
    if missing is not None and (error is not None or key not in ctx.depends_on_input):
        raise missing
    if error is not None and rescale:
        raise error
    return HeadSize(queries, keys or queries, rescale, atom)


def _try_rows(ctx: Context, node: Node, atom: Atom) -> tuple[tuple[Rows, ...], NoHeadSize | None]:
    try:
        return _rows(ctx, node, atom), None
    except NoHeadSize as error:
        return (), error


def _follows_the_size(ctx: Context, node: Node, atom: Atom, modules: Mapping[str, Any]) -> bool:
    """Whether products are scaled by a number computed from the size, and not by one that a module keeps."""
    near = [node, *node.users, *_upstream(node)]
    scalars = {abs(arg) for one in near for arg in one.args if isinstance(arg, float | int) and arg}
    scales = {atom.size**-0.5, atom.size**0.5, atom.size**-0.25, atom.size**0.25}
    used = [one for one in scalars if any(math.isclose(one, scale, rel_tol=1e-6) for scale in scales)]
    kept = [
        number
        for owner in owners_of(node)
        if owner in modules
        for _, number, _ in plain_numbers(modules[owner])
        if isinstance(number, float)
    ]
    return bool(used) and not any(math.isclose(one, number, rel_tol=1e-9) for one in used for number in kept)


def _upstream(node: Node) -> list[Node]:
    """The nodes a few steps before: queries are often scaled before the product."""
    found, level = [], [node]
    for _ in range(4):
        level = [source for one in level for source in one.all_input_nodes if source.op == "call_function"]
        found += level
    return found


def _rows(ctx: Context, node: Node, atom: Atom) -> tuple[Rows, ...]:
    """The rows of a weight, and of its bias, that the values of a node come from.

    The operations between only move entries, so they are run once more, on numbers that tell the row.
    """
    maker, path = _maker(node)
    call = Call(maker)
    shape = shape_of(maker.meta.get("val"))
    weight = ctx.weight(call["weight"] if call.name != "addmm" else call["mat2"])
    if shape is None or weight is None:
        raise NoHeadSize("is made by a weight that is computed in the forward")
    channel = 1 if call.name.startswith(("conv", "batch_norm")) else len(shape) - 1
    view = [1] * len(shape)
    view[channel] = -1
    labels = torch.arange(1.0, shape[channel] + 1).view(view).expand(shape)  # 0 is padding
    positions = frozenset(int(label) - 1 for label in _moved(path, maker, labels).unique().tolist() if label)
    axes = [0] if call.name == "batch_norm" else sorted(weight.tensor.producer_dims)
    axis = next(iter(axes), None)
    if axis is None or atom not in leaves(weight.tensor.dims[axis]):
        raise NoHeadSize("is not made by the rows of one weight")
    bias = ctx.weight(call.get("bias") if call.name != "addmm" else call.first)
    tensors = [(weight.tensor, axis)] + ([(bias.tensor, 0)] if bias is not None else [])
    return tuple(Rows(tensor, axis, positions, _sizes(tensor, axis)) for tensor, axis in tensors)


def _sizes(tensor: TensorUse, axis: int) -> dict[Atom, int]:
    return {atom: atom.size for atom in leaves(tensor.dims[axis])}


def _maker(node: Node) -> tuple[Node, list[Node]]:
    """The operation that multiplies with a weight, and the path from there."""
    path: list[Node] = []
    while node.op == "call_function":
        if node.target is operator.getitem:
            path.append(node)
            node = node.args[0]  # type: ignore[assignment]
            continue
        call = Call(node)
        if call.name in MAKERS:
            return node, path[::-1]
        scaling = call.name in SCALINGS and len(node.all_input_nodes) == 1
        if call.name not in SHAPES and not scaling:
            raise NoHeadSize(f"is changed by {call.name} between its weight and the product")
        path.append(node)
        node = call.first
    raise NoHeadSize("is not made by a weight")


def _moved(path: list[Node], start: Node, labels: torch.Tensor) -> torch.Tensor:
    """The labels after the operations of the path."""
    values: dict[Node, Any] = {start: labels}
    for node in path:
        if node.target is operator.getitem:
            values[node] = values[node.args[0]][node.args[1]]  # type: ignore[index]
            continue
        if (call := Call(node)).name in KEEPING:
            values[node] = values[call.first]
            continue
        if call.name in ("view", "_unsafe_view", "view_as", "reshape_as"):  # labels may lie otherwise in memory
            values[node] = values[call.first].reshape(call.shape)
            continue
        args, kwargs = torch.fx.map_arg((node.args, node.kwargs), lambda one: values[one])  # type: ignore[arg-type]
        values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
    return values[path[-1]] if path else labels
