"""What a model costs at other widths and depths than its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from growkit.graph import ModelGraph

__all__ = ["BlockCost", "Costs"]


@dataclass(frozen=True)
class BlockCost:
    """One more block at a place: the place's depth now, and the parameters and FLOPs (forward per sample) it adds."""

    depth: int
    params: int
    flops: int


@dataclass(frozen=True)
class Costs:
    """Parameters and FLOPs of the model at hypothetical sizes, which sites and places have by name.

    Widths are exact, whatever they are. So are depths at the present widths: a block costs what the last one at its
    place does. Sizes that are left out are the present ones.

    Attributes:
        graph: of the model as it is.
        beyond_graph: FLOPs per sample that the graph has no formula for, taken as constant; may be negative.
        blocks: of each place that may become deeper.
    """

    graph: ModelGraph
    beyond_graph: int = 0
    blocks: Mapping[str, BlockCost] = field(default_factory=dict)

    def params(self, sizes: Mapping[str, int]) -> int:
        """Parameters."""
        widths, more = self._split(sizes)
        return self.graph.params(widths) + sum(number * self.blocks[name].params for name, number in more.items())

    def flops(self, sizes: Mapping[str, int]) -> int:
        """FLOPs, forward per sample."""
        widths, more = self._split(sizes)
        added = sum(number * self.blocks[name].flops for name, number in more.items())
        return self.graph.flops(widths) + self.beyond_graph + added

    def _split(self, sizes: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
        """The widths of sites, and by how many blocks places would be deeper."""
        widths = {name: size for name, size in sizes.items() if name not in self.blocks}
        return widths, {name: size - self.blocks[name].depth for name, size in sizes.items() if name in self.blocks}
