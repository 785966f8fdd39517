"""One width that can grow: what moves with it, what one more unit costs, and how every tensor changes."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from growkit.errors import GrowthRefused
from growkit.graph.chain import find_chain
from growkit.graph.dimensions import Atom, Dim, index_map, leaves, resolve, size, structure
from growkit.graph.records import AttributeEdit, Chain, LiteralChange, Member, TensorEdit, ValueEdit
from growkit.graph.remedies import Remedy
from growkit.graph.rules.context import TensorUse
from growkit.graph.size_attributes import SizeAttribute

if TYPE_CHECKING:
    from growkit.graph.model_graph import ModelGraph

__all__ = ["GrowthSite", "Occurrence", "role_of"]

Occurrence = tuple[TensorUse, int]
"""One dimension of one tensor."""


class GrowthSite:
    """One width of a module that can grow; a live view that stays valid after edits.

    Most sites are one size. Some are several that can only grow together: the heads of all blocks that read one
    `num_heads`, or the channels of a stream with the heads that must fill it. One unit is then one step of all.

    Attributes:
        graph: the traced module it belongs to.
        steps: by how much each size grows per unit; the first one is counted.
        ties: sizes that follow: each stays the size of an expression, such as heads times their size.
        parts: of a joint site, the size of each site that it was made of, by that site's name.
        name: the module (or raw parameter) that first makes the units.
        seed_width: the width when the graph was built.
        members: every dimension of every tensor that moves with this width.
        remedy_of: for a size that norms or attention products depend on, what keeps them exact.
        attributes: the sizes kept in plain attributes that change along; a guess until `settled`.
        settled: True once a trial has shown which attributes must change.
        chain: the two weights and the operations between them in the plain case, else None.
        location: the user's "file:line" where the units are first made.
    """

    def __init__(
        self,
        graph: ModelGraph,
        name: str,
        steps: Mapping[Atom, int],
        uses: list[Occurrence],
        remedies: Mapping[Atom, Remedy] = MappingProxyType({}),
        attributes: Sequence[SizeAttribute] = (),
        ties: Mapping[Atom, Dim] = MappingProxyType({}),
        parts: Mapping[str, Atom] = MappingProxyType({}),
    ):
        self.graph = graph
        self.steps = dict(steps)
        self.ties = dict(ties)
        self.parts = dict(parts)
        self.uses = list(dict.fromkeys(uses))
        self._records = list({id(record): record for record, _ in uses}.values())
        self.remedy_of = dict(remedies)
        self.name = name
        self.seed_width = self.width
        self.members = tuple(
            Member(record.names, record.kind, axis, role_of(record, axis)) for record, axis in self.uses
        )
        self.attributes = tuple(one for one in attributes if one.likely)
        self.settled = False
        self.location = _first_producer(self.uses).location
        self.chain = None if len(self.atoms) > 1 or remedies else _chain(self.atom, self.uses, graph)

    def __repr__(self) -> str:
        ends = f"producers={len(self.producers)}, consumers={len(self.consumers)}"
        return f"GrowthSite({self.name!r}, width={self.width}, {ends})"

    @property
    def atom(self) -> Atom:
        """The size that is counted."""
        return next(iter(self.steps))

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """All sizes that change."""
        return (*self.steps, *self.ties)

    @property
    def remedies(self) -> tuple[Remedy, ...]:
        """What keeps norms and attention products exact."""
        return tuple(self.remedy_of.values())

    @property
    def width(self) -> int:
        """The number of units now."""
        return self.atom.size // self.steps[self.atom]

    @property
    def by_copies(self) -> bool:
        """Whether only whole copies of all units keep the function."""
        return any(remedy.copies for remedy in self.remedies)

    @property
    def copied_because(self) -> str:
        """Why only whole copies will do; completes "this width ...", "" where any number of units will."""
        return next((remedy.reason for remedy in self.remedies if remedy.copies), "")

    @property
    def grows_by(self) -> int:
        """Growth comes in multiples of so many units: 1, or the present width where only whole copies are exact."""
        return self.width if self.by_copies else 1

    @property
    def channels(self) -> int:
        """The size now of the dimension that the site is named after; of a joint site it need not be the width."""
        return self.parts.get(self.name, self.atom).size

    @property
    def channels_per_unit(self) -> int:
        """By how much that dimension grows with one more unit, at the present widths."""
        return (self._least[self.parts.get(self.name, self.atom)] - self.channels) // self.grows_by

    @property
    def producers(self) -> tuple[Member, ...]:
        """The members that make the units: weights with their biases, embeddings."""
        return tuple(member for member in self.members if member.role == "producer")

    @property
    def consumers(self) -> tuple[Member, ...]:
        """The members that read the units."""
        return tuple(member for member in self.members if member.role == "consumer")

    @property
    def params_per_unit(self) -> int:
        """Parameters (no buffers) that one more unit adds at the present widths; a mean where growth is by copies."""
        return (self.graph.count_params(self._least) - self.graph.count_params({})) // self.grows_by

    @property
    def flops_per_unit(self) -> int:
        """Forward FLOPs per sample that one more unit adds at the present widths; a mean where growth is by copies."""
        return (self.graph.count_flops(self._least) - self.graph.count_flops({})) // self.grows_by

    @property
    def _least(self) -> dict[Atom, int]:
        """The sizes after the least growth."""
        return self.grown(self.grows_by)

    def tensor_edits(self, num_new: int) -> tuple[TensorEdit, ...]:
        """How each tensor changes when the site grows by `num_new` units.

        Raises:
            GrowthRefused: if `num_new` is not positive.
        """
        sizes = self.grown(num_new)
        written = {atom for atom, remedy in self.remedy_of.items() if remedy.silences_writers}
        kept_silent = {place for remedy in self.remedies for place in remedy.silenced_readers}
        maps = _IndexMaps(sizes)
        return tuple(_edit(record, maps, written, kept_silent) for record in self._records)

    def value_edits(self, num_new: int) -> tuple[ValueEdit, ...]:
        """What else happens to values so that the function stays."""
        sizes = self.grown(num_new)
        return tuple(edit for remedy in self.remedies for edit in remedy.value_edits(sizes))

    def attribute_edits(self, num_new: int) -> tuple[AttributeEdit, ...]:
        """The numbers beside the weights that change when the site grows by `num_new` units.

        Raises:
            GrowthRefused: if an attribute would have to hold two numbers, or one that is not whole.
        """
        sizes = self.grown(num_new)
        edits: dict[tuple[str, str], AttributeEdit] = {}
        held: dict[object, int] = {}  # by the object that holds the number: modules may share one
        for one in self.attributes:
            value = one.value(sizes)
            if value is None:
                raise GrowthRefused(
                    f"{one.place} holds {one.ratio} of the width of {self.name!r} and would be no whole number at "
                    f"{size(one.dim, sizes)}; keep the width itself in an attribute that the forward reads"
                )
            if (other := held.setdefault(one.holder, value)) != value:
                raise GrowthRefused(
                    f"{one.place} would have to be both {other} and {value} when {self.name!r} grows; give each of the "
                    "two sizes an attribute of its own"
                )
            edits[one.module, one.path] = AttributeEdit(one.module, one.path, value)
        return (*edits.values(), *(edit for remedy in self.remedies for edit in remedy.attribute_edits(sizes)))

    def literal_changes(self, num_new: int) -> tuple[LiteralChange, ...]:
        """The numbers in the user's code that would have to change when the site grows by `num_new` units."""
        sizes = self.grown(num_new)
        changes = [
            LiteralChange(literal.op, size(literal.dim), size(literal.dim, sizes), literal.owners, literal.location)
            for literal in self.graph.literals
            if any(atom in self.atoms for atom in leaves(literal.dim))
        ]
        return tuple(dict.fromkeys(changes))

    def grown(self, num_new: int) -> dict[Atom, int]:
        """The sizes after growth by `num_new` units.

        Raises:
            GrowthRefused: if `num_new` is not positive, or no multiple of `grows_by`.
        """
        if num_new < 1:
            raise GrowthRefused(f"A site grows by at least one unit, got num_new={num_new} for {self.name!r}.")
        sizes = {atom: atom.size + step * num_new for atom, step in self.steps.items()}
        sizes |= {atom: size(dim, sizes) for atom, dim in self.ties.items()}
        copied = [atom for atom, remedy in self.remedy_of.items() if remedy.copies]
        if any(sizes[atom] % atom.size for atom in copied):
            raise GrowthRefused(
                f"{self.name!r} can only grow by whole copies of its {self.width} units, so num_new must be a multiple "
                f"of {self.width}, got {num_new}; this width {self.copied_because}"
            )
        return sizes

    def resize(self, width: int) -> None:
        """Commit a new width in place, after the tensors took it (or gave it up)."""
        assert width > 0, width
        more = width - self.width
        for atom, step in self.steps.items():
            atom.size += step * more
        for atom, dim in self.ties.items():
            atom.size = size(dim)

    def settle(self, attributes: Sequence[SizeAttribute]) -> None:
        """Note which attributes must change, as a trial has shown."""
        self.attributes, self.settled = tuple(attributes), True


def role_of(record: TensorUse, axis: int) -> str:
    """What a dimension of a tensor is to the units it moves with: "producer", "consumer" or "pass_through"."""
    if axis in record.consumer_dims:
        return "consumer"
    return "producer" if axis in record.producer_dims else "pass_through"


class _IndexMaps:
    """The index maps of dimensions under new sizes; most tensors of a site share one, which is made once."""

    def __init__(self, sizes: Mapping[Atom, int]):
        self.sizes = sizes
        self._made: dict[Hashable, np.ndarray] = {}

    def of(self, dim: Dim) -> np.ndarray:
        key = structure(dim)
        if key not in self._made:
            self._made[key] = index_map(dim, self.sizes)
        return self._made[key]


def _edit(
    record: TensorUse, index_maps: _IndexMaps, written: set[Atom], kept_silent: set[tuple[str, int]]
) -> TensorEdit:
    """How a tensor changes.

    Args:
        record: the tensor.
        index_maps: of dimensions under the new sizes.
        written: the atoms whose new units are silent because nothing is written to them.
        kept_silent: the weights and dimensions that are silenced all the same.
    """
    moved = [[atom for atom in leaves(dim) if atom in index_maps.sizes] for dim in record.dims]
    maps = tuple(index_maps.of(dim) if atoms else None for dim, atoms in zip(record.dims, moved, strict=True))
    acts = record.neutral is not None and not record.consumer_dims and not record.producer_dims
    silent = [
        axis
        for axis, atoms in enumerate(moved)
        if atoms and ((record.names[0], axis) in kept_silent or _is_silent(record, axis, bool(written & set(atoms))))
    ]
    return TensorEdit(
        names=record.names,
        kind=record.kind,
        index_maps=maps,
        consumer_dims=tuple(sorted(record.consumer_dims)),
        silent_dims=tuple(silent),
        pass_through=acts,
        neutral=record.neutral or 0.0,
    )


def _is_silent(record: TensorUse, axis: int, nothing_written: bool) -> bool:
    if nothing_written:
        return axis not in record.consumer_dims or axis in record.producer_dims
    return axis in record.consumer_dims


def _first_producer(uses: list[Occurrence]) -> TensorUse:
    return min(uses, key=lambda use: use[0].producer_dims.get(use[1], float("inf")))[0]


def _chain(atom: Atom, uses: list[Occurrence], graph: ModelGraph) -> Chain | None:
    weights = [(record, axis) for record, axis in uses if record.kind == "parameter" and len(record.dims) > 1]
    makers = [(record, axis) for record, axis in weights if role_of(record, axis) != "consumer"]
    readers = [(record, axis) for record, axis in weights if role_of(record, axis) == "consumer"]
    if [axis for _, axis in makers] != [0] or [axis for _, axis in readers] != [1]:
        return None
    maker, reader = makers[0][0], readers[0][0]
    if resolve(maker.dims[0]) is not atom or resolve(reader.dims[1]) is not atom:
        return None
    return find_chain(maker, reader, graph.contexts)
