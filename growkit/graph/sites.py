"""Growth sites: every width of a module that can grow, and for every other width the reason why not."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

import networkx as nx
from torch import nn

from growkit.errors import GrowthRefused, ModelError
from growkit.graph.chain import find_chain
from growkit.graph.dimensions import Atom, Reason, index_map, leaves, pin, resolve, size
from growkit.graph.network import to_networkx
from growkit.graph.propagate import propagate, tensors_of
from growkit.graph.records import Chain, LiteralChange, Member, Refusal, TensorEdit
from growkit.graph.rules.context import TensorUse, multiplications
from growkit.graph.tracing import Example, Trace, trace_both_modes

__all__ = ["GrowthSite", "ModelGraph", "Sites", "find_sites"]


def find_sites(model: nn.Module, example: Example) -> Sites:
    """Find every width of a module that can grow without changing its function.

    Args:
        model: any module; it is left as it was.
        example: one batch of inputs with at least two samples: a tensor, the tuple of positional arguments or the
            dictionary of keyword arguments. The first dimension of the first tensor is the batch.

    Returns:
        The sites in the order of the forward pass, with the refused widths in `.refusals`.

    Raises:
        ModelError: if the module cannot be traced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> sites = find_sites(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4))
        >>> [(site.name, site.width, site.params_per_unit) for site in sites]
        [('0', 8, 7)]
    """
    return Sites(ModelGraph(model, *trace_both_modes(model, example)))


class ModelGraph:
    """A traced module: the expression of every dimension of every tensor, and the sites among them.

    Attributes:
        sites: the widths that can grow, in the order of the forward pass.
        refusals: the other widths, each with its reason.
        unknown_ops: how often each operation occurred for which no rule holds.
        path_specialised: True if the forward branches on values, and the graph holds only for the path of the example.
    """

    def __init__(self, model: nn.Module, train: Trace, evaluation: Trace):
        tensors = tensors_of(model)
        self._owner_types = {name: type(module).__module__ for name, module in model.named_modules()}
        self._trace = train
        self._contexts = propagate(train, tensors), propagate(evaluation, tensors)
        self._tensors = list({id(record): record for record in tensors.values()}.values())
        self._batch = _batch_size(train)
        _pin_plain_buffers(self._tensors)
        self.path_specialised = train.path_specialised or evaluation.path_specialised
        self.unknown_ops: dict[str, int] = self._contexts[1].unknown_ops | self._contexts[0].unknown_ops
        self.sites, self.refusals = self._judge()

    def params(self, sizes: Mapping[str, int] | None = None) -> int:
        """The number of parameters; `sizes` gives sites, by name, a hypothetical width."""
        return self._params(self._atom_sizes(sizes))

    def flops(self, sizes: Mapping[str, int] | None = None) -> int:
        """FLOPs of the forward pass of one sample in eval mode: twice the multiplications of all contractions."""
        return self._flops(self._atom_sizes(sizes))

    def to_networkx(self) -> nx.DiGraph:
        """The trace as a directed graph: nodes are operations and tensors of the module, edges carry shapes."""
        return to_networkx(self._trace, self._contexts[0])

    def _params(self, sizes: Mapping[Atom, int]) -> int:
        return sum(_numel(record, sizes) for record in self._tensors if record.kind == "parameter")

    def _flops(self, sizes: Mapping[Atom, int]) -> int:
        contractions = self._contexts[1].contractions
        per_batch = sum(multiplications(one, sizes) for one in contractions if one.per_sample)
        per_call = sum(multiplications(one, sizes) for one in contractions if not one.per_sample)
        return 2 * (per_batch // self._batch + per_call)

    def _atom_sizes(self, sizes: Mapping[str, int] | None) -> dict[Atom, int]:
        known = {site.name: site._atom for site in self.sites}
        unknown = sorted(set(sizes or ()) - set(known))
        if unknown:
            raise ModelError(f"`sizes` must name sites of this graph, got {unknown}; the sites are {sorted(known)}.")
        return {known[name]: width for name, width in (sizes or {}).items()}

    def _judge(self) -> tuple[tuple[GrowthSite, ...], tuple[Refusal, ...]]:
        """Sort every width that a parameter has into sites and refusals."""
        occurrences = self._occurrences()
        sites: dict[str, GrowthSite] = {}
        refusals: list[Refusal] = []
        for atom in sorted(occurrences, key=lambda atom: _first_use(occurrences[atom])):
            name = self._name(occurrences[atom])
            refusal = _refusal(name, atom, occurrences[atom])
            if refusal is None and not atom.pins:
                name = _unique(name, sites)
                sites[name] = GrowthSite(self, name, atom, occurrences[atom])
            elif refusal is not None:
                refusals.append(refusal)
        return tuple(sites.values()), tuple(refusals)

    def _occurrences(self) -> dict[Atom, list[tuple[TensorUse, int]]]:
        """For every atom that a parameter has, all dimensions of parameters and buffers that it moves."""
        found: dict[Atom, list[tuple[TensorUse, int]]] = {}
        for record in self._tensors:
            for axis, dim in enumerate(record.dims):
                for atom in leaves(dim):
                    found.setdefault(atom, []).append((record, axis))
        return {atom: uses for atom, uses in found.items() if any(use.kind == "parameter" for use, _ in uses)}

    def _name(self, uses: list[tuple[TensorUse, int]]) -> str:
        """The module of the first producer; for raw parameters the parameter."""
        producers = [(record.producer_dims[axis], record) for record, axis in uses if axis in record.producer_dims]
        if not producers:
            record, axis = next((record, axis) for record, axis in uses if record.kind == "parameter")
            return f"{record.names[0]}[{axis}]"
        name = min(producers, key=lambda pair: pair[0])[1].names[0]
        owner, _, last = name.rpartition(".")
        of_module = last == "weight" or self._owner_types.get(owner, "").startswith("torch.nn.")
        return owner if owner and of_module else name


class GrowthSite:
    """One width of a module that can grow; a live view that stays valid after edits.

    Attributes:
        name: the module (or raw parameter) that first makes the units.
        seed_width: the width when the graph was built.
        members: every dimension of every tensor that moves with this width.
        chain: the two weights and the operations between them in the plain case, else None.
        location: the user's "file:line" where the units are first made.
    """

    def __init__(self, graph: ModelGraph, name: str, atom: Atom, uses: list[tuple[TensorUse, int]]):
        self._graph = graph
        self._atom = atom
        self._records = list({id(record): record for record, _ in uses}.values())
        self.name = name
        self.seed_width = atom.size
        self.members = tuple(Member(record.names, record.kind, axis, _role(record, axis)) for record, axis in uses)
        self.location = _first_producer(uses).location
        self.chain = _chain(atom, uses, graph)

    def __repr__(self) -> str:
        return f"GrowthSite({self.name!r}, width={self.width}, producers={len(self.producers)}, consumers={len(self.consumers)})"

    @property
    def width(self) -> int:
        """The number of units now."""
        return self._atom.size

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
        return self._graph._params({self._atom: self.width + 1}) - self._graph._params({})

    @property
    def flops_per_unit(self) -> int:
        """Forward FLOPs per sample that one more unit adds at the present widths."""
        return self._graph._flops({self._atom: self.width + 1}) - self._graph._flops({})

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
        literals = [literal for ctx in self._graph._contexts for literal in ctx.literals]
        changes = [
            LiteralChange(literal.op, size(literal.dim), size(literal.dim, sizes), literal.owners, literal.location)
            for literal in literals
            if self._atom in leaves(literal.dim)
        ]
        return tuple(dict.fromkeys(changes))

    def resize(self, width: int) -> None:
        """Commit a new width in place, after the tensors took it (or gave it up)."""
        assert width > 0, width
        self._atom.size = width

    def _grown(self, num_new: int) -> dict[Atom, int]:
        if num_new < 1:
            raise GrowthRefused(f"A site grows by at least one unit, got num_new={num_new} for {self.name!r}.")
        return {self._atom: self.width + num_new}


class Sites:
    """The growth sites of a module: iterate, index by number or by name."""

    def __init__(self, graph: ModelGraph):
        self.graph = graph

    def __iter__(self) -> Iterator[GrowthSite]:
        return iter(self.graph.sites)

    def __len__(self) -> int:
        return len(self.graph.sites)

    def __getitem__(self, key: int | str) -> GrowthSite:
        if isinstance(key, int):
            return self.graph.sites[key]
        for site in self:
            if site.name == key:
                return site
        for refusal in self.refusals:
            if refusal.name == key:
                place = f" ({refusal.location})" if refusal.location else ""
                raise GrowthRefused(f"{key!r} (width {refusal.width}) may not grow: it {refusal.reason}{place}.")
        near = difflib.get_close_matches(key, [site.name for site in self], n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else f"they are {[site.name for site in self]}."
        raise ModelError(f"No growth site is named {key!r}; {hint}")

    def __repr__(self) -> str:
        return f"Sites({[(site.name, site.width) for site in self]}, {len(self.refusals)} refused)"

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The widths that may not grow, each with its reason."""
        return self.graph.refusals

    def to_networkx(self) -> nx.DiGraph:
        """The traced module as a directed graph."""
        return self.graph.to_networkx()


def _edit(record: TensorUse, sizes: Mapping[Atom, int]) -> TensorEdit:
    changed = [any(atom in sizes for atom in leaves(dim)) for dim in record.dims]
    maps = tuple(index_map(dim, sizes) if moves else None for dim, moves in zip(record.dims, changed, strict=True))
    acts = record.neutral is not None and not record.consumer_dims and not record.producer_dims
    return TensorEdit(record.names, record.kind, maps, tuple(sorted(record.consumer_dims)), acts, record.neutral or 0.0)


def _role(record: TensorUse, axis: int) -> str:
    if axis in record.consumer_dims:
        return "consumer"
    return "producer" if axis in record.producer_dims else "pass_through"


def _first_use(uses: list[tuple[TensorUse, int]]) -> float:
    """The order of the first producer; widths that no weight makes come last."""
    return min((record.producer_dims.get(axis, float("inf")) for record, axis in uses), default=float("inf"))


def _first_producer(uses: list[tuple[TensorUse, int]]) -> TensorUse:
    return min(uses, key=lambda use: use[0].producer_dims.get(use[1], float("inf")))[0]


def _refusal(name: str, atom: Atom, uses: list[tuple[TensorUse, int]]) -> Refusal | None:
    """Why an atom may not grow; None if it may, or if nobody would ask."""
    if atom.size == 1 or not all(reason.listed for reason in atom.pins):
        return None
    reasons = atom.pins or atom.flags
    if not reasons:
        text = _missing_side(uses)
        reasons = [Reason(text, uses[0][0].location)] if text else []
    if not reasons:
        return None
    texts = list(dict.fromkeys(reason.text for reason in reasons))
    location = next((reason.location for reason in reasons if reason.location), None)
    return Refusal(name, atom.size, " and ".join(texts[:2]), location or uses[0][0].location)


def _missing_side(uses: list[tuple[TensorUse, int]]) -> str | None:
    roles = {_role(record, axis) for record, axis in uses}
    if not any(record.used for record, _ in uses):
        return "is never used in the forward"
    if "consumer" not in roles:
        return "has no weight that reads it, so new units could not be silenced"
    if "producer" not in roles:
        return "has no weight that makes its units"
    return None


def _chain(atom: Atom, uses: list[tuple[TensorUse, int]], graph: ModelGraph) -> Chain | None:
    weights = [(record, axis) for record, axis in uses if record.kind == "parameter" and len(record.dims) > 1]
    makers = [(record, axis) for record, axis in weights if _role(record, axis) != "consumer"]
    readers = [(record, axis) for record, axis in weights if _role(record, axis) == "consumer"]
    if [axis for _, axis in makers] != [0] or [axis for _, axis in readers] != [1]:
        return None
    maker, reader = makers[0][0], readers[0][0]
    if resolve(maker.dims[0]) is not atom or resolve(reader.dims[1]) is not atom:
        return None
    return find_chain(maker, reader, graph._contexts)


def _unique(name: str, taken: Mapping[str, object]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}#{number}"
    return unique


def _numel(record: TensorUse, sizes: Mapping[Atom, int]) -> int:
    total = 1
    for dim in record.dims:
        total *= size(dim, sizes)
    return total


def _pin_plain_buffers(tensors: list[TensorUse]) -> None:
    """Nobody but the module knows what new entries of a buffer should be, unless a norm owns it."""
    for record in tensors:
        if record.kind == "buffer" and record.used and record.neutral is None:
            for dim in record.dims:
                pin(dim, Reason(f"is the width of the buffer {record.names[0]!r}", record.location))


def _batch_size(trace: Trace) -> int:
    """The first dimension of the first input tensor."""
    inputs = [
        node for node in trace.graph.nodes if node.op == "placeholder" and trace.sources[node.name].kind == "input"
    ]
    shapes = [tuple(node.meta["val"].shape) for node in inputs if hasattr(node.meta.get("val"), "shape")]
    return next((int(shape[0]) for shape in shapes if shape), 1)
