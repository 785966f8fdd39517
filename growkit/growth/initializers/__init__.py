"""How new units begin: one file per idea, one contract for all (growkit.growth.base.Initializer)."""

from typing import Any

from growkit.config.base import Settings
from growkit.config.growth import (
    FireflySettings,
    GradMaxInverseSettings,
    GradMaxOptSettings,
    GradMaxSettings,
    Net2WiderSettings,
    RandomPositiveSettings,
    RandomSettings,
    SplittingSettings,
    TinySettings,
    VarianceTransferSettings,
    ZeroSettings,
)
from growkit.growth.base import Initializer
from growkit.growth.initializers.firefly import Firefly
from growkit.growth.initializers.gaussian import GaussianRandom, ZeroFanOut
from growkit.growth.initializers.gradmax import GradMax
from growkit.growth.initializers.gradmax_inverse import GradMaxInverse
from growkit.growth.initializers.gradmax_opt import GradMaxOpt
from growkit.growth.initializers.net2wider import Net2Wider
from growkit.growth.initializers.random_positive import PositiveRandom
from growkit.growth.initializers.splitting import Splitting
from growkit.growth.initializers.tiny import Tiny
from growkit.growth.initializers.variance_transfer import VarianceTransfer

__all__ = [
    "Firefly",
    "GaussianRandom",
    "GradMax",
    "GradMaxInverse",
    "GradMaxOpt",
    "Net2Wider",
    "PositiveRandom",
    "Splitting",
    "Tiny",
    "VarianceTransfer",
    "ZeroFanOut",
    "build_initializer",
]

BY_SETTINGS: dict[type[Settings], Any] = {
    GradMaxSettings: GradMax,
    GradMaxInverseSettings: GradMaxInverse,
    GradMaxOptSettings: GradMaxOpt,
    RandomSettings: GaussianRandom,
    RandomPositiveSettings: PositiveRandom,
    ZeroSettings: ZeroFanOut,
    VarianceTransferSettings: VarianceTransfer,
    Net2WiderSettings: Net2Wider,
    FireflySettings: Firefly,
    SplittingSettings: Splitting,
    TinySettings: Tiny,
}


def build_initializer(settings: Settings) -> Initializer:
    """The initializer that `growth.initializer` names."""
    return BY_SETTINGS[type(settings)](settings)
