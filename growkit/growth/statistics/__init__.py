"""What initializers may know of a model: one batch's facts, each measured once and only if asked for."""

from __future__ import annotations

from growkit.growth.statistics.fan_map import Component, FanMap
from growkit.growth.statistics.gradient import GradientMatrix, gradient_matrix
from growkit.growth.statistics.layout import Part, UnitLayout, by_parts, slices_of, unit_layout
from growkit.growth.statistics.measurement import ActivationFacts, Loss, Measurement
from growkit.growth.statistics.operator import GradientOperator
from growkit.growth.statistics.tap import Call

__all__ = [
    "ActivationFacts",
    "Call",
    "Component",
    "FanMap",
    "GradientMatrix",
    "GradientOperator",
    "Loss",
    "Measurement",
    "Part",
    "UnitLayout",
    "by_parts",
    "gradient_matrix",
    "slices_of",
    "unit_layout",
]
