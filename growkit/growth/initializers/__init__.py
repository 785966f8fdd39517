"""How new units begin: one file per idea, one contract for all (growkit.growth.base.Initializer)."""

from growkit.config.growth import GradMaxSettings, RandomSettings, ZeroSettings
from growkit.growth.base import Initializer
from growkit.growth.initializers.gaussian import GaussianRandom, ZeroFanOut
from growkit.growth.initializers.gradmax import GradMax

__all__ = ["GaussianRandom", "GradMax", "ZeroFanOut", "build_initializer"]


def build_initializer(settings: GradMaxSettings | RandomSettings | ZeroSettings) -> Initializer:
    """The initializer that `growth.initializer` names."""
    if isinstance(settings, GradMaxSettings):
        return GradMax(settings)
    return GaussianRandom(settings) if isinstance(settings, RandomSettings) else ZeroFanOut(settings)
