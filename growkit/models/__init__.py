"""Seed models: plain modules that growth starts from."""

from __future__ import annotations

from growkit.models.activation import ReLU, make_activation
from growkit.models.build import build_model, check_output
from growkit.models.library import LIBRARIES
from growkit.models.mlp import MLP
from growkit.models.vgg import VGG
from growkit.models.wrn import WideResNet

__all__ = [
    "LIBRARIES",
    "MLP",
    "VGG",
    "ReLU",
    "WideResNet",
    "build_model",
    "check_output",
    "make_activation",
]
