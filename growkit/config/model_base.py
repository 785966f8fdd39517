"""What the settings of all seed models share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from growkit.config.base import Settings

__all__ = ["Activation", "ModelSettings", "Norm", "Share", "Width"]

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Activation = Literal["relu", "gelu", "silu", "tanh", "elu", "selu", "softplus", "sigmoid"]
Norm = Literal["none", "batchnorm"]


class ModelSettings(Settings):
    """What every seed model shares."""

    def full(self) -> ModelSettings | None:
        """The settings of the full-width network this seed is a narrowed form of; None where there is no such thing."""
        return None
