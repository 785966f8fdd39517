"""Settings of growth: the four questions, and how new units begin."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from growkit.config.base import BY_NAME, Settings, named
from growkit.config.policies import (
    AllSitesSettings,
    AnyAllocator,
    AnySelector,
    AnyTrigger,
    BudgetPacedSettings,
    BudgetSettings,
    FixedSettings,
    FractionOfSeedSettings,
    NeverSettings,
    PeriodicSettings,
    RoundRobinSettings,
)

__all__ = [
    "AllSitesSettings",
    "AnyAllocator",
    "AnyInitializer",
    "AnySelector",
    "AnyTrigger",
    "BudgetSettings",
    "FixedSettings",
    "FractionOfSeedSettings",
    "GradMaxSettings",
    "GrowthSettings",
    "NeverSettings",
    "PeriodicSettings",
    "RandomSettings",
    "RoundRobinSettings",
    "ZeroSettings",
]

Positive = Annotated[float, Field(gt=0.0)]


Form = Literal["auto", "zero_fan_in", "zero_fan_out"]


class InitializerSettings(Settings):
    """What every initializer shares.

    scale: norm of a new slice, relative to the mean norm of the existing slices of the same tensor (norm: mean) or
    absolute (norm: fixed). form: which side of the new units is zero, so that the function is kept. `auto` takes the
    initializer's own form where the site allows it, else the other one, and every growth event records which and why.
    """

    scale: Positive = 1.0
    norm: Literal["mean", "fixed"] = "mean"
    form: Form = "auto"


class GradMaxSettings(InitializerSettings):
    """GradMax (Evci et al., ICLR 2022): the new fan-out maximises the gradient norm of the new, zero fan-in.

    scale 0.5 and mean norm are the released CIFAR and ImageNet settings. batch_size: samples of the one batch the
    gradient matrix is measured on. beyond_rank: what fills units beyond the rank of that matrix (the event says how
    many).
    """

    name: Literal["gradmax"] = "gradmax"
    scale: Positive = 0.5
    batch_size: Annotated[int, Field(ge=1)] = 128
    beyond_rank: Literal["random", "error"] = "random"


class RandomSettings(InitializerSettings):
    """Gaussian directions on one side, zero on the other: the fair baseline of GradMax."""

    name: Literal["random"] = "random"
    scale: Positive = 0.5


class ZeroSettings(InitializerSettings):
    """Zero fan-out, Gaussian fan-in: the plain function-preserving widening."""

    name: Literal["zero"] = "zero"
    form: Literal["auto", "zero_fan_out"] = "auto"  # type: ignore[assignment]


AnyInitializer = Annotated[GradMaxSettings | RandomSettings | ZeroSettings, BY_NAME, named("gradmax")]


def _is_multiple(target: float) -> float:
    if target < 1.0:
        raise ValueError(f"must be >= 1 (a multiple of the seed width), got {target:g}")
    if target > 1000.0:
        raise ValueError(f"must be <= 1000 (a multiple of the seed width), got {target:g}")
    return target


Multiple = Annotated[float, AfterValidator(_is_multiple), Field(json_schema_extra={"minimum": 1})]


class GrowthSettings(Settings):
    """The four questions, and the limits.

    when: the trigger. where: the sites of an event. how_many: units a site gets. initializer: how they start.
    target: each site's final width: a multiple of its seed width, or widths by pattern of site names, in channels of
    what is named also where a unit is a head; sites that grow by whole copies of their units only take as many copies
    as fit into a multiple, and refuse a width between two. sites: patterns of the sites that may grow. fallback: what
    initialises sites the initializer cannot serve; null refuses them.
    tolerance: largest relative change of the outputs (fp32) that an event may cause.
    """

    when: AnyTrigger = PeriodicSettings()
    where: AnySelector = AllSitesSettings()
    how_many: AnyAllocator = FractionOfSeedSettings()
    initializer: AnyInitializer = GradMaxSettings()
    fallback: AnyInitializer | None = None
    target: Multiple | dict[str, Annotated[int, Field(ge=1)]] = 4.0
    sites: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("*",)
    budget: BudgetSettings = BudgetSettings()
    tolerance: Positive = 1e-5

    @model_validator(mode="after")
    def _pace_has_a_budget_and_an_end(self) -> Self:
        pace = self.how_many
        if not isinstance(pace, BudgetPacedSettings):
            return self
        if getattr(self.budget, pace.of) is None:
            raise ValueError(f"how_many: budget_paced needs a budget to keep pace with; set budget.{pace.of}")
        if pace.events is None and not isinstance(self.when, NeverSettings | PeriodicSettings):
            raise ValueError(
                f"how_many.events: budget_paced must be told how many events there will be where when: "
                f"{self.when.name} depends on training"
            )
        return self
