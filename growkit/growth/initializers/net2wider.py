"""Net2Wider: new units are copies of old ones, and what reads them is shared out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from growkit.config.growth import Net2WiderSettings
from growkit.device import exact_arithmetic
from growkit.errors import GrowthWaits
from growkit.graph import GrowthSite, copy_of
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.units import UnitPlaces, not_plain
from growkit.growth.initializers.widened import loss_of
from growkit.growth.statistics import Measurement
from growkit.surgery import lookup

__all__ = ["Net2Wider", "copies_of"]


@dataclass(frozen=True)
class Net2Wider(Initializer):
    """Copies of units drawn at random, none a second time before all have their turn (Chen et al., ICLR 2016).

    The paper divides the fan-out of a unit by the number of its copies and adds noise to the weights, which changes the
    function. Here the noise is in the shares: of c copies each gets (1 + noise d) / c of the fan-out, with c numbers d
    spread evenly over [-1, 1] in random order. The shares add up to 1, and copies that are read differently meet
    different gradients. Units whose fan-in has no gradient on the batch (dead, or read by nobody) are not copied.
    """

    settings: Net2WiderSettings = Net2WiderSettings()
    name: ClassVar[str] = "net2wider"

    def refuses(self, site: GrowthSite) -> str | None:
        reason = not_plain(site)
        return None if reason is None else f"net2wider {reason}"

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        places = UnitPlaces(site, num_new)
        alive = torch.nonzero(_gradient_norms(places, measurement, site) > 0.0)[:, 0]
        if not len(alive):
            raise GrowthWaits(
                f"net2wider copies units that learn, and none at {site.name} has a gradient on the growth batch; grow "
                "later or on a larger batch, or set growth.fallback"
            )
        order = alive[torch.randperm(len(alive), generator=generator)]
        copied = order[torch.arange(num_new) % len(order)].tolist()
        shares = self._shares(copied, site.width, generator)
        values, rewrites = copies_of(places, measurement, copied, shares)
        return Extended(values, "copied", "its only form", {"copied": copied}, rewrites)

    def _shares(self, copied: list[int], width: int, generator: torch.Generator) -> Tensor:
        """The share of every unit in the fan-out of its origin: [new width]."""
        shares = torch.ones(width + len(copied), dtype=torch.float64)
        for unit in dict.fromkeys(copied):
            group = [unit, *(width + number for number, origin in enumerate(copied) if origin == unit)]
            spread = torch.linspace(-1.0, 1.0, len(group), dtype=torch.float64)
            order = torch.randperm(len(group), generator=generator)
            shares[group] = (1.0 + self.settings.noise * spread[order]) / len(group)
        return shares


def copies_of(
    places: UnitPlaces, measurement: Measurement, copied: list[int], shares: Tensor
) -> tuple[dict[tuple[str, int], Tensor], dict[str, Tensor]]:
    """New units as copies: slices for all that makes and carries them, and shares of all that reads them.

    Args:
        places: of the site.
        measurement: gives the tensors.
        copied: for every new unit the old one that it copies.
        shares: for every unit, old ones first, its share in the fan-out of its origin.

    Returns:
        Values and rewrites as of `Extended`.
    """
    values, rewrites = {}, {}
    for place in places:
        tensor = lookup(measurement.model, place.name, place.kind).detach()
        slices = place.old_slices(tensor, copied)
        if place.role == "consumer":
            slices = slices * place.along(shares, place.new, tensor)
            before = rewrites.get(place.name, tensor)
            rewrites[place.name] = before * place.along(shares, place.kept, tensor)
        values[place.key] = slices
    return values, rewrites


def _gradient_norms(places: UnitPlaces, measurement: Measurement, site: GrowthSite) -> Tensor:
    """Norm of the gradient of every old unit's fan-in on the growth batch."""
    model = copy_of(measurement.model)
    model.zero_grad()
    with exact_arithmetic(), torch.enable_grad():
        loss_of(model, measurement, site).backward()
    measurement.forwards += 2
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return places.norms(gradients, "producer")
