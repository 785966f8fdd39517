"""Optimizers: AdaBound and AMSBound, torch's own, and all of them by name."""

from growkit.optim.adabound import AdaBound, AMSBound
from growkit.optim.registry import build_optimizer

__all__ = ["AMSBound", "AdaBound", "build_optimizer"]
