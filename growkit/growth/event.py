"""What a growth event did, on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growkit.graph import Refusal
from growkit.growth.base import GrowthDecision
from growkit.surgery import FunctionChange

__all__ = ["GrowthEvent", "SiteGrowth", "describe_refusals"]


@dataclass(frozen=True)
class SiteGrowth:
    """What one event did to one site.

    Attributes:
        initializer, form, reason: how the new units began, and why in that form.
        facts: the initializer's numbers.
        preserves: False where the initializer changes the function by design; with silent units it was kept.
    """

    site: str
    old_width: int
    new_width: int
    initializer: str
    form: str
    reason: str
    facts: Mapping[str, Any]
    preserves: bool = True


@dataclass(frozen=True)
class GrowthEvent:
    """One growth event.

    Attributes:
        step: after how many optimizer steps.
        grown: per site what happened.
        refused: sites given up at this event, with the reason.
        waiting: sites that were to grow and could not, for what this batch shows; they may at a later event.
        change: relative change of the outputs in fp32, eval and train mode; above `growth.tolerance` only where a site
            in `grown` does not preserve the function.
        change_at_precision: the same under the run's autocast, eval mode; recorded, not gated; None in fp32.
        loss_before, loss_after: data loss on the growth batch, eval mode.
        params_before, params_after, flops_before, flops_after: of the model; FLOPs forward per sample.
        flops_spent: on measuring and verifying. cpu_seconds: of the whole event.
        decisions: what the policy decided, with its reasons and scores.
        latency_ms: of the grown model, where the budget bounds it.
        undone: why the event was taken back; the model is then as it was before, and the rest says what was tried. None
            where the event stands.
    """

    step: int
    grown: tuple[SiteGrowth, ...]
    refused: tuple[Refusal, ...]
    change: FunctionChange
    change_at_precision: float | None
    loss_before: float
    loss_after: float
    params_before: int
    params_after: int
    flops_before: int
    flops_after: int
    flops_spent: int
    cpu_seconds: float
    decisions: tuple[GrowthDecision, ...] = ()
    latency_ms: float | None = None
    undone: str | None = None
    waiting: tuple[Refusal, ...] = ()


def describe_refusals(refusals: Sequence[Refusal]) -> str:
    """One line per refused width: name, width, reason, where."""
    return "\n".join(
        f"  {r.name} (width {r.width}): {r.reason}" + (f", at {r.location}" if r.location else "") for r in refusals
    )
