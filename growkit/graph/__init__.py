"""Every width of an arbitrary module that can grow, found by tracing the module and unifying the dimensions of its tensors.

Read `dimensions` for the algebra, `rules` for what each operation means, `sites` for what comes out.
"""

from __future__ import annotations

from growkit.graph.records import Chain, LiteralChange, Member, Refusal, TensorEdit
from growkit.graph.rules import rule
from growkit.graph.sites import GrowthSite, ModelGraph, Sites, find_sites

__all__ = [
    "Chain",
    "GrowthSite",
    "LiteralChange",
    "Member",
    "ModelGraph",
    "Refusal",
    "Sites",
    "TensorEdit",
    "find_sites",
    "rule",
]
