"""What a growth event did, on paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from growkit.graph import Refusal
from growkit.growth.base import GrowthDecision
from growkit.surgery import FunctionChange

__all__ = ["GrowthEvent", "PlaceGrowth", "SiteGrowth", "TrialResult", "describe_refusals"]


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
class PlaceGrowth:
    """What one event did at one place: blocks inserted without changing the function.

    Attributes:
        place: the block of the seed behind which they stand.
        kind: "residual block" or "layer".
        old_depth, new_depth: blocks at the place, that of the seed included.
        modules: the new blocks, by their names in the model after the event.
        params: parameters they brought.
        zeroed: the parameters that began at zero, by their name inside a block; none of an identity layer.
        seeds: of the weights of each block.
    """

    place: str
    kind: str
    old_depth: int
    new_depth: int
    modules: tuple[str, ...]
    params: int
    zeroed: tuple[str, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class TrialResult:
    """How the grown model did beside the one that did not grow, after the same steps on the same batches.

    Attributes:
        steps: of the optimizer, on trial.
        loss_ungrown, loss_grown: on the validate split after them.
        gain: by how much the grown one's is lower; standard_error: of that, paired over the validate samples.
        needed: what the gain had to exceed. All of these are None where one of the two could not train on.
        flops: spent on training and evaluating the model that lost, and on judging both.
        failures: why a model could not train on, by "grown" and "ungrown".
    """

    steps: int
    loss_ungrown: float | None = None
    loss_grown: float | None = None
    gain: float | None = None
    standard_error: float | None = None
    needed: float | None = None
    flops: int = 0
    failures: Mapping[str, str] = field(default_factory=dict)

    @property
    def pays(self) -> bool:
        """Whether the event stands."""
        if self.gain is None or self.needed is None:
            return "grown" not in self.failures
        return self.gain > self.needed

    def __str__(self) -> str:
        """In one line, with the numbers."""
        told = "; ".join(f"the {which} model failed: {why}" for which, why in self.failures.items())
        if self.gain is None:
            return f"on trial for {self.steps} steps {told}"
        return (
            f"on trial for {self.steps} steps: validate loss {self.loss_grown:.6g} grown, {self.loss_ungrown:.6g} "
            f"ungrown, lower by {self.gain:.3g} +- {self.standard_error:.2g} where {self.needed:.3g} was needed"
        )


@dataclass(frozen=True)
class GrowthEvent:
    """One growth event.

    Attributes:
        step: after how many optimizer steps.
        grown: per site what happened.
        deepened: per place what happened; an event widens sites or deepens places, never both.
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
        trial: how it did on trial, where `growth.trial` asks for one.
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
    trial: TrialResult | None = None
    deepened: tuple[PlaceGrowth, ...] = ()


def describe_refusals(refusals: Sequence[Refusal]) -> str:
    """One line per refused width: name, width, reason, where."""
    return "\n".join(
        f"  {r.name} ({'depth' if r.name.startswith('depth/') else 'width'} {r.width}): {r.reason}"
        + (f", at {r.location}" if r.location else "")
        for r in refusals
    )
