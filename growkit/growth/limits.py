"""What a model of given widths would cost, and how much the budget allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from growkit.config.policies import BudgetSettings, TrialSettings
from growkit.growth.base import Clock, History

__all__ = ["Cost", "Limits", "train_flops", "trial_steps"]

Cost = Callable[[Mapping[str, int]], int]
"""Of a model whose sites, by name, have these widths; sites that are left out have their present one."""


@dataclass(frozen=True)
class Limits:
    """The budget, and the costs that it bounds.

    Attributes:
        budget: the settings.
        params: parameters of the model.
        flops: forward, per sample, of the model.
        trial: of every event, which must end within the run; None where there is none.
    """

    budget: BudgetSettings = BudgetSettings()
    params: Cost = lambda widths: 0
    flops: Cost = lambda widths: 0
    trial: TrialSettings | None = None

    def at(self, widths: Mapping[str, int]) -> Limits:
        """The same, sites that are left out having these widths."""
        return replace(
            self,
            params=lambda wider: self.params({**widths, **wider}),
            flops=lambda wider: self.flops({**widths, **wider}),
        )

    def exceeded(self, history: History, widths: Mapping[str, int], wider: Mapping[str, int]) -> str | None:
        """Which limit a model of widths `wider` would break, and by what; None if it keeps within all.

        Args:
            history: of the run so far.
            widths: of all sites now.
            wider: after the event.
        """
        budget = self.budget
        costs: dict[str, tuple[int | None, Callable[[], int]]] = {
            "params": (budget.params, lambda: self.params(wider)),
            "flops": (budget.flops, lambda: self.flops(wider)),
            "train_flops": (budget.train_flops, lambda: train_flops(self.flops, history, widths, wider)),
        }
        for name, (limit, cost) in costs.items():
            if limit is not None and (needed := cost()) > limit:
                return f"growth.budget.{name} is {limit:,}, and {needed:,} would be needed"
        return None

    def reached(self, history: History) -> str | None:
        """Why the network is good enough for now; None if it may grow."""
        limit = self.budget.accuracy
        accuracy = history.epochs[-1].validate_accuracy if history.epochs else None
        if limit is None or accuracy is None or accuracy < limit:
            return None
        return f"growth.budget.accuracy is {limit:g}, and the last epoch reached {accuracy:.4g} on the validate split"

    def out_of_time(self, history: History) -> str | None:
        """Why no event may begin any more; None if one may."""
        left = history.clock.total_steps - history.step
        if self.trial is not None and (steps := trial_steps(self.trial, history.clock)) > left:
            return f"growth.trial takes {steps} steps, and {left} are left"
        limit = self.budget.wall_seconds
        if limit is None or history.wall_seconds < limit:
            return None
        return f"growth.budget.wall_seconds is {limit:g}, and the run has taken {history.wall_seconds:.1f}"


def trial_steps(trial: TrialSettings, clock: Clock) -> int:
    """How many optimizer steps a trial takes."""
    return trial.steps or clock.steps_per_epoch


def train_flops(flops: Cost, history: History, widths: Mapping[str, int], wider: Mapping[str, int]) -> int:
    """Training FLOPs of a whole run that goes on to its last step at widths `wider`.

    Args:
        flops: forward, per sample.
        history: of the run so far.
        widths: of all sites now, at the end of the history.
        wider: after the present step.
    """
    spent = sum(steps * (flops(then) if known is None else known) for steps, then, known in _stages(history, widths))
    left = history.clock.total_steps - history.step
    return round(history.clock.forwards_per_step * (spent + left * flops(wider)))


def _stages(history: History, widths: Mapping[str, int]) -> Iterator[tuple[int, Mapping[str, int], int | None]]:
    """The stages so far, latest first: number of steps, widths, and FLOPs where they were recorded."""
    end, then, flops = history.step, dict(widths), None
    for growth in reversed(history.growths):
        yield end - growth.step, dict(then), flops
        end, then = growth.step, then | {site: old for site, (old, _) in growth.widths.items()}
        flops = growth.flops
    yield end, then, flops
