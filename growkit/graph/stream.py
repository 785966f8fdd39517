"""Residual streams: who writes to them, who reads them, and whether zeros in new channels leave every norm as it was.

A stream of C channels that norms read keeps the function when it takes C' if all writers put zeros into the new
channels and every norm is rescaled: the mean of squares falls by C / C', so its weight is multiplied by sqrt(C / C')
and its eps by C / C'. A layer norm also subtracts the mean over channels, so the writers are centred first, which the
norms that read the stream cannot see.

A *segment* is a set of nodes that carry the same sum: additions, concatenations along other dimensions, views.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from torch.fx import Node

from growkit.graph.dimensions import Atom, leaves
from growkit.graph.norms import NormCall
from growkit.graph.rules.context import Call, Context, TensorUse, Value, WeightView
from growkit.graph.rules.selection import SHAPE_ONLY

__all__ = ["Segment", "Writer", "segments_of", "tainted_readers"]

LINEAR = frozenset({
    "add", "add_", "sub", "sub_", "cat", "stack", "split", "split_with_sizes", "chunk", "unbind", "slice", "select",
    "view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t",
    "movedim", "expand", "expand_as", "clone", "contiguous", "dropout", "dropout_", "feature_dropout", "roll", "flip",
    "index", "index_select", "gather", "to", "_to_copy", "type_as", "detach", "alias", "neg", "repeat", "mean",
    "avg_pool1d", "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d", "view_as", "reshape_as", "unbind_copy", "pad",
    "zeros_like", "new_zeros",
})  # fmt: skip
"""Operations that keep zeros zero, and a shift common to all channels a shift common to all channels."""

SCALINGS = frozenset({"mul", "mul_", "div", "div_"})

CONTRACTIONS = frozenset({
    "linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "addmm", "mm",
    "matmul", "bmm", "einsum", "embedding", "embedding_bag", "bilinear", "lstm", "gru",
})  # fmt: skip


@dataclass(frozen=True)
class Writer:
    """A tensor that puts values into a segment: `tensor` along `axis`; with `gain`, multiplied by it on the way."""

    tensor: TensorUse
    axis: int
    gain: TensorUse | None = None


@dataclass
class Segment:
    """One sum of channels.

    Attributes:
        writers: the weights, biases and tables behind it.
        norms: the normalisations that read it.
        foreign: nodes that write something else into it (a norm's output, an activation): it cannot be centred.
        readers: nodes other than norms that read it.
        weights: of those readers that multiply with a weight, the weight and its dimension that reads.
        outputs: nodes of norms whose output is part of it.
        gains: weights that multiply it on the way into another segment, with that segment's key.
    """

    writers: list[Writer] = field(default_factory=list)
    norms: list[NormCall] = field(default_factory=list)
    foreign: list[Node] = field(default_factory=list)
    readers: list[Node] = field(default_factory=list)
    weights: list[tuple[WeightView, int]] = field(default_factory=list)
    outputs: list[Node] = field(default_factory=list)
    gains: list[tuple[TensorUse, Node]] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        """Whether new channels are zero whatever other segments carry: only zeros and norms are written to it."""
        return set(self.foreign) <= set(self.outputs)


def tainted_readers(ctx: Context, atom: Atom, segments: Sequence[Segment]) -> set[tuple[str, int]]:
    """The weights, by name and dimension, that may read new channels that are not zero.

    All but those that read nothing else than segments whose new channels are zero.
    """
    tensors = {view.tensor for view in ctx.weights.values()}
    reading = {(use, axis) for use in tensors for axis in use.consumer_dims if atom in leaves(use.dims[axis])}
    clean, tainted = (
        {
            (view.tensor, axis)
            for one in segments
            if bool(one.writers or not one.is_clean) is kind
            for view, axis in one.weights
        }
        for kind in (False, True)
    )
    return {(use.names[0], axis) for use, axis in reading - (clean - tainted)}


def segments_of(ctx: Context, atom: Atom, norms: list[NormCall]) -> list[Segment]:
    """All segments whose channels are `atom`."""
    return list(_Walk(ctx, atom, norms).segments())


class _Walk:
    """One pass over the nodes that carry an atom; nodes of one segment are united."""

    def __init__(self, ctx: Context, atom: Atom, norms: list[NormCall]):
        self.ctx, self.atom = ctx, atom
        self._norms = {norm.output: norm for norm in norms}
        self._inner = {node for norm in norms for node in norm.inner}
        self._parent: dict[Node, Node] = {}
        self._notes: list[tuple[Node, str, object]] = []
        for node in ctx.values:
            self._visit(node)

    def segments(self) -> Iterator[Segment]:
        found: dict[Node, Segment] = {}
        for node, kind, what in self._notes:
            getattr(found.setdefault(self._root(node), Segment()), kind).append(what)
        for segment in list(found.values()):
            for gain, target in segment.gains:
                into = found.setdefault(self._root(target), Segment())
                into.writers += [Writer(one.tensor, one.axis, gain) for one in segment.writers]
                if segment.foreign or segment.readers or segment.norms or len(segment.gains) > 1 or _gained(segment):
                    into.foreign.append(target)
        yield from found.values()

    def _visit(self, node: Node) -> None:
        carries = self._carries(self.ctx.values[node])
        sources = [source for source in node.all_input_nodes if self._carries(self.ctx.values.get(source))]
        if node.op == "placeholder" or not (carries or sources):
            if carries and (view := self.ctx.weight(node)) is not None:
                for axis in self._axes(view.tensor):
                    self._note(node, "writers", Writer(view.tensor, axis))
            return
        if node in self._inner:
            norm = self._norms.get(node)
            if norm is not None:
                self._note(norm.input, "norms", norm)
                self._note(node, "foreign", node)
                self._note(node, "outputs", node)
            return
        if node.op != "call_function":
            return
        if node.target is operator.getitem:
            self._unite(node, sources[0] if sources else node)
            return
        self._call(node, Call(node), sources, carries)

    def _call(self, node: Node, call: Call, sources: list[Node], carries: bool) -> None:
        if call.name.startswith("_assert") or (call.name in SHAPE_ONLY and not carries):
            return  # reads no entries: a mask that a drop path makes, a check of the type
        activations = [source for source in sources if self.ctx.weight(source) is None]
        weights = [source for source in sources if self.ctx.weight(source) is not None]
        if call.name in CONTRACTIONS:
            self._contraction(node, sources, activations, weights, carries)
        elif call.name in SCALINGS and len(sources) == 1 and carries:
            self._unite(node, sources[0])  # by a number, or by something that is the same for all channels
        elif call.name in SCALINGS and len(activations) == 1 and len(weights) == 1 and carries:
            gain = self.ctx.weights[weights[0]].tensor
            self._note(activations[0], "gains", (gain, node))
        elif call.name in LINEAR and carries and not self._adds_constant(call, sources):
            for source in sources:
                self._unite(node, source)
        elif call.name == "mean" and not carries:
            self._note(sources[0], "readers", node)
        else:
            for source in sources:
                self._note(source, "readers", node)
            if carries:
                self._note(node, "foreign", node)

    def _contraction(
        self, node: Node, sources: list[Node], activations: list[Node], weights: list[Node], carries: bool
    ) -> None:
        """Activations are read; the channels of the result come from weights, or else from an activation."""
        for source in activations:
            self._note(source, "readers", node)
            for weight in node.all_input_nodes:
                for view, axis in self._reading(weight):
                    self._note(source, "weights", (view, axis))
        written = [
            Writer(view.tensor, axis)
            for source in weights
            if (view := self.ctx.weight(source)) is not None
            for axis in self._axes(view.tensor)
            if axis in view.tensor.producer_dims
        ]
        if not carries:
            return
        for writer in written:
            self._note(node, "writers", writer)
        # a depthwise convolution makes every channel of its own one, and so do outer dimensions of a product
        passed_on = bool(activations) and not any(self._reading(weight) for weight in weights)
        passed_on = passed_on or any(self._outer(source, node) for source in activations)
        if passed_on or not written:
            self._note(node, "foreign", node)

    def _reading(self, weight: Node) -> list[tuple[WeightView, int]]:
        """The dimensions of a weight that read the channels."""
        view = self.ctx.part(weight)
        if view is None:
            return []
        return [(view, axis) for axis in self._axes(view.tensor) if axis in view.tensor.consumer_dims]

    def _outer(self, source: Node, node: Node) -> bool:
        """Whether the channels pass a contraction as one of its outer dimensions (a mixer's tokens, say)."""
        dims, result = self.ctx.values.get(source), self.ctx.values.get(node)
        if not isinstance(dims, tuple) or not isinstance(result, tuple):
            return True
        return any(self._carries((dim,)) for dim in result[:-1]) and len(result) > 1 and Call(node).name == "linear"

    def _adds_constant(self, call: Call, sources: list[Node]) -> bool:
        """`x + 1` or `x + t` with a `t` common to all channels would not leave new channels at zero."""
        if call.name not in ("add", "add_", "sub", "sub_"):
            return False
        return len({call.at(0), call.at(1)} & set(sources)) < 2 and call.at(0) is not call.at(1)

    def _carries(self, value: Value) -> bool:
        if isinstance(value, tuple):
            return any(self.atom in leaves(dim) for dim in value)
        return isinstance(value, list) and any(self._carries(item) for item in value)

    def _axes(self, tensor: TensorUse) -> list[int]:
        return [axis for axis, dim in enumerate(tensor.dims) if self.atom in leaves(dim)]

    def _note(self, node: Node, kind: str, what: object) -> None:
        self._notes.append((node, kind, what))

    def _root(self, node: Node) -> Node:
        while (parent := self._parent.get(node, node)) is not node:
            node = parent
        return node

    def _unite(self, one: Node, other: Node) -> None:
        first, second = self._root(one), self._root(other)
        if first is not second:
            self._parent[first] = second


def _gained(segment: Segment) -> bool:
    return any(writer.gain is not None for writer in segment.writers)
