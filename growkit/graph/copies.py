"""Growth by whole copies: what is exact where statistics run over units and neither zeros nor means are.

Every new unit is a copy of an old one, and each old one is copied equally often: a mean, a variance, a largest entry
over the units stay what they were, and so does all that is computed from them unit by unit. What contracts the units
against weights reads zeros in the place of the copies. A soft-max over the units gives each copy a part of the weight,
and what it weighs is copied too: channels that attend to channels stay what they were. A sum or a norm does change.

The copies part at the first step, for the weights that read them differ: the old unit has its own, one copy zeros,
several copies shares of the old that add up to nothing (Net2Net copies units likewise, Chen et al. 2016, but divides
what reads them by the number of copies, so that noise must part them).
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch.fx import Node

from growkit.graph.dimensions import Atom, Dim, Product, copy_origins, leaves, resolve, same
from growkit.graph.records import AttributeEdit, Copy, Share, ValueEdit
from growkit.graph.rules.context import Call, Context, Flagged, TensorUse

__all__ = ["CopyRemedy", "copy_remedy"]

MOMENTS = frozenset({
    "layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "mean", "nanmean",
})  # fmt: skip
"""What does not see how often entries occur, as long as all occur equally often."""

VARIANCES = frozenset({"var", "std", "var_mean", "std_mean"})

EXTREMES = frozenset({"max", "min", "amax", "amin", "aminmax"})

STEPS = frozenset({
    "eq", "ne", "lt", "le", "gt", "ge", "sign", "sgn", "floor", "ceil", "round", "trunc", "heaviside", "isclose",
    "logical_not", "nonzero", "fmod", "remainder", "floor_divide",
})  # fmt: skip
"""Functions with steps: they would tell a unit from a copy that is equal up to rounding."""

SOFTMAXES = frozenset({"softmax", "_softmax"})

WEIGHTS_KEPT = frozenset({
    "dropout", "dropout_", "to", "_to_copy", "type_as", "contiguous", "clone", "alias", "expand", "view", "reshape",
    "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "transpose", "permute",
})  # fmt: skip
"""What passes the weights of a soft-max on."""

PRODUCTS = frozenset({"matmul", "mm", "bmm"})


@dataclass(frozen=True, eq=False)
class CopyRemedy:
    """Copies of all units, read by zeros or by shares that add up to nothing.

    Attributes:
        atom: the width.
        makers: the dimensions of tensors that take copies.
        readers: the dimensions that are contracted with the units.
        reason: why no other number of units will do; completes "this width ...".
    """

    atom: Atom
    makers: tuple[tuple[TensorUse, int], ...]
    readers: tuple[tuple[TensorUse, int], ...]
    reason: str
    silences_writers: bool = field(default=False, init=False)
    silenced_readers: frozenset[tuple[str, int]] = field(default=frozenset(), init=False)
    copies: bool = field(default=True, init=False)

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        edits: list[ValueEdit] = []
        for record, axis in self.readers:
            origins = copy_origins(record.dims[axis], sizes, self.atom)
            if (shares := _shares(origins)).any():
                edits.append(Share(record.names[0], axis, origins, shares))
        for record, axis in self.makers:
            edits.append(Copy(record.names[0], record.kind, axis, copy_origins(record.dims[axis], sizes, self.atom)))
        return edits

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        return []


def copy_remedy(
    flagged: Sequence[tuple[Context, Flagged]], atom: Atom, uses: Sequence[tuple[TensorUse, int]], reason: str
) -> CopyRemedy | None:
    """Growth of `atom` by whole copies; None where that would change the function too.

    Args:
        flagged: where statistics run over it, with the traces.
        atom: the width.
        uses: all dimensions of tensors that it is part of.
        reason: why no other number of units will do.
    """
    weighed = [_weighed(ctx, one) for ctx, one in flagged]
    products = [node for nodes in weighed for node in nodes]
    if len(set(products)) < len(products):
        return None  # weights on both sides
    if not all(one.node in products or _bears_copies(ctx, one, atom) for ctx, one in flagged):
        return None
    if any(Call(one.node).name in EXTREMES and _is_told_apart(ctx, atom) for ctx, one in flagged):
        return None
    if not any(axis in record.consumer_dims for record, axis in uses):
        return None  # copies that all have the same readers would never part
    if any(axis in record.consumer_dims and axis in record.producer_dims for record, axis in uses):
        return None  # such as a tied embedding, that makes the copies and reads them
    readers = tuple((record, axis) for record, axis in uses if axis in record.consumer_dims)
    return CopyRemedy(atom, tuple(use for use in uses if use not in readers), readers, reason)


def _shares(origins: np.ndarray) -> np.ndarray:
    """For every position its share in the reader of its origin: 0 for origins, opposite numbers in pairs for copies."""
    order = np.argsort(origins, kind="stable")
    starts = np.flatnonzero(np.diff(origins[order], prepend=-1))
    counts = np.diff(starts, append=len(origins))
    rank = np.empty(len(origins), dtype=np.int64)
    rank[order] = np.arange(len(origins)) - np.repeat(starts, counts)
    copies = np.empty(len(origins), dtype=np.int64)
    copies[order] = np.repeat(counts - 1, counts)
    return np.where((rank > 0) & (copies > 1), (rank - (copies + 1) / 2) / np.maximum(copies, 1), 0.0)


def _bears_copies(ctx: Context, flagged: Flagged, atom: Atom) -> bool:
    """Whether a statistic stays when every unit occurs equally often once more."""
    if flagged.node.op != "call_function" or flagged.node not in ctx.depends_on_input:
        return False  # the weights that read the copies are zeros, no copies
    if _power(flagged.dim, atom) is None:
        return False
    call = Call(flagged.node)
    if call.name in SOFTMAXES:
        return bool(_weighed(ctx, flagged))
    if call.name == "scaled_dot_product_attention":  # by the size of a head it changes, not by the number of keys
        return atom not in leaves(ctx.dims(call["query"])[-1]) and not call.get("is_causal")
    if call.name in VARIANCES:
        return call.get("correction", 1) in (0, 0.0) or call.get("unbiased", True) is False
    if call.name in EXTREMES:
        return call.num_outputs == 1 or call.name == "aminmax" or not _takes_indices(flagged.node)
    return call.name in MOMENTS and call.get("running_var") is None  # running variances count the entries


def _is_told_apart(ctx: Context, atom: Atom) -> bool:
    """Whether the forward compares the units: the largest one may then be a copy, by the last bit."""
    nodes = [node for node in ctx.values if node.op == "call_function" and Call(node).name.rstrip("_") in STEPS]
    sources = [ctx.values.get(source) for node in nodes for source in node.all_input_nodes]
    return any(atom in leaves(dim) for value in sources if isinstance(value, tuple) for dim in value)


def _weighed(ctx: Context, flagged: Flagged) -> list[Node]:
    """The products in which the weights that a soft-max gives are spent; empty where they go elsewhere too."""
    if flagged.node.op != "call_function" or Call(flagged.node).name not in SOFTMAXES:
        return []
    found, todo = [], [flagged.node]
    while todo:
        node = todo.pop()
        for user in node.users:
            call = Call(user) if user.op == "call_function" else None
            if call is not None and call.name in WEIGHTS_KEPT and call.first is node:
                todo.append(user)
            elif call is not None and call.name in PRODUCTS and _is_contracted(ctx, call, node, flagged.dim):
                found.append(user)
            else:
                return []
    return found


def _is_contracted(ctx: Context, call: Call, node: Node, dim: Dim) -> bool:
    """Whether a product runs over the dimension of one of its factors."""
    left, right = call.at(0), call.at(1)
    if left is right or node not in (left, right):
        return False
    dims = ctx.dims(node)
    axis = -1 if node is left else max(-2, -len(dims))
    return same(dims[axis], dim)


def _takes_indices(node: Node) -> bool:
    """Whether it matters which of several equal entries is the largest: that is not told."""
    items = [user for user in node.users if user.target is operator.getitem]
    return any(item.args[1:] == (1,) and item.users for item in items)


def _power(dim: Dim, atom: Atom) -> int | None:
    """By which power of the number of copies every entry of a dimension is repeated; None where they differ."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        return int(dim is atom)
    if isinstance(dim, Product):
        total = 0
        for factor in dim.factors:
            power = _power(factor, atom)
            if power is None:
                return None
            total += power
        return total
    powers = {_power(segment, atom) for segment in dim.segments}
    return powers.pop() if len(powers) == 1 else None
