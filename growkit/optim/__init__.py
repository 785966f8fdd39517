"""Optimizers by name."""

from growkit.optim.registry import build_optimizer

__all__ = ["build_optimizer"]
