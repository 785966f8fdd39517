"""Parts of a module that no trace reaches, and the widths that an edit would leave behind in them.

A head for another task, or the other side of a branch on values, never ran: no rule saw it and no check will. All that
is known of it is the shapes of its parameters, so a width is given up where one of them has its size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from torch import nn

from growkit.graph.dimensions import Atom, Reason, leaves, size
from growkit.graph.rules.context import Context, TensorUse

__all__ = ["UnreachedPart", "find_unreached", "may_read"]


@dataclass(frozen=True)
class UnreachedPart:
    """A module, or a parameter by itself, that neither trace uses.

    Attributes:
        name: in the model.
        sizes: of the dimensions of its parameters that may be widths, with the parameter's name.
    """

    name: str
    sizes: Mapping[int, str]


def find_unreached(tensors: Iterable[TensorUse], modules: Mapping[str, nn.Module]) -> tuple[UnreachedPart, ...]:
    """The largest parts none of whose parameters is used, in the order of the model.

    Statistics of norms without weights count as parameters.

    Args:
        tensors: what the traces say of every parameter and buffer.
        modules: the modules by name.
    """
    weights = [record for record in tensors if record.kind == "parameter" or _is_statistic(record, modules)]
    reached = {name for record in weights if record.used for full in record.names for name in _upwards(full)}
    parts: dict[str, dict[int, str]] = {}
    for record in weights:
        if not record.used:
            name = record.names[0]
            part = next(outer for outer in reversed(_upwards(name)) if outer not in reached)
            for extent in _widths(record, modules):
                parts.setdefault(part, {}).setdefault(extent, name)
    return tuple(UnreachedPart(name, sizes) for name, sizes in parts.items())


def may_read(parts: Sequence[UnreachedPart], atom: Atom, contexts: Sequence[Context]) -> list[Reason]:
    """Why a width may not grow: an unreached part may read it, or make it. Empty where none has a fitting size.

    A size fits if it is the width, or that of a traced value of this width flattened but for the batch. What else an
    unreached part might do with a width, such as concatenate it, nobody can know.
    """
    if not parts:
        return []
    fitting = {atom.size, *_flattened(atom, contexts)}
    found = [(part, extent, name) for part in parts for extent, name in part.sizes.items() if extent in fitting]
    if not found:
        return []
    part, extent, name = found[0]
    others = len({one.name for one, _, _ in found}) - 1
    more = f" and {others} more" if others else ""
    text = (
        f"may be a width of {part.name!r}{more}, which the example does not reach and an edit would leave behind "
        f"({name!r} has a dimension of {extent}); trace a wrapper whose forward runs that part too, or delete it"
    )
    return [Reason(text)]


def _upwards(name: str) -> list[str]:
    """A tensor's name and those of the modules around it, innermost first; without the root."""
    steps = name.split(".")
    return [".".join(steps[:end]) for end in range(len(steps), 0, -1)]


def _is_statistic(record: TensorUse, modules: Mapping[str, nn.Module]) -> bool:
    owner = modules.get(record.names[0].rpartition(".")[0])
    return isinstance(owner, nn.modules.batchnorm._NormBase)


def _widths(record: TensorUse, modules: Mapping[str, nn.Module]) -> Collection[int]:
    """The sizes in a tensor's shape that may be widths: not those of kernels."""
    owner, shape = modules.get(record.names[0].rpartition(".")[0]), [size(dim) for dim in record.dims]
    if isinstance(owner, nn.modules.conv._ConvNd) and len(shape) > 2:
        shape = [*shape[:2], owner.in_channels, owner.out_channels]
    return [extent for extent in dict.fromkeys(shape) if extent > 1]


def _flattened(atom: Atom, contexts: Sequence[Context]) -> set[int]:
    """The sizes that values of this width would have if they were flattened but for their first dimension."""
    values = [value for ctx in contexts for value in ctx.values.values() if isinstance(value, tuple)]
    return {prod(map(size, value[1:])) for value in values if any(atom in leaves(dim) for dim in value[1:])}
