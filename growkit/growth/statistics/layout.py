"""Where the entries of a site's new units lie, in every weight that makes them or reads them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.graph.dimensions import Atom, Dim, Product, Sum, index_map, leaves, resolve, size
from growkit.graph.growth_site import role_of
from growkit.graph.rules.context import TensorUse

__all__ = ["Part", "UnitLayout", "by_parts", "slices_of", "unit_layout"]


@dataclass(frozen=True)
class Part:
    """The entries of one tensor that belong to the same place in every new unit.

    A unit may have several in one tensor: a channel that is flattened into positions has one column for each position,
    a head has one row for each of its channels in queries, keys and values.

    Attributes:
        name: of the parameter.
        dim: the dimension along which the units stand.
        positions: of the units along it, in the grown tensor: [units].
        shape: of one entry: the other dimensions at their old sizes.
        others: the old positions of the other dimensions in the grown tensor.
        number: of the part among those of its tensor.
    """

    name: str
    dim: int
    positions: Tensor
    shape: tuple[int, ...]
    others: tuple[Tensor, ...]
    number: int = 0

    @property
    def numel(self) -> int:
        """Numbers of one unit."""
        return math.prod(self.shape)

    def identity(self) -> Tensor:
        """The filter that passes its channel on as it is: 1 in the middle [numel]; in a group, each its own channel."""
        filled = torch.zeros(self.shape)
        channel, *middle = self.number % self.shape[0], *((extent - 1) // 2 for extent in self.shape[1:])
        filled[channel, *middle] = 1.0
        return filled.flatten()

    def read(self, tensor: Tensor) -> Tensor:
        """The entries [units, numel] of a tensor of the grown shape."""
        return tensor.movedim(self.dim, 0)[self._grid(tensor)].reshape(len(self.positions), self.numel)

    def write(self, tensor: Tensor, values: Tensor) -> None:
        """Write entries [units, numel], or one number for all, into a tensor of the grown shape, in place."""
        filled = values.expand(len(self.positions), self.numel).reshape(-1, *self.shape)
        tensor.movedim(self.dim, 0)[self._grid(tensor)] = filled.to(tensor)

    def _grid(self, tensor: Tensor) -> tuple[Tensor, ...]:
        places = (self.positions, *self.others)
        return tuple(
            one.to(tensor.device).view(*(-1 if axis == place else 1 for axis in range(len(places))))
            for place, one in enumerate(places)
        )


@dataclass(frozen=True)
class UnitLayout:
    """Where the new units of a site lie when it grows by some.

    Attributes:
        units: how many.
        fan_in, fan_out: the parts in the weights and biases that make the units, and in those that read them.
        filters: the parts in depthwise filters and those of whole groups, which make a unit of itself.
        shifts: the parts in what is added unit by unit between them: shifts of norms, and tokens of the model's own.
    """

    units: int
    fan_in: tuple[Part, ...]
    fan_out: tuple[Part, ...]
    filters: tuple[Part, ...]
    shifts: tuple[Part, ...]


def unit_layout(site: GrowthSite, num_new: int) -> UnitLayout:
    """The layout of `num_new` units that `site` grows by.

    Raises:
        GrowthRefused: units cannot be told apart in one of the tensors.
    """
    sizes = site.grown(num_new)
    found: dict[str, list[Part]] = {"producer": [], "consumer": [], "filter": [], "shift": []}
    for record, axis in site.uses:
        role = role_of(record, axis)
        if role == "pass_through":
            role = _role_between(record, axis)
        if role and record.kind == "parameter":
            found[role] += _parts(site, record.names[0], record.dims, axis, num_new, sizes)
    return UnitLayout(num_new, *map(tuple, (found["producer"], found["consumer"], found["filter"], found["shift"])))


def _role_between(record: TensorUse, axis: int) -> str:
    """What a tensor that acts unit by unit does: nothing but convolutions filters, the rest, as a class token, adds."""
    if record.neutral is None:
        return "filter" if axis == 0 and len(record.dims) >= 3 else "shift"
    return "shift" if record.neutral == 0.0 else ""


def _parts(
    site: GrowthSite, name: str, dims: tuple[Dim, ...], axis: int, num_new: int, sizes: Mapping[Atom, int]
) -> list[Part]:
    moving = [atom for atom in leaves(dims[axis]) if atom in sizes]
    if len(moving) != 1:
        raise GrowthRefused(f"several sizes grow at once in dimension {axis} of {name}")
    (atom,) = moving
    added = sizes[atom] - atom.size
    if added % num_new:
        raise GrowthRefused(f"a unit adds no whole number of entries to dimension {axis} of {name}")
    coordinate = _coordinates(dims[axis], atom, sizes)
    unit = np.where(coordinate >= atom.size, (coordinate - atom.size) // (added // num_new), -1)
    places = np.stack([np.flatnonzero(unit == number) for number in range(num_new)])  # [units, parts]
    others = [index_map(dim, sizes) for place, dim in enumerate(dims) if place != axis]
    kept = tuple(torch.from_numpy(np.flatnonzero(index >= 0)) for index in others)
    shape = tuple(len(one) for one in kept)
    return [Part(name, axis, torch.from_numpy(places[:, part]), shape, kept, part) for part in range(places.shape[1])]


def _coordinates(dim: Dim, atom: Atom, sizes: Mapping[Atom, int]) -> np.ndarray:
    """The coordinate along `atom` of every position of a grown dimension; -1 in segments that it has no part in."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        count = size(dim, sizes)
        return np.arange(count) if dim is atom else np.full(count, -1)
    if isinstance(dim, Sum):
        return np.concatenate([_coordinates(segment, atom, sizes) for segment in dim.segments])
    assert isinstance(dim, Product)
    result = np.full(1, -1)
    for factor in dim.factors:
        result = np.maximum(result[:, None], _coordinates(factor, atom, sizes)[None, :]).reshape(-1)
    return result


def by_parts(vectors: Tensor, parts: Sequence[Part]) -> Iterator[Tensor]:
    """Vectors [units, all entries] as [units, numel] of each part."""
    return iter(vectors.split([part.numel for part in parts], dim=1))


def slices_of(vectors: Tensor, parts: Sequence[Part]) -> dict[tuple[str, int], Tensor]:
    """Vectors [units, all entries] as growkit.surgery.Extension takes them: new slices by tensor and dimension."""
    together: dict[tuple[str, int], list[tuple[Part, Tensor]]] = {}
    for part, values in zip(parts, by_parts(vectors, parts), strict=True):
        together.setdefault((part.name, part.dim), []).append((part, values))
    found = {}
    for (name, dim), placed in together.items():
        order = torch.cat([part.positions for part, _ in placed]).argsort()
        entries = torch.cat([values for _, values in placed])[order]
        found[name, dim] = entries.reshape(-1, *placed[0][0].shape).movedim(0, dim)
    return found
