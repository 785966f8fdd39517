"""Settings of what becomes of optimizer and learning rate after a growth event."""

from __future__ import annotations

from typing import Literal

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
    """

    state: Literal["carry", "reset_grown", "reset_all"] = "carry"
