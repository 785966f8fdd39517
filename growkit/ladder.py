"""The ladder of a run: the model of every train stage, what it costs and how well it does, and which of them pay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Cost", "Ladder", "Stage"]

Cost = Literal["flops", "params"]


@dataclass(frozen=True)
class Stage:
    """The training between two growth events, and the model that it left: a rung of the ladder.

    Attributes:
        number: from 0. first_step, last_step: optimizer steps done before and after it.
        widths: of every site. depths: blocks at every place that may become deeper.
        params, flops: of the model; FLOPs forward, per sample.
        train_flops: spent on training since the start of the run.
        latency_ms: of a forward pass of `latency_batch` samples in evaluation mode, here.
        validate: scores of the model on the validate split; None where that is empty.
        standard_error: over the validate samples, of the score that the ladder is judged by; None where it has none.
    """

    number: int
    first_step: int
    last_step: int
    widths: Mapping[str, int]
    params: int
    flops: int
    train_flops: int = 0
    latency_ms: float = math.nan
    latency_batch: int = 1
    validate: Mapping[str, float | None] | None = None
    standard_error: float | None = None
    depths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Ladder:
    """The stages of a run, judged by the validate split: by accuracy, or where there is none by the loss."""

    stages: Sequence[Stage] = field(default_factory=list)

    @property
    def metric(self) -> str:
        """What it is judged by, `accuracy` or `loss`."""
        known = next((stage.validate for stage in self.stages if stage.validate is not None), {})
        return "loss" if known.get("accuracy") is None else "accuracy"

    @property
    def judged(self) -> list[Stage]:
        """The stages that have a score."""
        return [stage for stage in self.stages if math.isfinite(self.score(stage))]

    def value(self, stage: Stage) -> float:
        """The accuracy or the loss of a stage; NaN where it has none."""
        found = (stage.validate or {}).get(self.metric)
        return math.nan if found is None else found

    def score(self, stage: Stage) -> float:
        """The same so that more is better."""
        return self.value(stage) if self.metric == "accuracy" else -self.value(stage)

    def frontier(self, cost: Cost) -> list[Stage]:
        """The Pareto frontier: stages that no other one beats, in the order of their cost.

        One beats another if it costs no more and scores no less, and is not equal in both.
        """
        points = {id(stage): (getattr(stage, cost), -self.score(stage)) for stage in self.judged}

        def is_beaten(stage: Stage) -> bool:
            dear, bad = points[id(stage)]
            return any(a <= dear and b <= bad and (a, b) != (dear, bad) for a, b in points.values())

        return sorted((one for one in self.judged if not is_beaten(one)), key=lambda one: points[id(one)])

    @property
    def best(self) -> Stage | None:
        """The stage with the highest score, of equals the smallest, then the one of least loss; None without scores."""
        return min(self.judged, key=lambda one: (-self.score(one), one.params, one.flops, _loss(one)), default=None)

    @property
    def within(self) -> float:
        """One standard error of the best score, 0 where it is not known: what is nearer is as good, for all we know."""
        error = None if self.best is None else self.best.standard_error
        return error if error is not None and math.isfinite(error) else 0.0

    @property
    def smallest(self) -> Stage | None:
        """The stage with the fewest parameters whose score is within one standard error of the best.

        The rule of one standard error (Breiman, Friedman, Olshen and Stone, Classification and Regression Trees, 1984).
        """
        if self.best is None:
            return None
        least = self.score(self.best) - self.within
        near = [one for one in self.judged if self.score(one) >= least]
        return min(near, key=lambda one: (one.params, one.flops, -self.score(one), _loss(one)))

    def summary(self) -> dict[str, Any] | None:
        """What result.json holds of it; None where no stage has a score."""
        if self.best is None or self.smallest is None:
            return None
        rungs = {"best": self.best, "smallest": self.smallest}
        facts = {
            name: {"stage": one.number, self.metric: self.value(one), "params": one.params, "flops": one.flops}
            for name, one in rungs.items()
        }
        return {"stages": len(self.stages), "metric": self.metric, "within": self.within, **facts}


def _loss(stage: Stage) -> float:
    loss = (stage.validate or {}).get("loss")
    return math.inf if loss is None or math.isnan(loss) else loss
