"""The whole configuration of a run."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from growkit.config.base import Seed, Settings
from growkit.config.data import AnyData, DigitsSettings
from growkit.config.growth import GrowthSettings
from growkit.config.models import AnyModel, WrnSettings
from growkit.config.train import TrainSettings

__all__ = ["Config", "RunSettings"]


FOLDER_NAME = r"^[\w.-]+$"


def _is_folder_name(name: str) -> str:
    if not re.fullmatch(FOLDER_NAME, name) or not name.strip("."):
        raise ValueError(f"must be a folder name of letters, digits, '.', '_' and '-', got {name!r}")
    return name


class RunSettings(Settings):
    """Where a run is written: `root/name/STAMP`.

    root: the folder of all runs. name: null takes the name of the configuration file. tensorboard: write event files.
    """

    root: str = "runs"
    name: (
        Annotated[
            str, AfterValidator(_is_folder_name), Field(max_length=100, json_schema_extra={"pattern": FOLDER_NAME})
        ]
        | None
    ) = None
    tensorboard: bool = True


class Config(Settings):
    """A run: its data, its seed model, how that trains and how it grows.

    version: of this format. seed: of every random stream. control: trains a baseline instead of growing, for the
    training FLOPs that the growth plan would spend: `seed` the ungrown seed, `full` the full-width network from
    scratch.
    """

    version: Literal[1] = 1
    seed: Seed = 0
    run: RunSettings = RunSettings()
    data: AnyData = DigitsSettings()
    model: AnyModel = WrnSettings()
    train: TrainSettings = TrainSettings()
    growth: GrowthSettings = GrowthSettings()
    control: Literal["none", "seed", "full"] = "none"

    @model_validator(mode="after")
    def _one_limit_of_training(self) -> Self:
        if self.train.flops is not None and self.growth.budget.train_flops is not None:
            raise ValueError(
                f"growth.budget.train_flops bounds what a run of given length costs, but train.flops "
                f"{self.train.flops:,} ends it; leave one of them out"
            )
        return self
