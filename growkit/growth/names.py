"""The names by which a run knows modules and sites, which stay when insertions move the modules."""

from __future__ import annotations

import re
from collections.abc import Sequence

from growkit.surgery import DepthRecord, Record

__all__ = ["Names"]


class Names:
    """What modules are called in a run, however far insertions have moved them.

    A module of the seed keeps its name. The blocks that come after a block `NAME` are called `NAME+1`, `NAME+2`, ... in
    the order in which they came, and what they hold is called as in the block that they are copies of.

    Args:
        records: every edit since the seed, in order.

    Example:
        >>> first = DepthRecord("residual block", "blocks", 1, ("1",), "blocks.0", None, None, (), 0)
        >>> names = Names([first])
        >>> [names.of(f"blocks.{number}.fc") for number in range(3)], names.of("head")
        (['blocks.0.fc', 'blocks.0+1.fc', 'blocks.1.fc'], 'head')
    """

    def __init__(self, records: Sequence[Record] = ()):
        self._insertions: list[DepthRecord] = []
        self._given: list[tuple[str, ...]] = []  # the names of the new children
        self._roots: dict[str, str] = {}  # of the name of a new child
        self._count: dict[str, int] = {}  # of insertions, by root
        for record in records:
            if isinstance(record, DepthRecord):
                self._add(record)

    def of(self, name: str) -> str:
        """The run's name of what the model, as it is now, calls `name`: a module, a parameter or a site."""
        base, suffix = re.fullmatch(r"([^#\[]*)(.*)", name, re.DOTALL).groups()  # type: ignore[union-attr]
        return self._traced(base, len(self._insertions)) + suffix

    def root(self, name: str) -> str:
        """The block of the seed behind which a block came, by the run's names; of a block of the seed itself."""
        return self._roots.get(name, name)

    def like(self, name: str) -> str:
        """What corresponds in the seed to a module, parameter or site of the run, by the run's names."""
        for new in sorted(self._roots, key=len, reverse=True):
            if name == new or name.startswith((f"{new}.", f"{new}#", f"{new}[")):
                return self.like(self._roots[new] + name.removeprefix(new))
        return name

    def _add(self, record: DepthRecord) -> None:
        sources = [record.source] if record.activation is None else [record.source, record.activation]
        here = len(self._insertions)
        roots = [self.root(self._traced(source, here)) for source in sources]
        number = self._count[roots[0]] = self._count.get(roots[0], 0) + 1
        given = tuple(f"{root}+{number}" for root in roots)
        self._insertions.append(record)
        self._given.append(given)
        self._roots |= dict(zip(given, roots, strict=True))

    def _traced(self, name: str, upto: int) -> str:
        """The run's name of what was called `name` after the first so many insertions."""
        for number in reversed(range(upto)):
            record, given = self._insertions[number], self._given[number]
            sources = [record.source] if record.activation is None else [record.source, record.activation]
            for new, source, known in zip(_children(record), sources, given, strict=True):
                if name == new or name.startswith(f"{new}."):
                    inside = self._traced(source + name.removeprefix(new), number)
                    return known + inside.removeprefix(self._traced(source, number))
            name = record.former(name)
        return name


def _children(record: DepthRecord) -> list[str]:
    prefix = f"{record.container}." if record.container else ""
    return [prefix + child for child in record.children]
