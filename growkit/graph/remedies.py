"""Exact remedies: what else must change when a width grows that a norm or an attention product depends on.

A flag says that a larger width would change the function. Where every flag of a width has a remedy, the width is a
growth site like any other, and surgery carries out the remedies in the same transaction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import nn
from torch.fx import Node

from growkit.graph.attention import HeadSize, NoHeadSize, head_size
from growkit.graph.dimensions import Atom, leaves, resolve, size
from growkit.graph.norms import NormCall
from growkit.graph.records import AttributeEdit, Centre, LiftGain, Scale, ValueEdit
from growkit.graph.rules.context import Context, Flagged
from growkit.graph.size_attributes import plain_numbers
from growkit.graph.stream import Segment, Writer, segments_of

__all__ = ["NoRemedy", "Remedy", "find_remedies"]


class NoRemedy(Exception):
    """A flagged width cannot grow exactly; the text completes "this width ..."."""


class Remedy(Protocol):
    """What keeps the function when atoms take new sizes."""

    @property
    def silences_writers(self) -> bool:
        """Whether new units are silent because nothing is written to them, and not because nothing reads them."""
        ...

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        """Changes of values."""
        ...

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        """Changes of attributes."""
        ...


@dataclass(frozen=True, eq=False)
class StreamRemedy:
    """Zeros in the new channels of a stream, and its norms rescaled.

    Attributes:
        norms: the normalisations over the channels, of all traces, each weight once.
        eps: for each eps in an attribute (module, path, the norm it belongs to).
        centred: the writers of segments that a layer norm reads.
        amplified: the writers of segments with norms whose eps is no attribute: they are multiplied instead.
    """

    norms: tuple[NormCall, ...]
    eps: tuple[tuple[str, str, NormCall], ...]
    centred: tuple[Writer, ...]
    amplified: tuple[Writer, ...]
    silences_writers: bool = field(default=True, init=False)

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        edits: list[ValueEdit] = []
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

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        return [edit for head in self.heads for edit in head.value_edits(sizes)]

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        return []


def find_remedies(
    contexts: Sequence[Context], norms: Sequence[list[NormCall]], atom: Atom, modules: Mapping[str, nn.Module]
) -> Remedy | None:
    """The remedy for all flags of an atom; None if it has none.

    Raises:
        NoRemedy: a flag has no remedy.
    """
    flagged = [(ctx, one) for ctx in contexts for one in ctx.flagged if atom in leaves(one.dim)]
    if not flagged:
        if atom.flags:  # of a node that is not in the trace any more
            raise NoRemedy(atom.flags[0].text)
        return None
    inner = [{node for norm in found for node in norm.inner} for found in norms]
    of_norms = [one.node in inner[contexts.index(ctx)] for ctx, one in flagged]
    if all(of_norms):
        return _stream(contexts, norms, atom, modules)
    if any(of_norms):
        raise NoRemedy(" and ".join(dict.fromkeys(one.reason.text for _, one in flagged)))
    return _heads(flagged, atom, modules)


def _heads(flagged: Sequence[tuple[Context, Flagged]], atom: Atom, modules: Mapping[str, nn.Module]) -> HeadRemedy:
    heads, seen = [], set()
    for ctx, one in flagged:
        try:
            head = head_size(ctx, one.node, atom, modules)
        except NoHeadSize as error:
            raise NoRemedy(f"{one.reason.text}, and {error}") from None
        key = tuple((rows.tensor.names[0], rows.positions) for rows in (*head.queries, *head.keys))
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
    eps: dict[tuple[str, str], NormCall] = {}
    for ctx, found in zip(contexts, norms, strict=True):
        for segment in segments_of(ctx, atom, found):
            if not segment.norms:
                continue
            for norm in segment.norms:
                _check_norm(norm, atom)
                readers.setdefault(_key(norm), norm)
            places = [_own_eps(norm, norms, atom, modules) for norm in segment.norms]
            for place, norm in zip(places, segment.norms, strict=True):
                if place is not None:
                    eps.setdefault(place[:2], norm)
            if any(norm.centred for norm in segment.norms):
                centred.update({(w.tensor.names[0], w.axis): w for w in _movable(segment, atom, "centred")})
            if any(place is None for place in places):
                if any(place is not None for place in places):
                    raise NoRemedy("is read by norms of which only some keep an eps of their own in an attribute")
                amplified.update({(w.tensor.names[0], w.axis): w for w in _movable(segment, atom, "scaled")})
    return StreamRemedy(
        tuple(readers.values()),
        tuple((module, path, norm) for (module, path), norm in eps.items()),
        tuple(centred.values()),
        tuple(amplified.values()),
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
    """The innermost attribute that is called eps or epsilon, or the like, and holds the norm's."""
    if not isinstance(norm.eps, float):
        return None
    for owner in norm.owners:
        if owner in modules:
            numbers = plain_numbers(modules[owner])
            found = [(path, holder) for path, number, holder in numbers if number == norm.eps and "eps" in path.lower()]
            if found:
                path, holder = min(found, key=lambda one: len(one[0]))
                return owner, path, holder
    return None


def _key(norm: NormCall) -> object:
    return tuple(gain.tensor.names[0] for gain in norm.gains)


def _shrinkage(norm: NormCall, sizes: Mapping[Atom, int]) -> float:
    """C / C': how much smaller the mean of squares becomes."""
    return math.prod(size(dim) for dim in norm.dims) / math.prod(size(dim, sizes) for dim in norm.dims)


def _name(node: Node) -> str:
    return str(node.target).removeprefix("aten.").split(".")[0]
