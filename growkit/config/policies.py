"""Settings of growth policies: when, where, how many, and where growth ends."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from growkit.config.base import BY_NAME, Settings, named

__all__ = [
    "AllSitesSettings",
    "AllocatorSettings",
    "AnyAllocator",
    "AnySelector",
    "AnyTrigger",
    "AskingSettings",
    "BudgetPacedSettings",
    "BudgetSettings",
    "FixedSettings",
    "FractionOfSeedSettings",
    "FractionSettings",
    "GainSettings",
    "LargestGainSettings",
    "MarginalGainSettings",
    "NeverSettings",
    "OverfitGuardSettings",
    "PeriodicSettings",
    "PlateauSettings",
    "ProgressGuardSettings",
    "RandomSitesSettings",
    "RankSettings",
    "RankThresholdSettings",
    "RoundRobinSettings",
    "SpreadSettings",
    "TrialSettings",
    "has_set_times",
]

Positive = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]


class NeverSettings(Settings):
    """Never grow."""

    name: Literal["never"] = "never"


class PeriodicSettings(Settings):
    """Grow at `start`, then again and again.

    start: when the first event is. every: how long from one event to the next. events: how many at most; null is no
    limit. unit: what start and every count, optimizer steps or epochs.
    """

    name: Literal["periodic"] = "periodic"
    start: Count = 5
    every: Count = 3
    events: Count | None = None
    unit: Literal["steps", "epochs"] = "epochs"


class PlateauSettings(Settings):
    """Grow when the loss has stopped falling: its slope is not significantly below zero.

    A line is fitted to the losses of the last epochs by least squares. loss: of which split. window: how many epochs
    the line runs through. min_slope: a fall per epoch by less than this share of the mean loss counts as none. sigmas:
    how many standard errors the slope must lie below that to count as a fall. cooldown: epochs after an event that are
    left out, so that growth comes again after cooldown + window epochs at the earliest.
    """

    name: Literal["plateau"] = "plateau"
    loss: Literal["validate", "train"] = "validate"
    window: Annotated[int, Field(ge=3)] = 5
    min_slope: NonNegative = 0.01
    sigmas: NonNegative = 2.0
    cooldown: Annotated[int, Field(ge=0)] = 1


class AskingSettings(Settings):
    """What triggers share that measure what growth promises; that costs forward and backward passes.

    every: how many epochs from one measurement to the next, and from a growth event to the next measurement.
    """

    every: Count = 1


class GainSettings(AskingSettings):
    """Grow when the best site promises a faster fall of the loss per training FLOP than training on.

    ratio: how many times as fast. sigmas: standard errors that are taken off the measured gain first.
    """

    name: Literal["gain"] = "gain"
    ratio: Positive = 1.0
    sigmas: NonNegative = 1.0


class RankSettings(AskingSettings):
    """Grow when new units would find signal in many directions: the effective rank of the gradient matrix saturates.

    share: of the singular values of a site's gradient matrix, how many must lie above its noise floor. factor: the
    floor, as a multiple of the largest squared singular value that chance gives.
    """

    name: Literal["rank"] = "rank"
    share: Share = 0.5
    factor: Positive = 1.0


class SpreadSettings(Settings):
    """Grow at times spread evenly over the first part of the training.

    until: share of the training by which growth is done. events: how many times.
    """

    name: Literal["spread"] = "spread"
    until: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    events: Count = 6


AnyPlainTrigger = Annotated[
    PeriodicSettings | SpreadSettings | PlateauSettings | GainSettings | RankSettings, BY_NAME, named("periodic")
]


class OverfitGuardSettings(Settings):
    """Grow when `base` says so, but only while the network does not overfit.

    gap: the largest share of the validate loss that may lie above the train loss, (validate - train) / validate, over
    the last `window` epochs. base: the trigger that is guarded.
    """

    name: Literal["overfit_guard"] = "overfit_guard"
    gap: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    window: Count = 3
    base: AnyPlainTrigger = PeriodicSettings()


class ProgressGuardSettings(Settings):
    """Grow when `base` says so, but only while the validate loss falls from one stage to the next.

    least: the share by which the lowest validate loss since the last event must lie below the lowest before it. base:
    the trigger that is guarded.
    """

    name: Literal["progress_guard"] = "progress_guard"
    least: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.01
    base: AnyPlainTrigger = SpreadSettings()


AnyTrigger = Annotated[
    NeverSettings
    | PeriodicSettings
    | SpreadSettings
    | PlateauSettings
    | GainSettings
    | RankSettings
    | OverfitGuardSettings
    | ProgressGuardSettings,
    BY_NAME,
    named("periodic"),
]


class AllSitesSettings(Settings):
    """Every site grows at every event."""

    name: Literal["all"] = "all"


class RoundRobinSettings(Settings):
    """`sites_per_event` sites grow at each event, in the order of the graph, then from the start again."""

    name: Literal["round_robin"] = "round_robin"
    sites_per_event: Count = 1


class LargestGainSettings(Settings):
    """The sites grow whose next unit promises most; those whose gain is within the noise do not.

    The promise is what the unit adds to the squared gradient norm. per: what it is divided by: the forward FLOPs or the
    parameters that the unit costs, or nothing (unit). factor: a gain counts where it is above so many times what
    batches give by chance. sites_per_event: how many sites grow at an event.
    """

    name: Literal["largest_gain"] = "largest_gain"
    per: Literal["flops", "params", "unit"] = "flops"
    factor: Positive = 2.0
    sites_per_event: Count = 1


class RandomSitesSettings(Settings):
    """`sites_per_event` sites drawn by chance, from the growth stream of the run's seed: the control of the others."""

    name: Literal["random"] = "random"
    sites_per_event: Count = 1


AnySelector = Annotated[
    AllSitesSettings | RoundRobinSettings | LargestGainSettings | RandomSitesSettings, BY_NAME, named("all")
]


class AllocatorSettings(Settings):
    """What every allocator shares.

    round_to: new widths are multiples of this: rounded up, or down where a pace is kept (budget_paced); a target that
    is no multiple is still reached. Sites that grow by whole copies of their units only are not rounded.
    """

    round_to: Count = 1


class FractionOfSeedSettings(AllocatorSettings):
    """Each event adds `fraction` of the site's seed width, at least one unit (0.25: Evci et al. 2022)."""

    name: Literal["fraction_of_seed"] = "fraction_of_seed"
    fraction: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.5


class FractionSettings(AllocatorSettings):
    """Each event adds `fraction` of the site's present width, at least one unit: widths grow geometrically."""

    name: Literal["fraction"] = "fraction"
    fraction: Annotated[float, Field(gt=0.0, le=1000.0)] = 0.25


class FixedSettings(AllocatorSettings):
    """Each event adds `units` units."""

    name: Literal["fixed"] = "fixed"
    units: Count = 1


class RankThresholdSettings(AllocatorSettings):
    """Each event adds as many units as the gradient matrix has singular values above its noise floor.

    factor: the floor, as a multiple of the largest squared singular value that chance gives. at_least, at_most: bounds
    of the number; null is no limit. A site without any singular value above the floor gets no unit.
    """

    name: Literal["rank_threshold"] = "rank_threshold"
    factor: Positive = 1.0
    at_least: Count = 1
    at_most: Count | None = None

    @model_validator(mode="after")
    def _bounds_leave_room(self) -> Self:
        if self.at_most is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most must be >= at_least, got at_most {self.at_most} and at_least {self.at_least}")
        return self


def has_set_times(when: Settings) -> bool:
    """Whether a trigger, or the one it guards, can fire at times only that are known in advance."""
    return isinstance(getattr(when, "base", when), NeverSettings | PeriodicSettings | SpreadSettings)


class BudgetPacedSettings(AllocatorSettings):
    """Each event takes an equal part of what is left of the budget, so that the last event reaches it.

    The sites of an event grow by the same share of their width. of: which budget, growth.budget.params or
    growth.budget.flops. events: how many there will be; null takes the number that growth.when plans.
    """

    name: Literal["budget_paced"] = "budget_paced"
    of: Literal["params", "flops"] = "params"
    events: Count | None = None


class MarginalGainSettings(AllocatorSettings):
    """Each event goes unit by unit to the site whose next unit promises most for its cost, as far as the pace goes.

    Each unit serves a singular direction of the site's gradient matrix, and promises its squared singular value times
    the squared norm of a new slice. A site gets no more units at an event than it has directions above the noise (but
    for round_to, which rounds up); what that leaves of the pace goes to the later events. of: what a unit costs, and
    which budget is kept pace with. factor: the noise, as a multiple of the squared singular value of the same rank
    that chance gives. events: over how many events the budget is spread; null takes the number that growth.when plans.
    ratio: where there is no such budget, an event makes the model this many times as dear.
    """

    name: Literal["marginal_gain"] = "marginal_gain"
    of: Literal["params", "flops"] = "params"
    factor: Positive = 2.0
    events: Count | None = None
    ratio: Annotated[float, Field(gt=1.0)] = 1.5


AnyAllocator = Annotated[
    FractionOfSeedSettings
    | FractionSettings
    | FixedSettings
    | RankThresholdSettings
    | BudgetPacedSettings
    | MarginalGainSettings,
    BY_NAME,
    named("fraction_of_seed"),
]


class BudgetSettings(Settings):
    """No event may take the model or the run beyond these; null is no limit. Sites whose step does not fit wait.

    accuracy: 0 to 1; no event while the last epoch's accuracy on the validate split is at least so high. params:
    parameters of the model. flops: forward, per sample, 2 x MAC. latency_ms: milliseconds of a forward pass in
    evaluation mode on this device, the shortest of several, for load can only add; an event that exceeds it, measured
    three times, is undone, and its sites are given up. latency_batch: samples of that pass. train_flops: of the whole
    run, if it goes on to its last step at the new widths. wall_seconds: no event after so many seconds of the run.
    """

    params: Count | None = None
    flops: Count | None = None
    accuracy: Share | None = None
    latency_ms: Positive | None = None
    latency_batch: Count = 1
    train_flops: Count | None = None
    wall_seconds: Positive | None = None

    @model_validator(mode="after")
    def _batch_needs_latency(self) -> Self:
        if self.latency_ms is None and self.latency_batch != 1:
            raise ValueError(f"latency_batch needs latency_ms, got latency_batch {self.latency_batch} alone")
        return self


class TrialSettings(Settings):
    """Try before commit: an event stands only where the grown model does better than the one that did not grow.

    Both train for so many steps on the same batches, then their losses on the validate split are compared sample by
    sample. The event stands if the grown model's is lower by more than margin * loss + sigmas * standard error, and the
    run goes on with that model; else it is undone, and the run goes on with the other one, as if it had never grown.
    Nothing is trained twice; what the losing model cost counts as growth. No event begins when fewer steps are left;
    where train.flops ends the run of the grown model earlier, that ends the trial.
    steps: of the trial; null is one epoch. margin: a share of the loss of the model that did not grow. sigmas: how many
    standard errors of the difference. attempts: a site is given up after so many events in a row that were undone; null
    is never: it may be tried again at the next event.
    """

    steps: Count | None = None
    margin: NonNegative = 0.0
    sigmas: NonNegative = 1.0
    attempts: Count | None = None
