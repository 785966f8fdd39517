"""Which attributes to change along with a size, where a trace cannot tell: sets of them, the likelier first."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import combinations

from growkit.graph import GrowthSite, SizeAttribute

__all__ = ["certain", "chosen", "guesses", "pattern", "pattern_of", "place_of"]

MOST_GUESSES = 8  # of attributes, where each alone is tried


def guesses(attributes: Sequence[SizeAttribute]) -> Iterator[frozenset[str]]:
    """Sets of attributes to change: all that hold the size, all but one or two, one alone, all with a further one."""
    likely = list(dict.fromkeys(pattern_of(one) for one in attributes if one.likely and not one.certain))
    others = list(dict.fromkeys(pattern_of(one) for one in attributes if not one.likely))
    yield frozenset(likely)
    if len(likely) <= MOST_GUESSES:
        for left_out in (1, 2):
            if len(likely) > left_out + 1:
                yield from (frozenset(likely) - {*some} for some in combinations(likely, left_out))
    if len(likely) > 1:
        yield from (frozenset({one}) for one in likely)
    others = [one for one in others if one not in likely][:MOST_GUESSES]
    yield from (frozenset([*likely, one]) for one in others)
    if len(others) > 1:
        yield frozenset([*likely, *others])


def chosen(attributes: Sequence[SizeAttribute], patterns: frozenset[str]) -> tuple[SizeAttribute, ...]:
    """Those of the patterns, and the certain ones; of entries of one list only the likely ones, if there are such."""
    likely = {pattern_of(one) for one in attributes if one.likely}
    named = [one for one in attributes if one.certain or pattern_of(one) in patterns]
    return tuple(one for one in named if one.likely or pattern_of(one) not in likely)


def pattern_of(attribute: SizeAttribute) -> str:
    """Where it is kept in modules alike, and which multiple of the size."""
    return pattern(f"{attribute.module}.{attribute.path}") + ("" if attribute.ratio == 1 else f" x {attribute.ratio}")


def place_of(attribute: SizeAttribute) -> str:
    """Where it is kept, the same for modules alike."""
    return f"{pattern(attribute.module)}.{attribute.path}"


def certain(site: GrowthSite) -> tuple[SizeAttribute, ...]:
    """The attributes of a site that there is nothing to guess about."""
    return tuple(one for one in site.attributes if one.certain)


def pattern(name: str) -> str:
    """A name without its numbers: alike parts of a model have the same."""
    return re.sub(r"\d+", "#", name)
