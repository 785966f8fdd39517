"""What is said of a place for one more layer, and of the modules that nothing may follow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from growkit.graph.by_name import pick

__all__ = ["DepthPlace", "PlaceRefusal", "Places", "Structure", "structure_of"]

Structure = tuple[tuple[str, str], ...]
"""Name and class of every module."""


@dataclass(frozen=True)
class DepthPlace:
    """Where one more layer or residual block may stand; it is valid until the model's modules change.

    Attributes:
        name: the module that it follows and is built after.
        kind: "residual block" or "layer".
        container: name of the module whose children it joins.
        position: its place among them, from 0.
        params_added: parameters (no buffers) it adds at the widths of the trace.
        flops_added: forward FLOPs per sample it adds, two per multiplication.
        location: the user's "file:line" of the operation it follows, if known.
        branches: of a residual block, per branch, the parameters that are set to zero, by their name inside the block.
        activation: of a layer, the activation module that is repeated after it; None where the forward applies it.
        norm: of a layer, the normaliser between the one it follows and the activation, which is not repeated.
        structure: the model's modules when it was traced. inputs: the example, as positional and keyword arguments.
    """

    name: str
    kind: str
    container: str
    position: int
    params_added: int
    flops_added: int
    location: str | None
    branches: tuple[tuple[str, ...], ...] = ()
    activation: str | None = None
    norm: str | None = None
    structure: Structure = field(default=(), repr=False, compare=False)
    inputs: tuple[tuple, dict[str, Any]] = field(default=((), {}), repr=False, compare=False)


@dataclass(frozen=True)
class PlaceRefusal:
    """A module that no copy or identity layer may follow.

    Attributes:
        name: the module.
        reason: completes the sentence "this module ...".
        location: the user's "file:line" that the reason points at, if known.
    """

    name: str
    reason: str
    location: str | None


@dataclass(frozen=True)
class Places:
    """The places of a module: iterate, index by number or by name.

    Attributes:
        places: where it can become deeper.
        refusals: the modules that nothing may follow, each with its reason.
    """

    places: tuple[DepthPlace, ...]
    refusals: tuple[PlaceRefusal, ...]

    def __iter__(self) -> Iterator[DepthPlace]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, key: int | str) -> DepthPlace:
        return pick(
            self.places,
            self.refusals,
            key,
            refusal=lambda one: f"nothing may be inserted after {one.name!r}",
            missing="there is no place after a module",
        )


def structure_of(model: nn.Module) -> Structure:
    """Name and class of every module inside, under all its names, in order."""
    modules = model.named_modules(remove_duplicate=False)
    return tuple((name, type(module).__qualname__) for name, module in modules if name)
