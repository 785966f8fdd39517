"""The whole configuration of a run."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from growkit.config.base import Settings
from growkit.config.data import AnyData, DigitsSettings
from growkit.config.growth import GrowthSettings
from growkit.config.models import AnyModel, WrnSettings
from growkit.config.train import TrainSettings

__all__ = ["Config", "RunSettings"]


class RunSettings(Settings):
    """Where a run is written: `root/name/STAMP`. name null takes the name of the configuration file."""

    root: str = "runs"
    name: Annotated[str, Field(pattern=r"^[\w.-]+$")] | None = None
    tensorboard: bool = True


class Config(Settings):
    """A run. control trains a baseline instead of growing, for the training FLOPs that the growth plan would spend:
    `seed` the ungrown seed, `full` the full-width network from scratch.
    """

    version: Literal[1] = 1
    seed: Annotated[int, Field(ge=0)] = 0
    run: RunSettings = RunSettings()
    data: AnyData = DigitsSettings()
    model: AnyModel = WrnSettings()
    train: TrainSettings = TrainSettings()
    growth: GrowthSettings = GrowthSettings()
    control: Literal["none", "seed", "full"] = "none"
