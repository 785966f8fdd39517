"""The traced module: an expression for every dimension of every tensor, its costs, and the verdict on every width."""

from __future__ import annotations

import math
import weakref
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import networkx as nx
from torch import nn

from growkit.errors import ModelError
from growkit.graph.chain import makers_of_one
from growkit.graph.depth_place import structure_of
from growkit.graph.dimensions import Atom, Dim, Reason, leaves, pin, resolve, size, structure
from growkit.graph.growth_site import GrowthSite, Occurrence, role_of
from growkit.graph.network import to_networkx
from growkit.graph.norms import find_norms
from growkit.graph.propagate import flat, propagate, tensors_of
from growkit.graph.records import Refusal
from growkit.graph.remedies import NoRemedy, find_remedies
from growkit.graph.rules.context import Literal, TensorUse, multiplications
from growkit.graph.size_attributes import SizeAttribute, find_carriers, find_holders
from growkit.graph.tracing import Trace, owners_of
from growkit.graph.unreached import find_unreached, may_read

__all__ = ["ModelGraph"]


class ModelGraph:
    """A traced module: the expression of every dimension of every tensor, and the sites among them.

    Attributes:
        sites: the widths that can grow, in the order of the forward pass.
        refusals: the other widths, each with its reason.
        unknown_ops: how often each operation occurred for which no rule holds.
        literals: the numbers that the forward passes to operations, each once.
        quotients: products of which it passes the factors, side by side.
        structure: the modules that it was traced with.
        inputs: the example it was traced with, as positional and keyword arguments.
        path_specialised: True if the forward branches on values, and the graph holds only for the path of the example.
    """

    def __init__(self, model: nn.Module, train: Trace, evaluation: Trace, inputs: tuple[tuple, dict[str, Any]]):
        self.inputs = inputs
        self.structure = structure_of(model)
        self._model = weakref.ref(model)
        tensors = tensors_of(model)
        self._owner_types = {name: type(module).__module__ for name, module in model.named_modules()}
        modules = dict(model.named_modules())
        self._trace = train
        self._owners: dict[Atom, set[str]] | None = None
        self.contexts = propagate(train, tensors), propagate(evaluation, tensors)
        self._tensors = list({id(record): record for record in tensors.values()}.values())
        self._batch = _batch_size(train)
        _pin_plain_buffers(self._tensors)
        self.path_specialised = train.path_specialised or evaluation.path_specialised
        self.unknown_ops: dict[str, int] = self.contexts[1].unknown_ops | self.contexts[0].unknown_ops
        self.literals = _distinct(literal for ctx in self.contexts for literal in ctx.literals)
        self.quotients = _distinct(one for ctx in self.contexts for one in ctx.quotients)
        self._carriers = [find_carriers(modules, literal) for literal in self.literals]
        self.sites, self.refusals = self._judge(modules)

    def is_of(self, model: nn.Module) -> bool:
        """Whether it was made of this very module."""
        return self._model() is model

    def params(self, sizes: Mapping[str, int] | None = None) -> int:
        """The number of parameters; `sizes` gives sites, by name, a hypothetical width."""
        return self.count_params(self._atom_sizes(sizes))

    def flops(self, sizes: Mapping[str, int] | None = None) -> int:
        """FLOPs of the forward pass of one sample in eval mode: twice the multiplications of all contractions."""
        return self.count_flops(self._atom_sizes(sizes))

    def to_networkx(self) -> nx.DiGraph:
        """The trace as a directed graph: nodes are operations and tensors of the module, edges carry shapes."""
        return to_networkx(self._trace, self.contexts[0], self.sites)

    def count_params(self, sizes: Mapping[Atom, int]) -> int:
        return sum(_numel(record, sizes) for record in self._tensors if record.kind == "parameter")

    def count_flops(self, sizes: Mapping[Atom, int]) -> int:
        contractions = self.contexts[1].contractions
        per_batch = sum(multiplications(one, sizes) for one in contractions if one.per_sample)
        per_call = sum(multiplications(one, sizes) for one in contractions if not one.per_sample)
        return 2 * (per_batch // self._batch + per_call)

    def _atom_sizes(self, sizes: Mapping[str, int] | None) -> dict[Atom, int]:
        known = {site.name: site for site in self.sites}
        unknown = sorted(set(sizes or ()) - set(known))
        if unknown:
            raise ModelError(f"`sizes` must name sites of this graph, got {unknown}; the sites are {sorted(known)}.")
        chosen = [(known[name], width) for name, width in (sizes or {}).items()]
        found = {
            atom: atom.size + step * (width - site.width) for site, width in chosen for atom, step in site.steps.items()
        }
        return found | {atom: size(dim, found) for site, _ in chosen for atom, dim in site.ties.items()}

    def join(
        self, sites: Sequence[GrowthSite], steps: Mapping[Atom, int], ties: Mapping[Atom, Dim] | None = None
    ) -> GrowthSite:
        """Several sites as one that grows them together, `steps` per unit; named after the first of them."""
        first = min(sites, key=lambda site: _first_use(site.uses))
        uses = [use for site in sites for use in site.uses]
        remedies = {atom: remedy for site in sites for atom, remedy in site.remedy_of.items()}
        carriers = self.carriers_of([*steps, *(ties or {})])
        parts = {site.name: site.atom for site in sites}
        return GrowthSite(self, first.name, steps, uses, remedies, carriers, ties or {}, parts)

    def adopt(self, site: GrowthSite) -> None:
        """Put a joint site in the place of its parts."""
        parts = [one for one in self.sites if {*one.atoms} <= {*site.atoms}]
        first = min(self.sites.index(one) for one in parts)
        self.sites = (*self.sites[:first], site, *(one for one in self.sites[first:] if one not in parts))

    def carriers_of(self, atoms: Collection[Atom]) -> tuple[SizeAttribute, ...]:
        """The attributes that may hold a number that changes with the atoms."""
        found: dict[object, SizeAttribute] = {}
        for literal, carriers in zip(self.literals, self._carriers, strict=True):
            if any(atom in atoms for atom in leaves(literal.dim)):
                for one in carriers:
                    key = one.module, one.path, structure(one.dim), one.ratio
                    found[key] = one if key not in found or one.likely else found[key]
        return tuple(found.values())

    def holders_of(self, atoms: Collection[Atom]) -> tuple[SizeAttribute, ...]:
        """The attributes that hold the size of an atom in modules that see it, though no operation is given it."""
        model = self._model()
        modules = {} if model is None else dict(model.named_modules())
        return tuple(one for atom in atoms for one in find_holders(modules, atom, sorted(self.owners_of(atom))))

    def written_in_code(self, atoms: Collection[Atom]) -> list[Literal]:
        """The numbers in the user's forward that would have to change with the atoms, and that no attribute holds."""
        return [
            one
            for one, carriers in zip(self.literals, self._carriers, strict=True)
            if not carriers
            and any(atom in atoms for atom in leaves(one.dim))
            and not (one.owners and self._owner_types.get(one.owners[0], "").startswith("torch.nn."))
        ]

    def owners_of(self, atom: Atom) -> set[str]:
        """The modules that see the atom: the two innermost owners of the operations on values that carry it."""
        if self._owners is None:
            self._owners = {}
            for node, value in ((n, v) for ctx in self.contexts for n, v in ctx.values.items()):
                owners = owners_of(node)[:2]
                for one in {leaf for dim in flat(value) for leaf in leaves(dim)} if owners else ():
                    self._owners.setdefault(one, set()).update(owners)
        return self._owners.get(atom, set())

    def _judge(self, modules: Mapping[str, nn.Module]) -> tuple[tuple[GrowthSite, ...], tuple[Refusal, ...]]:
        """Sort every width that a parameter has into sites and refusals."""
        norms = [find_norms(ctx) for ctx in self.contexts]
        unreached = find_unreached(self._tensors, modules)
        occurrences = self._occurrences()
        sites: dict[str, GrowthSite] = {}
        refusals: list[Refusal] = []
        for atom in sorted(occurrences, key=lambda atom: _first_use(occurrences[atom])):
            name, uses = self._name(occurrences[atom]), occurrences[atom]
            remedy, reasons = None, _reasons(atom, uses)
            if not reasons and not atom.pins and atom.size > 1:
                reasons = may_read(unreached, atom, self.contexts)
            if not reasons and not atom.pins and atom.size > 1:
                try:
                    remedy = find_remedies(self.contexts, norms, atom, modules, uses)
                except NoRemedy as error:
                    reasons = [Reason(str(error), next((flag.location for flag in atom.flags), None))]
            if reasons:
                refusals.append(_refusal(name, atom, uses, reasons))
            elif not atom.pins and atom.size > 1:
                name = _unique(name, sites)
                remedies = {} if remedy is None else {atom: remedy}
                sites[name] = GrowthSite(self, name, {atom: 1}, uses, remedies, self.carriers_of({atom}))
        for record in makers_of_one(self.contexts[0]):
            reason = "is 1, which cannot be told from broadcasting; give it at least 2 units"
            refusals.append(Refusal(record.names[0].removesuffix(".weight"), 1, reason, record.location))
        return tuple(sites.values()), tuple(dict.fromkeys(refusals))  # rows and columns of an image tell the same

    def _occurrences(self) -> dict[Atom, list[Occurrence]]:
        """For every atom that a parameter has, all dimensions of parameters and buffers that it moves."""
        found: dict[Atom, list[Occurrence]] = {}
        for record in self._tensors:
            for axis, dim in enumerate(record.dims):
                for atom in leaves(dim):
                    found.setdefault(atom, []).append((record, axis))
        return {atom: uses for atom, uses in found.items() if any(use.kind == "parameter" for use, _ in uses)}

    def _name(self, uses: list[Occurrence]) -> str:
        """The module of the first producer; for raw parameters the parameter."""
        producers = [(record.producer_dims[axis], record) for record, axis in uses if axis in record.producer_dims]
        if not producers:
            record, axis = next((record, axis) for record, axis in uses if record.kind == "parameter")
            return f"{record.names[0]}[{axis}]"
        name = min(producers, key=lambda pair: pair[0])[1].names[0]
        owner, _, last = name.rpartition(".")
        of_module = last == "weight" or self._owner_types.get(owner, "").startswith("torch.nn.")
        return owner if owner and of_module else name


def _first_use(uses: list[Occurrence]) -> float:
    """The order of the first producer; widths that no weight makes come last."""
    return min((record.producer_dims.get(axis, float("inf")) for record, axis in uses), default=float("inf"))


def _reasons(atom: Atom, uses: list[Occurrence]) -> list[Reason]:
    """Why an atom may not grow, whatever the remedies; empty if it may, or if nobody would ask."""
    listed = [reason for reason in atom.pins if reason.listed]
    if atom.size == 1 or (len(listed) < len(atom.pins) and not (listed and _missing_side(uses) is None)):
        return []  # a kernel size, a number of positions
    if atom.pins:
        return listed
    text = _missing_side(uses) if not atom.flags or not any(record.used for record, _ in uses) else None
    return [Reason(text, uses[0][0].location)] if text else []


def _refusal(name: str, atom: Atom, uses: list[Occurrence], reasons: Sequence[Reason]) -> Refusal:
    texts = list(dict.fromkeys(reason.text for reason in reasons))
    location = next((reason.location for reason in reasons if reason.location), None)
    return Refusal(name, atom.size, " and ".join(texts[:2]), location or uses[0][0].location)


def _missing_side(uses: list[Occurrence]) -> str | None:
    roles = {role_of(record, axis) for record, axis in uses}
    if not any(record.used for record, _ in uses):
        return "is never used in the forward"
    if "consumer" not in roles:
        return "has no weight that reads it, so new units could not be silenced"
    if "producer" not in roles:
        return "has no weight that makes its units"
    return None


def _distinct(literals: Iterable[Literal]) -> list[Literal]:
    """The literals with their expressions in final form, each once."""
    found = {}
    for one in literals:
        dim = resolve(one.dim)
        key = one.op, structure(dim), one.owners, one.location, one.among, one.position
        found.setdefault(key, replace(one, dim=dim))
    return list(found.values())


def _unique(name: str, taken: Mapping[str, object]) -> str:
    number, unique = 1, name
    while unique in taken:
        number += 1
        unique = f"{name}#{number}"
    return unique


def _numel(record: TensorUse, sizes: Mapping[Atom, int]) -> int:
    return math.prod(size(dim, sizes) for dim in record.dims)


def _pin_plain_buffers(tensors: list[TensorUse]) -> None:
    """Nobody but the module knows what new entries of a buffer should be, unless all are equal or a norm owns it."""
    for record in tensors:
        if record.kind != "buffer" or not record.used or record.neutral is not None:
            continue
        if record.uniform is not None:
            record.neutral = record.uniform
            continue
        for dim in record.dims:
            pin(dim, Reason(f"is the width of the buffer {record.names[0]!r}", record.location))


def _batch_size(trace: Trace) -> int:
    """The first dimension of the first input tensor."""
    inputs = [
        node for node in trace.graph.nodes if node.op == "placeholder" and trace.sources[node.name].kind == "input"
    ]
    shapes = [tuple(node.meta["val"].shape) for node in inputs if hasattr(node.meta.get("val"), "shape")]
    return next((int(shape[0]) for shape in shapes if shape), 1)
