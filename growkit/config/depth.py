"""Settings of growth in depth: where blocks may be repeated, how often, and what goes with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from growkit.config.base import Settings
from growkit.config.policies import BudgetPacedSettings, LargestGainSettings, MarginalGainSettings, RankSettings

if TYPE_CHECKING:
    from growkit.config.growth import GrowthSettings

__all__ = ["DepthSettings", "Mode", "Repeats", "misfit"]

Mode = Literal["width", "depth", "both"]


def _is_multiple(target: float) -> float:
    if not 1.0 <= target <= 1000.0:
        raise ValueError(f"must be a multiple of the seed's depth from 1 to 1000, got {target:g}")
    return target


Repeats = Annotated[float, AfterValidator(_is_multiple), Field(json_schema_extra={"minimum": 1, "maximum": 1000})]


class DepthSettings(Settings):
    """Growth in depth, for `mode: depth` and `mode: both`.

    A place is a residual block, or a layer before an idempotent activation, that may be followed by another one like
    it: a copy whose branches end in zeros, or the identity (`growkit.find_places` lists them). Its depth counts the
    blocks that stand there: 1 in the seed.
    places: patterns of the places, by the name of the block. target: the largest depth of each place: a multiple of the
    seed's (2.0: each block twice; rounded down), or numbers of blocks by pattern of places, those that fit none staying
    as they are. blocks_per_event: how many blocks a place gets at an event.
    """

    places: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] = ("*",)
    target: Repeats | dict[str, Annotated[int, Field(ge=1)]] = 2.0
    blocks_per_event: Annotated[int, Field(ge=1)] = 1


OF_WIDTHS = ("how_many", "initializer", "fallback", "target", "sites")


def misfit(growth: GrowthSettings) -> str | None:
    """What does not go with `growth.mode`, and the remedy; None where all does."""
    if growth.mode == "width":
        unused = growth.depth != DepthSettings()
        return "depth: is for growth in depth, got it with mode: width; set mode: depth or both" if unused else None
    if growth.policy is not None:
        return f"policy: {growth.policy} is of widths, got it with mode: {growth.mode}; give when and where instead"
    trigger = getattr(growth.when, "base", growth.when)  # of a guard
    if growth.mode == "depth":
        default = type(growth)()
        unused = [key for key in OF_WIDTHS if getattr(growth, key) != getattr(default, key)]
        if unused:
            return f"{unused[0]}: is for widths, which mode: depth leaves as they are; leave it out, or set mode: both"
        if isinstance(trigger, RankSettings):
            return "when: rank reads the spectra of widths, which mode: depth leaves as they are; choose another"
        after = growth.optimizer
        if after.state == "reset_grown" or after.part_rates != "none":
            key, value = ("state", after.state) if after.state == "reset_grown" else ("part_rates", after.part_rates)
            return f"optimizer.{key}: {value} is for parameters that grow, and in mode: depth none does; leave it out"
        return None
    if isinstance(growth.how_many, BudgetPacedSettings | MarginalGainSettings):
        return f"how_many: {growth.how_many.name} cannot keep pace where mode: both adds blocks too; choose another"
    if isinstance(growth.where, LargestGainSettings) and growth.where.per == "unit":
        return "where.per: must be flops or params with mode: both, got unit: a unit and a block differ in size"
    return None
