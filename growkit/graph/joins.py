"""Widths that can only grow together: one attribute that several operations read, or a size that must stay a product.

Which of these holds cannot be read off a trace, where every size is a number. So the joins are proposals, and a trial
decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from growkit.graph.dimensions import Atom, Dim, Product, leaves, resolve, size
from growkit.graph.growth_site import GrowthSite
from growkit.graph.model_graph import ModelGraph

__all__ = ["joins"]


def joins(graph: ModelGraph, sites: Sequence[GrowthSite]) -> Iterator[GrowthSite]:
    """Joint sites made of the given ones, the likelier first: each gives up the separate growth of its parts."""
    alone = [site for site in sites if len(site.steps) == 1]
    yield from _by_attribute(graph, alone)
    yield from _by_product(graph, alone)


def _by_attribute(graph: ModelGraph, sites: Sequence[GrowthSite]) -> Iterator[GrowthSite]:
    """Sites of one width whose sizes stand in one and the same attribute."""
    groups: list[tuple[set[object], list[GrowthSite]]] = []
    for site in sites:
        carriers = graph.carriers_of(site.steps)
        keys: set[object] = {(one.holder, one.ratio, site.width) for one in carriers if one.likely}
        members = [site]
        for group in [group for group in groups if group[0] & keys]:
            groups.remove(group)
            keys |= group[0]
            members = [*group[1], *members]
        groups.append((keys, members))
    for keys, members in groups:
        if keys and len(members) > 1:
            yield graph.join(members, {site.atom: 1 for site in members})


def _by_product(graph: ModelGraph, sites: Sequence[GrowthSite]) -> Iterator[GrowthSite]:
    """A width that elsewhere is written as a product, such as heads times their size: one factor grows along."""
    site_of = {site.atom: site for site in sites}
    for stream in sites:
        products = list(_products(graph, stream.atom))
        for choose in (_first, _last):
            chosen = [(dim, factor) for dim in products if (factor := choose(dim, site_of, stream.atom)) is not None]
            if not chosen:
                continue
            ratios = {factor: size(dim) // factor.size for dim, factor in chosen}
            step = math.lcm(*ratios.values())
            steps = {factor: step // ratio for factor, ratio in ratios.items()} | {stream.atom: step}
            yield graph.join([stream, *(site_of[factor] for factor in ratios)], steps)


def _products(graph: ModelGraph, atom: Atom) -> Iterator[Dim]:
    """The products that the forward passes a number for, equal to the atom's size, in a module that sees the atom."""
    owners = graph.owners_of(atom)
    seen = set()
    for literal in graph.literals:
        dim = resolve(literal.dim)
        near = not owners.isdisjoint(literal.owners[:2])
        if not isinstance(dim, Product) or size(dim) != atom.size or atom in leaves(dim) or not near:
            continue
        if not all(leaf.pins for leaf in leaves(dim)) and (key := tuple(leaves(dim))) not in seen:
            seen.add(key)
            yield dim


def _first(dim: Dim, sites: dict[Atom, GrowthSite], stream: Atom) -> Atom | None:
    return next((leaf for leaf in leaves(dim) if leaf in sites and leaf is not stream), None)


def _last(dim: Dim, sites: dict[Atom, GrowthSite], stream: Atom) -> Atom | None:
    return next((leaf for leaf in reversed(leaves(dim)) if leaf in sites and leaf is not stream), None)
