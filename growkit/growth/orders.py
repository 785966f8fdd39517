"""What is to be done at the sites of an event: the initializers are asked, and say which sites cannot grow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from growkit.errors import GrowthRefused, GrowthWaits
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import GrowthDecision, Initializer
from growkit.growth.operation import Order
from growkit.growth.statistics import Measurement

__all__ = ["Orders", "orders_for"]


@dataclass(frozen=True)
class Orders:
    """What is to be done, site by site.

    Attributes:
        given: for the sites that can grow.
        waiting: sites that cannot for what the growth batch shows; on a later one they may.
        refused: sites that no initializer can serve as its settings ask, and never will.
    """

    given: list[Order]
    waiting: list[Refusal]
    refused: list[Refusal]


def orders_for(
    decisions: Sequence[GrowthDecision],
    sites: Sites,
    initializers: Sequence[Initializer],
    measurement: Measurement,
    generator: torch.Generator,
) -> Orders:
    """The new units of each site that was decided on, by the first of the initializers that can serve it.

    Args:
        decisions: where, and how many units.
        sites: by name.
        initializers: in the order of preference; one at least serves each of these sites.
        measurement: of these sites on the growth batch.
        generator: source of all chance.
    """
    orders = Orders([], [], [])
    for decision in decisions:
        site = sites[decision.site]
        try:
            orders.given.append(_order(site, decision.num_new, initializers, measurement, generator))
        except GrowthRefused as reason:
            where = orders.waiting if isinstance(reason, GrowthWaits) else orders.refused
            where.append(Refusal(site.name, site.width, str(reason), site.location))
    given = [replace(order, extended=order.extended.chosen()) for order in orders.given]
    return replace(orders, given=given)


def _order(
    site: GrowthSite,
    num_new: int,
    initializers: Sequence[Initializer],
    measurement: Measurement,
    generator: torch.Generator,
) -> Order:
    first, *others = [one for one in initializers if one.refuses(site) is None]
    try:
        return Order(site, num_new, first, first.extend(site, num_new, measurement, generator))
    except GrowthRefused as refused:  # facts that only a batch shows
        if not others:
            raise
        extended = others[0].extend(site, num_new, measurement, generator)
        return Order(site, num_new, others[0], replace(extended, reason=f"fallback, for {refused}"))
