"""Variance transfer: new units in pairs that cancel, and old weights rescaled to the new width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from growkit.config.growth import VarianceTransferSettings
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.norms import random_slices
from growkit.growth.initializers.units import Place, UnitPlaces, not_plain
from growkit.growth.statistics import Measurement

__all__ = ["VarianceTransfer"]

HOMOGENEOUS = frozenset({
    "relu", "leaky_relu", "dropout", "feature_dropout", "clone", "contiguous", "alias", "detach", "to", "_to_copy",
})  # fmt: skip
"""Operations with f(a x) = a f(x) for a > 0."""


@dataclass(frozen=True)
class VarianceTransfer(Initializer):
    """Pairs (V, V) of equal fan-in read by (Z, -Z), and old weights scaled to the new width.

    Yuan, Savarese and Maire (NeurIPS 2023): whatever the units compute, a pair adds nothing, and its two units part at
    the first step, for their fan-ins meet opposite gradients. Of an odd number the last unit has zero fan-out.

    With r = (old width / new width)^exponent the old fan-outs are multiplied by r, and Z is drawn r times as long as
    the old ones were. In the paper a BatchNorm behind them takes the factor up, which its eps allows only
    roughly: at eps 1e-5 and a variance of 1 outputs move by more than growth.tolerance. Here the unit itself is divided
    by r, which is exact for relu and other homogeneous activations: in the gain and shift of the BatchNorm before them,
    or else in its fan-in and bias. Elsewhere nothing old is rescaled, for it would change the function, and
    `facts["rescaled"]` is "none". V has the length of the old fan-ins, whose own width stays.

    The learning rates of the paper, eta_0 |W_new| / |W_0| for every part of a weight, are a matter of the optimizer
    (`growth.optimizer.part_rates: norm_ratio`): `facts["part_norms"]` gives the norms [old part, new part] of every
    weight at the event.
    """

    settings: VarianceTransferSettings = VarianceTransferSettings()
    name: ClassVar[str] = "variance_transfer"

    def refuses(self, site: GrowthSite) -> str | None:
        reason = not_plain(site)
        return None if reason is None else f"variance_transfer {reason}"

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        places = UnitPlaces(site, num_new)
        ratio = (site.width / (site.width + num_new)) ** self.settings.exponent
        values = random_slices(site, num_new, "live", measurement, self.settings, generator)
        fan_out = random_slices(site, num_new, "consumer", measurement, self.settings, generator)
        values |= {key: ratio * slices for key, slices in fan_out.items()}
        paired = {place.key: _paired(place, values[place.key], num_new) for place in places if place.key in values}
        carrier, rewrites = _rescaled(site, places, measurement, ratio)
        old = {name: rewrites.get(name, measurement.tensor(name)) for name, _ in paired}
        facts: dict[str, Any] = {"ratio": round(ratio, 9), "rescaled": carrier, "part_norms": _part_norms(paired, old)}
        return Extended(paired, "paired", "its only form", facts, rewrites)


def _paired(place: Place, slices: Tensor, num_new: int) -> Tensor:
    """The slices of every second new unit made those of the one before; opposite, in the fan-out."""
    width = int(place.unit.max()) + 1 - num_new
    number = np.arange(num_new)
    partner = np.concatenate([np.arange(width), width + number - number % 2])
    rank = torch.from_numpy(np.searchsorted(place.new, place.like(partner)[place.new]))
    paired = slices.index_select(place.dim, rank.to(slices.device))
    if place.role != "consumer":
        return paired
    signs = torch.ones(width + num_new)
    signs[width + 1 :: 2] = -1.0
    if num_new % 2:
        signs[-1] = 0.0
    return paired * place.along(signs, place.new, slices)


def _rescaled(
    site: GrowthSite, places: UnitPlaces, measurement: Measurement, ratio: float
) -> tuple[str, dict[str, Tensor]]:
    """What is divided by the ratio so that fan-outs can be multiplied by it, and all new values."""
    between = site.chain.between if site.chain is not None else ("many",)
    norms = [number for number, name in enumerate(between) if name == "batch_norm"]
    behind = between[norms[-1] + 1 :] if norms else between
    divided = places.of("pass_through" if norms else "producer")
    names = list(dict.fromkeys(place.name for place in divided if place.is_parameter))
    if ratio == 1.0 or not HOMOGENEOUS.issuperset(behind) or not names:
        return "none", {}
    rewrites = {name: measurement.tensor(name) / ratio for name in names}
    rewrites |= {place.name: measurement.tensor(place.name) * ratio for place in places.of("consumer")}
    return "norm" if norms else "fan_in", rewrites


def _part_norms(slices: Mapping[tuple[str, int], Tensor], old: Mapping[str, Tensor]) -> dict[str, list[float]]:
    """The norms of the old and of the new part of every weight."""
    new: dict[str, float] = {}
    for (name, _), values in slices.items():
        new[name] = new.get(name, 0.0) + float(values.square().sum())
    return {name: [round(float(old[name].norm()), 9), round(math.sqrt(square), 9)] for name, square in new.items()}
