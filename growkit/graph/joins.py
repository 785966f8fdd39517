"""Widths that can only grow together: one attribute that several operations read, or a size that must stay a product.

Which of these holds cannot be read off a trace, where every size is a number. So the joins are proposals, and a trial
decides.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from growkit.graph.dimensions import Atom, Dim, Product, leaves, resolve, size
from growkit.graph.growth_site import GrowthSite
from growkit.graph.model_graph import ModelGraph
from growkit.graph.rules.context import Literal

__all__ = ["joins"]


def joins(graph: ModelGraph, sites: Sequence[GrowthSite]) -> Iterator[GrowthSite]:
    """Joint sites made of the given ones, the likelier first: each gives up the separate growth of its parts."""
    alone = [site for site in sites if len(site.atoms) == 1]
    yield from _by_attribute(graph, alone)
    yield from _by_product(graph, alone)


def _by_attribute(graph: ModelGraph, sites: Sequence[GrowthSite]) -> Iterator[GrowthSite]:
    """Sites of one width whose sizes stand in one and the same attribute."""
    groups: list[tuple[set[object], list[GrowthSite]]] = []
    for site in sites:
        carriers = graph.carriers_of(site.atoms)
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
    """A width that elsewhere is written as a product, such as heads times their size: one factor grows along.

    So do widths that are equal to it elsewhere: those that one number, read off its size, is written for.
    """
    site_of = {site.atom: site for site in sites}
    for stream in sites:
        written = list(_products(graph, stream.atom))
        equals = [one for literal in written if (one := resolve(literal.dim)) in site_of]
        products = [literal for literal in written if isinstance(resolve(literal.dim), Product)]
        for choose in (_first, _last):
            chosen = [
                (one, factor) for one in products if (factor := choose(one.dim, site_of, stream.atom)) is not None
            ]
            ratios = {factor: size(one.dim) // factor.size for one, factor in chosen}
            if choose is _last:  # queries and values may have sizes of their own that one number gives
                for one, factor in chosen:
                    ratios |= {
                        mate: ratios[factor] for mate in _mates(graph, one, factor, site_of) if mate not in ratios
                    }
            ratios.pop(stream.atom, None)
            if not ratios:
                continue
            step = math.lcm(*ratios.values())
            steps = {factor: step // ratio for factor, ratio in ratios.items()}
            ties = dict.fromkeys((stream.atom, *equals), resolve(chosen[0][0].dim))
            yield graph.join([site_of[one] for one in (*ties, *steps)], steps, ties)
        if equals and not products:
            yield graph.join([stream, *(site_of[one] for one in equals)], dict.fromkeys((stream.atom, *equals), 1))


def _products(graph: ModelGraph, atom: Atom) -> Iterator[Literal]:
    """Where the forward passes another size equal to the atom's in a module that sees the atom, or factors of one.

    A step that may not change, as in the merging of patches, is no factor that was computed from the width.
    """
    owners = graph.owners_of(atom)
    seen = set()
    free = [one for one in graph.quotients if not any(leaf.pins for leaf in leaves(one.dim))]
    for literal in (*graph.literals, *free):
        dim = resolve(literal.dim)
        near = not owners.isdisjoint(literal.owners[:2])
        if not isinstance(dim, Atom | Product) or size(dim) != atom.size or atom in leaves(dim) or not near:
            continue
        if not all(leaf.pins for leaf in leaves(dim)) and (key := tuple(leaves(dim))) not in seen:
            seen.add(key)
            yield literal


def _mates(graph: ModelGraph, product: Literal, factor: Atom, sites: Mapping[Atom, GrowthSite]) -> list[Atom]:
    """Other atoms of a factor's size that the same module passes on, other factors left out."""
    passed = [literal for literal in graph.literals if literal.owners[:1] == product.owners[:1]]
    atoms = dict.fromkeys(atom for literal in passed for atom in leaves(literal.dim))
    factors = leaves(product.dim)
    return [atom for atom in atoms if atom not in factors and atom in sites and atom.size == factor.size]


def _first(dim: Dim, sites: dict[Atom, GrowthSite], stream: Atom) -> Atom | None:
    return next((leaf for leaf in leaves(dim) if leaf in sites and leaf is not stream), None)


def _last(dim: Dim, sites: dict[Atom, GrowthSite], stream: Atom) -> Atom | None:
    return next((leaf for leaf in reversed(leaves(dim)) if leaf in sites and leaf is not stream), None)
