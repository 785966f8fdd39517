"""What initializers may know of a model: one batch's facts, each measured once and only if asked for."""

from __future__ import annotations

from growkit.growth.statistics.gradient import GradientMatrix, gradient_matrix
from growkit.growth.statistics.measurement import ActivationFacts, Loss, Measurement
from growkit.growth.statistics.tap import Call

__all__ = ["ActivationFacts", "Call", "GradientMatrix", "Loss", "Measurement", "gradient_matrix"]
