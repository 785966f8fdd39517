"""The runs of a comparison: how long each arm trains, its learning rate, and an order in which both can be known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any

from growkit.compare.arms import Arm
from growkit.compare.measure import Measure
from growkit.compare.prospect import Foresight, Prospect
from growkit.compare.runs import Outcome, Run, Runner
from growkit.config import Config, config_from_overrides
from growkit.errors import TrainingError, UserInputError
from growkit.report.console import human

__all__ = ["Campaign", "Choice", "apart", "rate_key"]

FIRST_TUNING_SEED = 1000


def rate_key(config: Config) -> str:
    """The setting of the learning rate: the optimizer's own, or that of the one it is around."""
    return "train.optimizer.base.lr" if hasattr(config.train.optimizer, "base") else "train.optimizer.lr"


def apart(seeds: Sequence[int], count: int) -> list[int]:
    """`count` seeds for tuning, none of them among those that are compared."""
    return [seed for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + count + len(seeds)) if seed not in seeds][
        :count
    ]


class _Forlorn(Exception):
    """A run cannot be made, for the one that it follows came to nothing."""


@dataclass(frozen=True)
class Choice:
    """A learning rate that was chosen for an arm.

    Attributes:
        rate: the best on the mean. scores: the mean of each rate; None where a run failed. edge: whether it is the
            lowest or the highest of the grid.
    """

    rate: float
    scores: Mapping[float, float | None]
    edge: bool


@dataclass
class Campaign:
    """All runs of a comparison.

    Attributes:
        arms: what is compared, the first one first.
        match: what is equal: training FLOPs, steps, or nothing.
        out: the folder. follow: settings that take the seed, too.
    """

    arms: Sequence[Arm]
    match: str
    foresight: Foresight
    out: Path
    follow: Sequence[str] = ()

    @cached_property
    def prospects(self) -> dict[str, Prospect]:
        """What is known of each arm in advance; of uniform growth, whose width is not settled, its seed's."""
        return {arm.name: self.foresight(arm.config) for arm in self.arms}

    @cached_property
    def grower(self) -> Arm | None:
        """The first arm that grows: baselines are derived from it."""
        return next((arm for arm in self.arms if arm.grows), None)

    @cached_property
    def leader(self) -> Arm | None:
        """The arm that runs before those that wait for it: one whose widths or FLOPs only training tells."""
        grower = self.grower
        if grower is not None and self.prospects[grower.name].final_params is None:
            if any(arm.uniform for arm in self.arms):
                return grower
        unknown = next((arm for arm in self.arms if self.prospects[arm.name].flops is None), None)
        return unknown if self.match == "flops" else None

    @property
    def anchor(self) -> Arm:
        """The arm whose cost the others match: the first one, or the one that nobody can foresee."""
        return self.leader if self.match == "flops" and self.leader is not None else self.arms[0]

    @property
    def waves(self) -> list[list[Arm]]:
        """Groups of arms, each of which needs nothing but what the groups before it spent."""
        waiting = [arm for arm in self.arms if self._waits(arm)]
        return [group for group in ([arm for arm in self.arms if arm not in waiting], waiting) if group]

    @cached_property
    def notes(self) -> list[str]:
        """What is known beforehand and belongs beside the numbers; what holds for all arms is said once."""
        of_message: dict[str, list[str]] = {}
        for arm in self.arms:
            for message in self._notes_on(arm):
                of_message.setdefault(message, []).append(arm.name)
        return [
            message if len(names) == len(self.arms) else f"{', '.join(names)}: {message}"
            for message, names in of_message.items()
        ]

    def _notes_on(self, arm: Arm) -> list[str]:
        prospect = self.prospects[arm.name]
        found = [] if arm.uniform else list(prospect.parts.warnings)
        if prospect.flops is None and self.match == "flops" and arm is not self.anchor:
            found.append(
                "growth depends on training, so its FLOPs cannot be matched in advance; it trains for its own "
                f"{prospect.steps} steps; give its length as train.flops"
            )
        if not self._waits(arm):
            steps = self.foresight(self.settings(arm)).steps
            if lost := prospect.events_lost(steps):
                found.append(f"{steps} steps leave out {lost} of its growth events")
        return found

    def outlook(self, arm: Arm) -> str:
        """How long an arm trains and what that costs, as far as that is known."""
        if self._waits(arm):
            assert self.leader is not None, "an arm waits for another"
            return f"after {self.leader.name}, which it follows and whose growth depends on training   ({arm.origin})"
        config = self.settings(arm)
        prospect = self.foresight(config)
        cost = "" if prospect.flops is None else f", {human(prospect.flops)}FLOPs"
        most = "" if prospect.knows_steps else "at most "
        return f"{most}{prospect.steps} steps{cost}   ({arm.origin})"

    def tune(self, runner: Runner, grid: Sequence[float], seeds: Sequence[int], measure: Measure) -> dict[str, Choice]:
        """The learning rate of each arm: that of the best mean on the validate split, over seeds of its own.

        Raises:
            TrainingError: no rate of the grid lets an arm train on all seeds.
        """
        validate, chosen = measure.on("validate"), dict[str, Choice]()
        spent: dict[tuple[str, int], Outcome] = {}
        for group in self.waves:
            wanted = [(arm, rate, seed) for arm in group for rate in grid for seed in seeds]
            made = self._run(runner, wanted, spent, tuning=True)
            outcomes = {(arm.name, rate, seed): one for (arm, rate, seed), one in zip(wanted, made, strict=True)}
            for name in (arm.name for arm in group):
                scores = {rate: _score([outcomes[name, rate, seed] for seed in seeds], validate) for rate in grid}
                chosen[name] = _choose(name, scores, validate)
                spent |= {(name, seed): outcomes[name, chosen[name].rate, seed] for seed in seeds}
        return chosen

    def run(self, runner: Runner, seeds: Sequence[int], rates: Mapping[str, float]) -> dict[str, dict[int, Outcome]]:
        """Every arm on every seed, at its learning rate if one was chosen."""
        spent: dict[tuple[str, int], Outcome] = {}
        for group in self.waves:
            wanted = [(arm, rates.get(arm.name), seed) for seed in seeds for arm in group]
            outcomes = self._run(runner, wanted, spent, tuning=False)
            spent |= {(arm.name, seed): outcome for (arm, _, seed), outcome in zip(wanted, outcomes, strict=True)}
        return {arm.name: {seed: spent[arm.name, seed] for seed in seeds} for arm in self.arms}

    def settings(self, arm: Arm, led: Mapping[str, Any] | None = None) -> Config:
        """The settings of an arm that is as wide and trains as long as it should.

        Args:
            arm: which.
            led: result of the leader on the same seed, where the arm waits for it.
        """
        config = arm.config
        if arm.uniform:
            assert self.grower is not None, "it was derived from an arm that grows"
            planned = self.prospects[self.grower.name].final_params
            config = self.foresight.uniform(config, (led or {})["params"] if planned is None else planned, arm.name)
        if config.train.flops is not None and self.match == "flops":
            return config if arm is self.anchor else config_from_overrides({"train.flops": self._flops(led)}, config)
        steps = self._steps(arm, config, led)
        if steps is None or steps == self.foresight(arm.config).steps:
            return config
        length = {"train.steps": steps} | ({} if config.train.flops is None else {"train.flops": None})
        return config_from_overrides(length, base=config)

    def _steps(self, arm: Arm, config: Config, led: Mapping[str, Any] | None) -> int | None:
        """Steps that match the anchor's cost; None where the arm trains for as long as its settings say."""
        if self.match == "none" or arm is self.anchor:
            return None
        anchor = self.prospects[self.anchor.name]
        if self.match == "flops":
            return self.foresight(config).steps_for(self._flops(led))
        if not anchor.knows_steps:
            raise UserInputError(
                f"--match steps needs to know those of {self.anchor.name}, but its growth depends on training and "
                "train.flops ends it; match flops, or give its length as train.steps"
            )
        return anchor.steps

    def _flops(self, led: Mapping[str, Any] | None) -> int:
        """Training FLOPs of the anchor."""
        planned = self.prospects[self.anchor.name].flops
        return (led or {})["train_flops"] if planned is None else planned

    def _waits(self, arm: Arm) -> bool:
        return self.leader is not None and arm is not self.leader and (self.match == "flops" or arm.uniform)

    def _led(self, arm: Arm, seed: int, spent: Mapping[tuple[str, int], Outcome]) -> Mapping[str, Any] | None:
        """What the leader came to on a seed, where the arm waits for it."""
        if self.leader is None or not self._waits(arm):
            return None
        led = spent[self.leader.name, seed].result
        if led is None:
            raise _Forlorn(f"{self.leader.name}, which it follows, failed on this seed")
        if arm.uniform and led["events"] == 0:
            raise _Forlorn(f"{self.leader.name}, which it follows, did not grow on this seed")
        return led

    def _run(
        self,
        runner: Runner,
        wanted: Sequence[tuple[Arm, float | None, int]],
        spent: Mapping[tuple[str, int], Outcome],
        tuning: bool,
    ) -> list[Outcome]:
        """Run what can run; what waits for a run that failed has failed."""
        runs: list[Run | Outcome] = []
        for arm, rate, seed in wanted:
            try:
                config = self.settings(arm, self._led(arm, seed, spent))
            except _Forlorn as error:
                runs.append(Outcome(failure=str(error)))
            else:
                runs.append(self._placed(arm, config, rate, seed, tuning))
        outcomes = iter(runner([run for run in runs if isinstance(run, Run)]))
        return [run if isinstance(run, Outcome) else next(outcomes) for run in runs]

    def _placed(self, arm: Arm, config: Config, rate: float | None, seed: int, tuning: bool) -> Run:
        """A run with its seed, learning rate and folder."""
        root = self.out / arm.name / f"lr-{rate:g}" if tuning else self.out / arm.name
        settings: dict[str, Any] = {"seed": seed, **dict.fromkeys(self.follow, seed)}
        settings |= {"run.root": str(root), "run.name": str(seed)}
        if rate is not None:
            settings[rate_key(config)] = rate
        label = f"{arm.name}, " + (f"learning rate {rate:g}, " if tuning else "") + f"seed {seed}"
        return Run(label, config_from_overrides(settings, base=config), root / str(seed))


def _score(outcomes: Sequence[Outcome], measure: Measure) -> float | None:
    values = [None if outcome.result is None else measure.of(outcome.result) for outcome in outcomes]
    finite = [value for value in values if value is not None and isfinite(value)]
    return fmean(finite) if len(finite) == len(values) else None


def _choose(name: str, scores: Mapping[float, float | None], measure: Measure) -> Choice:
    """The best rate; of equal ones the first given."""
    known = {rate: score for rate, score in scores.items() if score is not None}
    if not known:
        raise TrainingError(
            f"{name} trained on all tuning seeds at no learning rate of {', '.join(f'{one:g}' for one in scores)}; "
            "give lower ones with --tune-lr"
        )
    rate = (max if measure.higher_is_better else min)(known, key=lambda one: known[one])
    return Choice(rate, scores, edge=len(scores) > 1 and rate in (min(scores), max(scores)))
