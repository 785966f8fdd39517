"""The gradient matrix of GradMax through any graph, measured: many layers on either side, norms, gates, attention."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growkit.graph import GrowthSite, copy_of
from growkit.growth.statistics.layout import Part, UnitLayout, by_parts, unit_layout
from growkit.surgery import Growth, grow

__all__ = ["LARGEST_FAN_OUT", "Component", "FanMap", "measure_fan_map", "sketched"]

LARGEST_FAN_OUT = 4096  # entries that read a unit: each costs its share of a backward pass
TOGETHER = 64  # units that are probed in one backward pass
AMPLITUDE = 1e-3  # of a probe, where units are not silent: their influence on the loss must stay of first order

Gradients = Callable[[nn.Module, Sequence[str]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Component:
    """Parts of a unit's fan-out and of its fan-in that depend on each other, and on no others.

    Attributes:
        rows, columns: their entries in the matrix of the map.
        matrix: [rows, columns].
        fan_out, fan_in: numbers of the parts.
    """

    rows: Tensor
    columns: Tensor
    matrix: Tensor
    fan_out: tuple[int, ...]
    fan_in: tuple[int, ...]


@dataclass(frozen=True)
class FanMap:
    """The linear map from a new unit's fan-out to the gradient of its zero fan-in.

    It is the mixed second derivative of the loss by fan-in and fan-out at zero, so that it is exact for whatever stands
    between and around them. Depthwise filters between them pass the new channels on as they are.

    Attributes:
        matrix: M [R, S] with dL/dw_in = M^T w_out.
        layout: of one unit: its parts in the order of rows and columns.
    """

    matrix: Tensor
    layout: UnitLayout

    def components(self) -> list[Component]:
        """The blocks of the matrix, by parts; parts that nothing depends on are in none."""
        rows, columns = _spans(self.layout.fan_out), _spans(self.layout.fan_in)
        linked = [[bool(self.matrix[r][:, c].any()) for c in columns] for r in rows]
        found: list[Component] = []
        left = {number for number in range(len(rows)) if any(linked[number])}
        while left:
            outs, ins = {min(left)}, set[int]()
            while True:
                ins = {c for c in range(len(columns)) if any(linked[r][c] for r in outs)}
                more = {r for r in left if any(linked[r][c] for c in ins)}
                if more <= outs:
                    break
                outs |= more
            left -= outs
            of_rows = torch.cat([torch.arange(*rows[r].indices(len(self.matrix))) for r in sorted(outs)])
            of_columns = torch.cat([torch.arange(*columns[c].indices(self.matrix.shape[1])) for c in sorted(ins)])
            block = self.matrix[of_rows][:, of_columns]
            found.append(Component(of_rows, of_columns, block, tuple(sorted(outs)), tuple(sorted(ins))))
        return found


def sketched(site: GrowthSite, most: int) -> Tensor:
    """Fan-outs [at most `most`, R] that stand for all: random, orthogonal, and so long that norms are kept in the mean.

    The same for the same site, so that what they give on different batches can be compared.
    """
    size = sum(part.numel for part in unit_layout(site, 1).fan_out)
    if size <= most:
        return torch.eye(size)
    drawn = torch.randn(size, most, generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(drawn).Q.T * (size / most) ** 0.5


def measure_fan_map(
    model: nn.Module, site: GrowthSite, gradients: Gradients, shift: float = 0.0, probes: Tensor | None = None
) -> FanMap:
    """Widen a copy by units of zero fan-in, each with another fan-out, and look at the gradients of their fan-in.

    Args:
        model: it is left as it was.
        site: any one.
        gradients: of the loss of a model, by names of parameters.
        shift: of the new units' pre-activations, by biases and by shifts of norms, for activations that have no slope
            at 0. Units are then not silent, so that their fan-out is small in the probe.
        probes: fan-outs [units, R] to multiply the matrix by; None gives the matrix itself.

    Raises:
        GrowthRefused: the units cannot be told apart.
    """
    one = unit_layout(site, 1)
    size = sum(part.numel for part in one.fan_out)
    kind, patient = model.get_parameter(one.fan_out[0].name), copy_of(model)
    wanted = (torch.eye(size) if probes is None else probes).to(kind.dtype)
    rows = [_gradients(patient, site, some, gradients, shift) for some in wanted.split(TOGETHER)]
    return FanMap(torch.cat(rows), one)


def _gradients(model: nn.Module, site: GrowthSite, probes: Tensor, gradients: Gradients, shift: float) -> Tensor:
    """The gradients of the zero fan-in of units with these fan-outs: [units, S]."""
    layout = unit_layout(site, len(probes))
    edit = grow(model, [Growth(site, len(probes))])
    try:
        amplitude = AMPLITUDE if shift else 1.0
        with torch.no_grad():
            for part, values in zip(layout.fan_out, by_parts(probes, layout.fan_out), strict=True):
                part.write(model.get_parameter(part.name), amplitude * values)
            for part in layout.filters:
                part.write(model.get_parameter(part.name), part.identity())
            for part in (*layout.fan_in, *layout.shifts):
                parameter = model.get_parameter(part.name)
                if shift and (parameter.dim() == 1):
                    part.write(parameter, torch.tensor(shift))
        found = gradients(model, [part.name for part in layout.fan_in])
        return torch.cat([part.read(found[part.name]).cpu() / amplitude for part in layout.fan_in], 1)
    finally:
        edit.undo()


def _spans(parts: Sequence[Part]) -> list[slice]:
    found, start = [], 0
    for part in parts:
        found.append(slice(start, start + part.numel))
        start += part.numel
    return found
