"""One width that can grow: what moves with it, what one more unit costs, and how every tensor changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from growkit.errors import GrowthRefused
from growkit.graph.chain import find_chain
from growkit.graph.dimensions import Atom, index_map, leaves, resolve, size
from growkit.graph.records import Chain, LiteralChange, Member, TensorEdit
from growkit.graph.rules.context import TensorUse

if TYPE_CHECKING:
    from growkit.graph.model_graph import ModelGraph

__all__ = ["GrowthSite", "Occurrence", "role_of"]

Occurrence = tuple[TensorUse, int]
"""One dimension of one tensor."""


class GrowthSite:
    """One width of a module that can grow; a live view that stays valid after edits.

    Attributes:
        graph: the traced module it belongs to.
        atom: the size that changes, in the algebra of dimensions.
        name: the module (or raw parameter) that first makes the units.
        seed_width: the width when the graph was built.
        members: every dimension of every tensor that moves with this width.
        chain: the two weights and the operations between them in the plain case, else None.
        location: the user's "file:line" where the units are first made.
    """

    def __init__(self, graph: ModelGraph, name: str, atom: Atom, uses: list[Occurrence]):
        self.graph = graph
        self.atom = atom
        self._records = list({id(record): record for record, _ in uses}.values())
        self.name = name
        self.seed_width = atom.size
        self.members = tuple(Member(record.names, record.kind, axis, role_of(record, axis)) for record, axis in uses)
        self.location = _first_producer(uses).location
        self.chain = _chain(atom, uses, graph)

    def __repr__(self) -> str:
        ends = f"producers={len(self.producers)}, consumers={len(self.consumers)}"
        return f"GrowthSite({self.name!r}, width={self.width}, {ends})"

    @property
    def width(self) -> int:
        """The number of units now."""
        return self.atom.size

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
        """Parameters (no buffers) that one more unit adds at the present widths."""
        return self.graph.count_params({self.atom: self.width + 1}) - self.graph.count_params({})

    @property
    def flops_per_unit(self) -> int:
        """Forward FLOPs per sample that one more unit adds at the present widths."""
        return self.graph.count_flops({self.atom: self.width + 1}) - self.graph.count_flops({})

    def tensor_edits(self, num_new: int) -> tuple[TensorEdit, ...]:
        """How each tensor changes when the site grows by `num_new` units.

        Raises:
            GrowthRefused: if `num_new` is not positive.
        """
        sizes = self._grown(num_new)
        return tuple(_edit(record, sizes) for record in self._records)

    def literal_changes(self, num_new: int) -> tuple[LiteralChange, ...]:
        """The numbers in the user's code that would have to change when the site grows by `num_new` units."""
        sizes = self._grown(num_new)
        literals = [literal for ctx in self.graph.contexts for literal in ctx.literals]
        changes = [
            LiteralChange(literal.op, size(literal.dim), size(literal.dim, sizes), literal.owners, literal.location)
            for literal in literals
            if self.atom in leaves(literal.dim)
        ]
        return tuple(dict.fromkeys(changes))

    def resize(self, width: int) -> None:
        """Commit a new width in place, after the tensors took it (or gave it up)."""
        assert width > 0, width
        self.atom.size = width

    def _grown(self, num_new: int) -> dict[Atom, int]:
        if num_new < 1:
            raise GrowthRefused(f"A site grows by at least one unit, got num_new={num_new} for {self.name!r}.")
        return {self.atom: self.width + num_new}


def role_of(record: TensorUse, axis: int) -> str:
    """What a dimension of a tensor is to the units it moves with: "producer", "consumer" or "pass_through"."""
    if axis in record.consumer_dims:
        return "consumer"
    return "producer" if axis in record.producer_dims else "pass_through"


def _edit(record: TensorUse, sizes: Mapping[Atom, int]) -> TensorEdit:
    changed = [any(atom in sizes for atom in leaves(dim)) for dim in record.dims]
    maps = tuple(index_map(dim, sizes) if moves else None for dim, moves in zip(record.dims, changed, strict=True))
    acts = record.neutral is not None and not record.consumer_dims and not record.producer_dims
    return TensorEdit(record.names, record.kind, maps, tuple(sorted(record.consumer_dims)), acts, record.neutral or 0.0)


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
