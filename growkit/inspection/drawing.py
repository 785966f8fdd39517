"""From the network of a traced module to its drawing."""

from __future__ import annotations

import networkx as nx
from torch import nn

from growkit.inspection.facts import Facts
from growkit.inspection.frames import drawing_of
from growkit.inspection.steps import steps_of
from growkit.inspection.svg import svg_of

__all__ = ["draw"]


def draw(network: nx.DiGraph, model: nn.Module, facts: Facts) -> str:
    """A model as an SVG document.

    Args:
        network: of its trace, with its growth sites.
        model: the module, for the types of its parts.
        facts: what was found in it, for heading and legend.
    """
    steps, wires = steps_of(network, model)
    return svg_of(drawing_of(steps, wires, model), facts)
