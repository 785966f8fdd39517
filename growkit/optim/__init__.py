"""Optimizers: SAM and ASAM, AdaBound and AMSBound, torch's own, and all of them by name."""

from growkit.optim.adabound import AdaBound, AMSBound
from growkit.optim.kin import AMP, ASAM
from growkit.optim.part_rates import PartRates
from growkit.optim.radius import Cosine, Linear
from growkit.optim.registry import build_optimizer
from growkit.optim.sam import SAM

__all__ = ["AMP", "ASAM", "SAM", "AMSBound", "AdaBound", "Cosine", "Linear", "PartRates", "build_optimizer"]
