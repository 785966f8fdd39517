"""Exact remedies: what else must change when a width grows that a norm or an attention product depends on.

A flag says that a larger width would change the function. Where every flag of a width has a remedy, the width is a
growth site like any other, and surgery carries out the remedies in the same transaction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from torch import nn
from torch.fx import Node

from growkit.graph.attention import HeadSize, NoHeadSize, head_size
from growkit.graph.copies import copy_remedy
from growkit.graph.dimensions import Atom, index_map, leaves, resolve, size
from growkit.graph.norms import NormCall
from growkit.graph.records import AttributeEdit, Average, Centre, LiftGain, Scale, ValueEdit
from growkit.graph.rules.context import Context, Flagged, TensorUse
from growkit.graph.size_attributes import find_eps
from growkit.graph.statistics import NotTakenUp, is_statistic, statistic_remedy
from growkit.graph.stream import Segment, Writer, segments_of, tainted_readers

__all__ = ["NoRemedy", "Remedy", "find_remedies"]


class NoRemedy(Exception):
    """A flagged width cannot grow exactly; the text completes "this width ..."."""


class Remedy(Protocol):
    """What keeps the function when atoms take new sizes."""

    @property
    def silences_writers(self) -> bool:
        """Whether new units are silent because nothing is written to them, and not because nothing reads them."""
        ...

    @property
    def copies(self) -> bool:
        """Whether new units copy the old ones, so that growth comes in whole multiples of their number."""
        ...

    @property
    def reason(self) -> str:
        """Why that is so; completes "this width ..."."""
        ...

    @property
    def silenced_readers(self) -> Set[tuple[str, int]]:
        """Where writers are silenced, the weights (name and dimension) that must not read new units all the same."""
        ...

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        """Changes of values."""
        ...

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        """Changes of attributes."""
        ...


@dataclass(frozen=True, eq=False)
class StreamRemedy:
    """Zeros in the new channels of a stream, or the mean of the old channels, and its norms rescaled.

    Either keeps what a layer norm makes of the old channels: it subtracts the mean over channels, which the new ones do
    not move. Zeros need writers that are centred, which nothing but norms may see; the mean does not touch what the old
    channels carry, but whatever else reads the stream must not read the new ones.

    Attributes:
        norms: the normalisations over the channels, of all traces, each weight once.
        eps: for each eps in an attribute (module, path, the norm it belongs to).
        centred: the writers of segments that a layer norm reads.
        amplified: the writers of segments with norms whose eps is no attribute: they are multiplied instead.
        averaged: the writers of segments that a layer norm and something else read: the mean goes to new channels.
        silenced_readers: the weights that may meet that mean.
    """

    norms: tuple[NormCall, ...]
    eps: tuple[tuple[str, str, NormCall], ...]
    centred: tuple[Writer, ...]
    amplified: tuple[Writer, ...]
    averaged: tuple[Writer, ...] = ()
    silenced_readers: frozenset[tuple[str, int]] = frozenset()
    silences_writers: bool = field(default=True, init=False)
    copies: bool = field(default=False, init=False)
    reason: str = field(default="", init=False)

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        edits: list[ValueEdit] = [_average(writer, sizes) for writer in self.averaged]
        for writer in self.centred:
            gain = None if writer.gain is None else writer.gain.names[0]
            edits.append(Centre(writer.tensor.names[0], writer.axis, gain))
        gains = [writer.gain.names[0] for writer in self.centred if writer.gain is not None]
        edits += [LiftGain(name) for name in dict.fromkeys(gains)]
        if self.amplified:
            factor = 1.0 / math.sqrt(_shrinkage(self.norms[0], sizes))
            edits += [Scale(w.tensor.names[0], w.tensor.kind, w.axis, None, factor) for w in self.amplified]
        for norm in self.norms:
            for gain in norm.gains:
                factor = math.sqrt(_shrinkage(norm, sizes))
                edits.append(Scale(gain.tensor.names[0], gain.tensor.kind, 0, None, factor))
        return edits

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        return [AttributeEdit(module, path, None, _shrinkage(norm, sizes)) for module, path, norm in self.eps]


@dataclass(frozen=True, eq=False)
class HeadRemedy:
    """One or more attentions whose heads grow wider."""

    heads: tuple[HeadSize, ...]
    silences_writers: bool = field(default=False, init=False)
    silenced_readers: frozenset[tuple[str, int]] = field(default=frozenset(), init=False)
    copies: bool = field(default=False, init=False)
    reason: str = field(default="", init=False)

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        return [edit for head in self.heads for edit in head.value_edits(sizes)]

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        return []


def find_remedies(
    contexts: Sequence[Context],
    norms: Sequence[list[NormCall]],
    atom: Atom,
    modules: Mapping[str, nn.Module],
    uses: Sequence[tuple[TensorUse, int]],
) -> Remedy | None:
    """The remedy for all flags of an atom; None if it has none.

    Args:
        contexts: the traces.
        norms: the normalisations of each.
        atom: the width.
        modules: the modules by name.
        uses: all dimensions of tensors that the atom is part of.

    Raises:
        NoRemedy: a flag has no remedy.
    """
    flagged = [(ctx, one) for ctx in contexts for one in ctx.flagged if atom in leaves(one.dim)]
    if not flagged:
        if atom.flags:  # of a node that is not in the trace any more
            raise NoRemedy(atom.flags[0].text)
        return None
    try:
        return _unit_by_unit(contexts, norms, flagged, atom, modules)
    except NoRemedy as error:
        remedy = copy_remedy(flagged, atom, uses, str(error))
        if remedy is None:
            raise
        return remedy


def _unit_by_unit(
    contexts: Sequence[Context],
    norms: Sequence[list[NormCall]],
    flagged: Sequence[tuple[Context, Flagged]],
    atom: Atom,
    modules: Mapping[str, nn.Module],
) -> Remedy:
    """A remedy that serves any number of new units."""
    inner = [{node for norm in found for node in norm.inner} for found in norms]
    of_norms = [one.node in inner[contexts.index(ctx)] for ctx, one in flagged]
    if all(of_norms):
        return _stream(contexts, norms, atom, modules)
    if any(of_norms):
        raise NoRemedy(" and ".join(dict.fromkeys(one.reason.text for _, one in flagged)))
    if all(is_statistic(ctx, one) for ctx, one in flagged):
        try:
            return statistic_remedy(contexts, flagged, atom, modules)
        except NotTakenUp as error:
            raise NoRemedy(str(error)) from None
    return _heads(flagged, atom, modules)


def _heads(flagged: Sequence[tuple[Context, Flagged]], atom: Atom, modules: Mapping[str, nn.Module]) -> HeadRemedy:
    heads, seen = [], set()
    for ctx, one in flagged:
        try:
            head = head_size(ctx, one.node, atom, modules)
        except NoHeadSize as error:
            raise NoRemedy(f"{one.reason.text}, and {error}") from None
        key = tuple((rows.tensor.names[0], rows.positions) for rows in (*head.queries, *head.silent))
        if key not in seen:
            seen.add(key)
            heads.append(head)
    return HeadRemedy(tuple(heads))


def _stream(
    contexts: Sequence[Context], norms: Sequence[list[NormCall]], atom: Atom, modules: Mapping[str, nn.Module]
) -> StreamRemedy:
    centred: dict[tuple[str, int], Writer] = {}
    amplified: dict[tuple[str, int], Writer] = {}
    readers: dict[object, NormCall] = {}
    averaged: dict[tuple[str, int], Writer] = {}
    eps: dict[tuple[str, str], NormCall] = {}
    segments = [segments_of(ctx, atom, found) for ctx, found in zip(contexts, norms, strict=True)]
    for of_trace in segments:
        for segment in of_trace:
            if not segment.norms:
                continue
            for norm in segment.norms:
                _check_norm(norm, atom)
                readers.setdefault(_key(norm), norm)
            places = [_own_eps(norm, norms, atom, modules) for norm in segment.norms]
            for place, norm in zip(places, segment.norms, strict=True):
                if place is not None:
                    eps.setdefault(place[:2], norm)
            if _takes_averages(segment) and None not in places:
                averaged.update({(w.tensor.names[0], w.axis): w for w in _own_writers(segment, atom, "averaged")})
            elif any(norm.centred for norm in segment.norms):
                centred.update({(w.tensor.names[0], w.axis): w for w in _movable(segment, atom, "centred")})
            if any(place is None for place in places):
                if any(place is not None for place in places):
                    raise NoRemedy("is read by norms of which only some keep an eps of their own in an attribute")
                amplified.update({(w.tensor.names[0], w.axis): w for w in _movable(segment, atom, "scaled")})
    if averaged:
        _check_averages([one for of_trace in segments for one in of_trace], averaged)
    tainted = [tainted_readers(ctx, atom, found) for ctx, found in zip(contexts, segments, strict=True)]
    return StreamRemedy(
        tuple(readers.values()),
        tuple((module, path, norm) for (module, path), norm in eps.items()),
        tuple(centred.values()),
        tuple(amplified.values()),
        tuple(averaged.values()),
        frozenset().union(*tainted) if averaged else frozenset(),
    )


def _movable(segment: Segment, atom: Atom, verb: str) -> list[Writer]:
    """The writers of a segment that only norms read, so that a shift or a scale common to all channels is unseen."""
    if segment.readers or segment.gains:
        node = segment.readers[0] if segment.readers else segment.gains[0][1]
        raise NoRemedy(f"is read by norms and by {_name(node)}, so its writers cannot be {verb} unseen")
    if segment.foreign:
        raise NoRemedy(f"is written by {_name(segment.foreign[0])}, which cannot be {verb}, and read by a norm")
    if verb == "centred" and len({norm.centred for norm in segment.norms}) > 1:
        raise NoRemedy("is read by layer norms and by root-mean-square norms")
    return _own_writers(segment, atom, verb)


def _takes_averages(segment: Segment) -> bool:
    """Whether the writers cannot be centred unseen, but can write their mean to the new channels."""
    return bool(segment.readers) and not segment.gains and not segment.foreign and all(n.centred for n in segment.norms)


def _check_averages(segments: Sequence[Segment], averaged: Mapping[tuple[str, int], Writer]) -> None:
    """No other stream that a norm reads may get the mean too, for it holds other channels or none."""
    for segment in segments:
        if not segment.norms or _takes_averages(segment):
            continue
        if any((writer.tensor.names[0], writer.axis) in averaged for writer in segment.writers) or not segment.is_clean:
            raise NoRemedy("is read by norms at several places, of which only some can bear the mean in new channels")


def _own_writers(segment: Segment, atom: Atom, verb: str) -> list[Writer]:
    """The writers of a segment, if they are parameters that do nothing else with these channels."""
    for writer in segment.writers:
        if writer.tensor.kind != "parameter":
            raise NoRemedy(f"is written by the buffer {writer.tensor.names[0]!r} and read by a norm")
        if writer.tensor.consumer_dims & {writer.axis}:
            raise NoRemedy(
                f"is written by {writer.tensor.names[0]!r}, which also reads it elsewhere, so it cannot be {verb}"
            )
        if resolve(writer.tensor.dims[writer.axis]) is not atom:
            raise NoRemedy(f"is only a part of what {writer.tensor.names[0]!r} writes, and read by a norm")
    return segment.writers


def _check_norm(norm: NormCall, atom: Atom) -> None:
    if not norm.gains:
        raise NoRemedy("is normalised without a weight that could take up the change")
    if norm.centred and [resolve(dim) for dim in norm.dims] != [atom]:
        raise NoRemedy("is normalised together with other widths or positions")


def _own_eps(
    norm: NormCall, norms: Sequence[list[NormCall]], atom: Atom, modules: Mapping[str, nn.Module]
) -> tuple[str, str, object] | None:
    """The attribute that holds a norm's eps (module, path, holder), if no norm of another width reads it too."""
    place = _eps_attribute(norm, modules)
    if place is None:
        return None
    for other in (one for found in norms for one in found):
        theirs = _eps_attribute(other, modules)
        shared = theirs is not None and theirs[2] == place[2]
        if shared and not any(atom in leaves(dim) for dim in other.dims):
            return None
    return place


def _eps_attribute(norm: NormCall, modules: Mapping[str, nn.Module]) -> tuple[str, str, object] | None:
    return None if not isinstance(norm.eps, float) else find_eps(norm.eps, norm.owners, modules)


def _key(norm: NormCall) -> object:
    return tuple(gain.tensor.names[0] for gain in norm.gains)


def _shrinkage(norm: NormCall, sizes: Mapping[Atom, int]) -> float:
    """C / C': how much smaller the mean of squares becomes."""
    return math.prod(size(dim) for dim in norm.dims) / math.prod(size(dim, sizes) for dim in norm.dims)


def _average(writer: Writer, sizes: Mapping[Atom, int]) -> Average:
    new = np.flatnonzero(index_map(writer.tensor.dims[writer.axis], sizes) < 0)
    return Average(writer.tensor.names[0], writer.axis, new, None if writer.gain is None else writer.gain.names[0])


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
