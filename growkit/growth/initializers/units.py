"""A site unit by unit: which positions of its tensors belong to which new unit, in whatever compound dimension."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from growkit.graph import GrowthSite
from growkit.graph.dimensions import Atom, Dim, Sum, index_map, resolve, size

__all__ = ["Place", "UnitPlaces", "not_plain"]

Index = NDArray[np.int64]


def not_plain(site: GrowthSite) -> str | None:
    """Why the units of a site cannot be taken one by one; completes "NAME ...", None where they can.

    A plain unit is made by weights, acted on by itself, and read by weights: copies of it can share its readers, and
    opposite readers of equal units cancel.
    """
    if len(site.atoms) > 1:
        return "needs sites of one width, and here several sizes grow together"
    if site.remedies:
        return "needs units that only weights read, and norms or attention products depend on these"
    weights = {m.names[0] for m in site.producers} & {m.names[0] for m in site.consumers}
    axes = {(m.names[0], m.dim) for m in site.producers} & {(m.names[0], m.dim) for m in site.consumers}
    if axes:
        return f"needs weights that make units or read them, and {min(weights)} does both with one dimension"
    if not site.producers or not site.consumers:
        return "needs weights that make the units and weights that read them"
    return None


@dataclass(frozen=True)
class Place:
    """One dimension of one tensor that grows with a site.

    Attributes:
        name: of the tensor. kind: "parameter" or "buffer". dim: the dimension.
        role: "producer", "consumer" or "pass_through" of the units.
        index: its index map, the old position of every new one, -1 where it is new.
        unit: the unit that every position belongs to, -1 for the rest of a concatenation.
    """

    name: str
    kind: str
    dim: int
    role: str
    index: Index
    unit: Index
    _expression: Dim = field(repr=False, compare=False)
    _atom: Atom = field(repr=False, compare=False)
    _old_width: int = field(repr=False, compare=False)
    _width: int = field(repr=False, compare=False)

    @property
    def is_parameter(self) -> bool:
        """Whether the tensor is trained."""
        return self.kind == "parameter"

    @property
    def key(self) -> tuple[str, int]:
        """The place as `Extended.values` names it."""
        return self.name, self.dim

    @cached_property
    def new(self) -> Index:
        """The new positions."""
        return np.flatnonzero(self.index < 0)

    @property
    def numbers(self) -> Tensor:
        """The number of the new unit, from 0, that each new position belongs to."""
        return torch.from_numpy(self.unit[self.new] - self._old_width)

    @cached_property
    def kept(self) -> Index:
        """Where the old positions went, in their old order."""
        kept = np.flatnonzero(self.index >= 0)
        return kept[np.argsort(self.index[kept])]

    def like(self, units: Index) -> Index:
        """For every position, the one where unit `units[u]` has what unit u has here; `units` [new width]."""
        return _moved(self._expression, self._atom, self._width, units)

    def old_slices(self, tensor: Tensor, units: Sequence[int]) -> Tensor:
        """The slices of old units of `tensor` (as before the event) that new units would have as their copies."""
        origins = self.like(np.concatenate([np.arange(self._old_width), np.asarray(units, dtype=np.int64)]))
        return tensor.index_select(self.dim, torch.from_numpy(self.index[origins[self.new]]).to(tensor.device))

    def along(self, per_unit: Tensor, positions: Index, tensor: Tensor) -> Tensor:
        """A number for each unit `[new width]` as a factor for the given positions of `tensor`, 1 beside the units."""
        units = self.unit[positions]
        factors = per_unit[torch.from_numpy(np.maximum(units, 0))]
        factors = torch.where(torch.from_numpy(units < 0), torch.ones_like(factors), factors)
        view = [1] * tensor.dim()
        view[self.dim] = -1
        return factors.to(tensor).view(view)


class UnitPlaces(list[Place]):
    """Every dimension that grows with a plain site, before it grows."""

    def __init__(self, site: GrowthSite, num_new: int):
        assert not_plain(site) is None, "refuses() was not asked"
        sizes, width = site.grown(num_new), site.width + num_new
        identity = np.arange(width, dtype=np.int64)
        roles = {(member.names[0], member.dim): member.role for member in site.members}
        self.width, self.num_new = site.width, num_new
        super().__init__(
            Place(
                record.names[0],
                record.kind,
                axis,
                roles[record.names[0], axis],
                index_map(record.dims[axis], sizes),
                _unit_of(record.dims[axis], site.atom, identity),
                record.dims[axis],
                site.atom,
                site.width,
                width,
            )
            for record, axis in site.uses
        )

    def of(self, *roles: str) -> list[Place]:
        """Those with one of the roles."""
        return [place for place in self if place.role in roles]

    def norms(self, tensors: dict[str, Tensor], *roles: str) -> Tensor:
        """Norm of what each old unit has in tensors of the sizes before the event, such as gradients: [width]."""
        squares = torch.zeros(self.width, dtype=torch.float64)
        for place in self.of(*roles):
            if place.name in tensors:
                slices = tensors[place.name].detach().double().cpu().movedim(place.dim, 0)
                units = place.unit[place.kept]
                mine = torch.from_numpy(units >= 0)
                squares.index_add_(
                    0, torch.from_numpy(units)[mine], slices.reshape(len(units), -1).square().sum(1)[mine]
                )
        return squares.sqrt()


def _unit_of(dim: Dim, atom: Atom, units: Index) -> Index:
    """The unit of `atom` at every position under its new size, -1 where there is none."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        return units if dim is atom else np.full(dim.size, -1, dtype=np.int64)
    if isinstance(dim, Sum):
        return np.concatenate([_unit_of(segment, atom, units) for segment in dim.segments])
    found = np.full(1, -1, dtype=np.int64)
    for factor in dim.factors:
        minor = _unit_of(factor, atom, units)
        found = np.maximum(found[:, None], minor[None, :]).reshape(-1)
    return found


def _moved(dim: Dim, atom: Atom, width: int, units: Index) -> Index:
    """For every position under the new width, the one with the unit u exchanged for units[u]."""
    dim, sizes = resolve(dim), {atom: width}
    if isinstance(dim, Atom):
        return units if dim is atom else np.arange(dim.size, dtype=np.int64)
    if isinstance(dim, Sum):
        starts = np.cumsum([0, *(size(segment, sizes) for segment in dim.segments)])
        parts = [_moved(segment, atom, width, units) for segment in dim.segments]
        return np.concatenate([part + start for part, start in zip(parts, starts, strict=False)])
    result = np.zeros(1, dtype=np.int64)
    for factor in dim.factors:
        minor = _moved(factor, atom, width, units)
        result = (result[:, None] * size(factor, sizes) + minor[None, :]).reshape(-1)
    return result
