"""Every width of an arbitrary module that can grow: trace it, unify the dimensions of its tensors, read off the sites.

Read `sites` for what comes out, `dimensions` and `unification` for the algebra, `rules` for what operations mean.
"""

from __future__ import annotations

from growkit.graph.growth_site import GrowthSite
from growkit.graph.model_graph import ModelGraph
from growkit.graph.records import Chain, LiteralChange, Member, Refusal, TensorEdit
from growkit.graph.rules import rule
from growkit.graph.sites import Sites, find_sites
from growkit.graph.tracing import arguments_of

__all__ = [
    "Chain",
    "GrowthSite",
    "LiteralChange",
    "Member",
    "ModelGraph",
    "Refusal",
    "Sites",
    "TensorEdit",
    "arguments_of",
    "find_sites",
    "rule",
]
