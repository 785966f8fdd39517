"""Growth sites: every width of a module that can grow, and for every other width the reason why not."""

from __future__ import annotations

from collections.abc import Iterator

import networkx as nx
from torch import nn

from growkit.graph.by_name import pick
from growkit.graph.growth_site import GrowthSite
from growkit.graph.model_graph import ModelGraph
from growkit.graph.records import Refusal
from growkit.graph.tracing import Example, arguments_of, trace_both_modes

__all__ = ["Sites", "find_sites"]


def find_sites(model: nn.Module, example: Example) -> Sites:
    """Find every width of a module that can grow without changing its function.

    Args:
        model: any module; it is left as it was. Weights on the meta device will do.
        example: one batch of inputs, best of two samples or more (a size of 1 broadcasts): a tensor, the tuple of
            positional arguments or the dictionary of keyword arguments. The first dimension of the first tensor is the
            batch.

    Returns:
        The sites in the order of the forward pass, with the refused widths in `.refusals`.

    Raises:
        UserInputError: it is no module, or one of a kind that cannot grow: wrapped, scripted, quantised, lazy, sparse.
        ModelError: the module cannot be traced on the example.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> sites = find_sites(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4))
        >>> [(site.name, site.width, site.params_per_unit) for site in sites]
        [('0', 8, 7)]
    """
    return Sites(ModelGraph(model, *trace_both_modes(model, example), inputs=arguments_of(example)))


class Sites:
    """The growth sites of a module: iterate, index by number or by name."""

    def __init__(self, graph: ModelGraph):
        self.graph = graph

    def __iter__(self) -> Iterator[GrowthSite]:
        return iter(self.graph.sites)

    def __len__(self) -> int:
        return len(self.graph.sites)

    def __getitem__(self, key: int | str) -> GrowthSite:
        return pick(
            self.graph.sites,
            self.refusals,
            key,
            refusal=lambda one: f"{one.name!r} (width {one.width}) may not grow",
            missing="No growth site is named",
        )

    def __repr__(self) -> str:
        return f"Sites({[(site.name, site.width) for site in self]}, {len(self.refusals)} refused)"

    @property
    def refusals(self) -> tuple[Refusal, ...]:
        """The widths that may not grow, each with its reason."""
        return self.graph.refusals

    def to_networkx(self) -> nx.DiGraph:
        """The traced module as a directed graph."""
        return self.graph.to_networkx()
