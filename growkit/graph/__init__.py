"""Every width of an arbitrary module that can grow: trace it, unify the dimensions of its tensors, read off the sites.

Read `sites` for what comes out, `dimensions` and `unification` for the algebra, `rules` for what operations mean.
"""

from __future__ import annotations

from growkit.graph.acceptance import check_model, check_values, refuse_wrappers
from growkit.graph.depth_place import DepthPlace, PlaceRefusal, Places, structure_of
from growkit.graph.growth_site import GrowthSite
from growkit.graph.joins import joins
from growkit.graph.model_graph import ModelGraph
from growkit.graph.module_state import attributes_kept, copy_of, outside_inference_mode, values_kept
from growkit.graph.outputs import output_tensors
from growkit.graph.places import find_places
from growkit.graph.records import (
    AttributeEdit,
    Average,
    Centre,
    Chain,
    Copy,
    LiftGain,
    LiteralChange,
    Member,
    Refusal,
    Scale,
    Share,
    Silence,
    TensorEdit,
    ValueEdit,
)
from growkit.graph.rules import rule
from growkit.graph.sites import Sites, find_sites
from growkit.graph.size_attributes import SizeAttribute
from growkit.graph.tracing import arguments_of

__all__ = [
    "AttributeEdit",
    "Average",
    "Centre",
    "Chain",
    "Copy",
    "DepthPlace",
    "GrowthSite",
    "LiftGain",
    "LiteralChange",
    "Member",
    "ModelGraph",
    "PlaceRefusal",
    "Places",
    "Refusal",
    "Scale",
    "Share",
    "Silence",
    "Sites",
    "SizeAttribute",
    "TensorEdit",
    "ValueEdit",
    "arguments_of",
    "attributes_kept",
    "check_model",
    "check_values",
    "copy_of",
    "find_places",
    "find_sites",
    "joins",
    "output_tensors",
    "outside_inference_mode",
    "refuse_wrappers",
    "rule",
    "structure_of",
    "values_kept",
]
