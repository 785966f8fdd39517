"""Settings of what becomes of optimizer and learning rate after a growth event."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from growkit.config.base import Settings

__all__ = ["AfterGrowthSettings"]


class AfterGrowthSettings(Settings):
    """What becomes of the optimizer and of the learning rate after an event.

    state: what the optimizer remembers of the weights. carry: old entries keep it, new ones start at zero;
    reset_grown: every parameter that grew starts anew; reset_all: every parameter does. A parameter that starts anew
    counts its steps from 0 again, so that Adam corrects its means as at the start and the bounds of AdaBound are wide
    again. Under carry the count goes on, and new entries are not corrected: with Adam's defaults their first steps are
    3 to 7 times as long as those of a new parameter. SAM's own count of steps, for its radius and interval, always
    goes on.
    rewarm_steps: over so many steps after an event the learning rate climbs in a straight line back to its schedule; 0
    is none. An event on the way begins anew. rewarm_from: the share of the scheduled rate that the climb begins at.
    part_rates: norm_ratio gives the entries that a weight gained at one event a learning rate of their own, in
    proportion to their norm, eta_0 |W_t| / |W_0| with W_0 the weight's first entries (Yuan, Savarese and Maire, NeurIPS
    2023); meant for initializer: variance_transfer. Whole steps are scaled, weight decay included; biases and gains,
    and parts that begin at 0, keep the full rate.
    """

    state: Literal["carry", "reset_grown", "reset_all"] = "carry"
    rewarm_steps: Annotated[int, Field(ge=0)] = 0
    rewarm_from: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    part_rates: Literal["none", "norm_ratio"] = "none"

    @model_validator(mode="after")
    def _a_climb_has_a_length(self) -> Self:
        if self.rewarm_from > 0.0 and self.rewarm_steps == 0:
            raise ValueError(f"rewarm_from needs rewarm_steps, got rewarm_from {self.rewarm_from:g} alone")
        return self
