"""The algebra of widths, against what it must mean: two equal dimensions grow alike, entry by entry."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from growkit.graph.dimensions import (
    ONE,
    Atom,
    Dim,
    Product,
    Reason,
    Sum,
    fixed,
    flag,
    free,
    index_map,
    leaves,
    pin,
    resolve,
    same,
    size,
)
from growkit.graph.unification import factor, regroup, split, unify

WHY = Reason("is a test")


def expressions(max_leaves: int = 4) -> st.SearchStrategy[Dim]:
    """Random expressions over fresh atoms, some of them pinned."""
    atoms = st.builds(_atom, st.integers(2, 5), st.sampled_from([False, False, False, True]))
    return st.recursive(
        atoms,
        lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
            lambda parts: st.sampled_from([Product(parts), Sum(parts)])
        ),
        max_leaves=max_leaves,
    )


def _atom(width: int, pinned: bool) -> Dim:
    return fixed(width, WHY) if pinned else free(width)


@st.composite
def equal_pairs(draw) -> tuple[Dim, Dim]:
    """Two expressions of the same size with different structure."""
    total = draw(st.sampled_from([4, 6, 8, 12, 16, 24]))
    return draw(sized(total, 2)), draw(sized(total, 2))


@st.composite
def sized(draw, total: int, depth: int) -> Dim:
    """A random expression of a given size."""
    shape = draw(st.sampled_from(["atom", "product", "sum"])) if depth and total > 3 else "atom"
    if shape == "product":
        divisors = [k for k in range(2, total) if total % k == 0]
        if divisors:
            major = draw(st.sampled_from(divisors))
            return Product([draw(sized(major, depth - 1)), draw(sized(total // major, depth - 1))])
    if shape == "sum":
        first = draw(st.integers(2, total - 2))
        return Sum([draw(sized(first, depth - 1)), draw(sized(total - first, depth - 1))])
    return free(total)


def grow(dims: list[Dim], num_new: int = 2) -> dict[Atom, int]:
    """New sizes for every atom that may change."""
    return {atom: atom.size + num_new for dim in dims for atom in leaves(dim) if not atom.pins}


@given(expressions())
def test_index_map_keeps_every_old_entry_once_and_in_order(dim):
    sizes = grow([dim])
    old = index_map(dim, sizes)
    assert len(old) == size(dim, sizes)
    assert np.array_equal(old[old >= 0], np.arange(size(dim)))


@given(expressions())
def test_index_map_without_growth_is_the_identity(dim):
    assert np.array_equal(index_map(dim, {}), np.arange(size(dim)))


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.data())
def test_index_map_of_a_product_is_that_of_the_flattened_array(widths, data):
    atoms = [Atom(width) for width in widths]
    new = [width + data.draw(st.integers(0, 2)) for width in widths]
    dense = np.full(new, -1)
    dense[tuple(slice(width) for width in widths)] = np.arange(math.prod(widths)).reshape(widths)
    assert np.array_equal(index_map(Product(atoms), dict(zip(atoms, new, strict=True))), dense.reshape(-1))


@settings(max_examples=200)
@given(equal_pairs())
def test_unified_dimensions_keep_their_size_and_grow_alike(pair):
    first, second = pair
    width = size(first)
    unify(first, second)
    assert size(first) == size(second) == width
    sizes = grow([first, second])
    assert np.array_equal(index_map(first, sizes), index_map(second, sizes))


@given(equal_pairs())
def test_unifying_twice_changes_nothing(pair):
    unify(*pair)
    sizes = grow(list(pair))
    before = index_map(pair[0], sizes)
    unify(*pair)
    assert np.array_equal(index_map(pair[0], sizes), before)


@settings(max_examples=200)
@given(expressions(), st.data())
def test_split_and_concatenation_are_inverse(dim, data):
    total = size(dim)
    cuts = data.draw(st.sets(st.integers(1, total - 1), max_size=3))
    widths = [end - start for start, end in itertools.pairwise([0, *sorted(cuts), total])]
    parts = split(dim, widths)
    assert [size(part) for part in parts] == widths
    sizes = grow([dim, *parts])
    assert np.array_equal(index_map(dim, sizes), index_map(Sum(parts), sizes))


@settings(max_examples=200)
@given(expressions(), st.data())
def test_factoring_and_flattening_are_inverse(dim, data):
    total = size(dim)
    major = data.draw(st.sampled_from([k for k in range(1, total + 1) if total % k == 0]))
    parts = factor(dim, [major, total // major])
    assume(parts is not None)
    assert [size(part) for part in parts] == [major, total // major]
    sizes = grow([dim, *parts])
    assert np.array_equal(index_map(dim, sizes), index_map(Product(parts), sizes))


def test_a_view_across_channels_and_positions_keeps_the_channel_free():
    channels, positions = free(6), fixed(4, WHY)
    (flat,) = regroup([channels, positions], [24])
    assert index_map(flat, {resolve(channels): 7}).tolist() == [*range(24), -1, -1, -1, -1]


def test_chunks_of_a_packed_projection_share_one_expression():
    packed = Product((fixed(3, WHY), free(4), free(8)))
    query, key, value = split(packed, [32, 32, 32])
    assert same(query, key) and same(key, value)


def test_a_size_that_cannot_follow_is_pinned_with_the_place():
    first, second = free(4), free(6)
    unify(first, second, "net.py:7")
    assert [reason.location for reason in first.pins] == ["net.py:7"]


def test_pins_and_flags_follow_an_atom_into_its_factors():
    whole = free(12)
    pin(whole, WHY)
    flag(whole, WHY)
    parts = factor(whole, [3, 4])
    assert all(atom.pins == [WHY] and atom.flags == [WHY] for part in parts for atom in leaves(part))


@pytest.mark.parametrize("dim", [free(1), fixed(1, WHY), Product(())])
def test_size_one_has_no_atom(dim):
    assert leaves(dim) == [] and size(dim) == 1 and same(dim, ONE)
