"""How long a new slice is, and random slices of that length."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from growkit.config.growth import NormSettings
from growkit.graph import GrowthSite, TensorEdit
from growkit.growth.statistics import Measurement, unit_layout

__all__ = ["Draw", "fan_out_norm", "mean_norm", "random_slices", "scaled", "slice_norm"]

Draw = Callable[..., Tensor]
"""torch.randn or torch.rand: (shape, generator=) -> directions."""


def slice_norm(tensor: Tensor, dim: int, settings: NormSettings) -> float:
    """L2 norm that a new slice of `tensor` along `dim` shall have.

    norm mean: `scale` times the mean norm of the existing slices (Evci et al. 2022), see `mean_norm`. norm fixed:
    `scale` itself.
    """
    return settings.scale if settings.norm == "fixed" else settings.scale * mean_norm(tensor, dim)


def mean_norm(tensor: Tensor, dim: int) -> float:
    """The mean L2 norm of the slices of `tensor` along `dim`.

    Where those are all zero (a zero-initialised layer) the norm a Kaiming-initialised slice would have takes their
    place, for a unit that is zero on both sides never learns.
    """
    existing = tensor.transpose(0, dim).flatten(1).norm(dim=1).mean().item() if tensor.dim() > 1 else 0.0
    if existing == 0.0:
        fan_in = max(1, tensor[0].numel())
        existing = math.sqrt(2.0 / fan_in * tensor.numel() / tensor.shape[dim])
    return existing


def fan_out_norm(site: GrowthSite, measurement: Measurement, settings: NormSettings) -> float:
    """L2 norm of all that reads a new unit of `site`, whose slices are as long as the settings say."""
    parts = unit_layout(site, 1).fan_out
    return math.sqrt(sum(slice_norm(measurement.tensor(part.name), part.dim, settings) ** 2 for part in parts))


def scaled(slices: Tensor, dim: int, norm: float) -> Tensor:
    """Give every slice of `slices` along `dim` the L2 norm `norm`."""
    lengths = slices.transpose(0, dim).flatten(1).norm(dim=1)
    view = [1] * slices.dim()
    view[dim] = -1
    return slices * (norm / lengths.clamp_min(torch.finfo(slices.dtype).tiny)).view(view)


def random_slices(
    site: GrowthSite,
    num_new: int,
    side: str,
    measurement: Measurement,
    settings: NormSettings,
    generator: torch.Generator,
    draw: Draw = torch.randn,
) -> dict[tuple[str, int], Tensor]:
    """Random directions for one side of a site's new units, on every weight of that side.

    Biases stay zero, unless they are all that could wake the units: where one weight makes the units and reads them (an
    autoencoder with tied weights), it must be zero, and units that are zero on both sides would never learn.

    Args:
        site: where.
        num_new: how many units.
        side: "consumer" (the fan-out), or "live": what need not be zero at first, which is the fan-in unless a remedy
            of the site says otherwise.
        measurement: gives the existing weights.
        settings: how long a slice is.
        generator: source of the directions.
        draw: torch.randn for Gaussian directions, torch.rand for U[0, 1).
    """
    values: dict[tuple[str, int], Tensor] = {}
    live = [edit for edit in site.tensor_edits(num_new) if not edit.pass_through and edit.kind == "parameter"]
    tensors = {edit.names[0]: measurement.tensor(edit.names[0]) for edit in live}
    places = [(edit, dim) for edit in live for dim in _dims_of(side, edit)]
    weights = [place for place in places if tensors[place[0].names[0]].dim() > 1]
    for edit, dim in weights or places:
        index, tensor = edit.index_maps[dim], tensors[edit.names[0]]
        assert index is not None
        shape = list(tensor.shape)
        shape[dim] = int((index < 0).sum())
        slices = draw(shape, generator=generator).to(tensor)
        values[edit.names[0], dim] = scaled(slices, dim, slice_norm(tensor, dim, settings)) if weights else 0.1 * slices
    return values


def _dims_of(side: str, edit: TensorEdit) -> list[int]:
    changed = [dim for dim, index in enumerate(edit.index_maps) if index is not None]
    if side == "consumer":
        return [dim for dim in changed if dim in edit.consumer_dims]
    return [dim for dim in changed if dim not in edit.silent_dims]
