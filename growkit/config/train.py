"""Settings of a train stage: optimizer, schedule, precision."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from growkit.config.base import BY_NAME, Settings, named

__all__ = [
    "AMSBoundSettings",
    "ASAMSettings",
    "AdaBoundSettings",
    "AdamSettings",
    "AdamWSettings",
    "AnyBase",
    "AnyLoss",
    "AnyOptimizer",
    "AnySchedule",
    "AutoLossSettings",
    "ConstantSettings",
    "CosineSettings",
    "CrossEntropySettings",
    "FallingSettings",
    "FocalSettings",
    "HuberSettings",
    "LinearRadius",
    "LossSettings",
    "MarginSettings",
    "MeanAbsoluteSettings",
    "MeanSquaredSettings",
    "RateRadius",
    "SAMSettings",
    "SGDSettings",
    "StepSettings",
    "TrainSettings",
]

LearningRate = Annotated[float, Field(gt=0.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Milestone = Annotated[float, Field(gt=0.0, lt=1.0)]
Beta = Annotated[float, Field(ge=0.0, lt=1.0)]


class SGDSettings(Settings):
    """Stochastic gradient descent (torch.optim.SGD)."""

    name: Literal["sgd"] = "sgd"
    lr: LearningRate = 0.1
    momentum: Beta = 0.9
    nesterov: bool = True
    weight_decay: NonNegative = 5e-4

    @model_validator(mode="after")
    def _nesterov_needs_momentum(self) -> SGDSettings:
        if self.nesterov and self.momentum == 0.0:
            raise ValueError("nesterov needs momentum > 0, got momentum 0; set nesterov: false")
        return self


class AdamSettings(Settings):
    """Adam (Kingma and Ba, 2015), torch.optim.Adam."""

    name: Literal["adam"] = "adam"
    lr: LearningRate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: NonNegative = 0.0


class AdamWSettings(AdamSettings):
    """Adam with decoupled weight decay (Loshchilov and Hutter, 2019), torch.optim.AdamW."""

    name: Literal["adamw"] = "adamw"  # type: ignore[assignment]
    weight_decay: NonNegative = 1e-2


class AdaBoundSettings(Settings):
    """Adam whose step sizes are clipped between bounds that close in on those of SGD (Luo et al., 2019).

    final_lr: the step size in the end, before the schedule. gamma: how fast the bounds close. paper: true for the
    algorithm as printed, slides for the other printing, false for the released code. root_decay: divide by the root of
    the step count, as the paper does. decoupled: true for weight decay as in AdamW, fixed for a decay without the
    learning rate. compile: true for one kernel per large parameter, which takes seconds to make and a compiler.
    """

    name: Literal["adabound"] = "adabound"
    lr: LearningRate = 1e-3
    beta1: Beta = 0.9
    beta2: Beta = 0.999
    final_lr: Annotated[float, Field(gt=0.0)] = 0.1
    gamma: NonNegative = 1e-3
    eps: Annotated[float, Field(gt=0.0)] = 1e-8
    weight_decay: NonNegative = 0.0
    decoupled: Literal[False, True, "fixed"] = False
    paper: Literal[False, True, "slides"] = False
    root_decay: bool = False
    compile: bool = False


class AMSBoundSettings(AdaBoundSettings):
    """AdaBound that divides by the largest mean square so far (Luo et al., 2019)."""

    name: Literal["amsbound"] = "amsbound"  # type: ignore[assignment]


AnyBase = Annotated[
    SGDSettings | AdamSettings | AdamWSettings | AdaBoundSettings | AMSBoundSettings, BY_NAME, named("sgd")
]


class ConstantRadius(Settings):
    """The radius stays as it is."""

    name: Literal["constant"] = "constant"


class RateRadius(Settings):
    """The radius is in proportion to the learning rate."""

    name: Literal["lr"] = "lr"


class LinearRadius(Settings):
    """The radius falls in a straight line over the whole run.

    final: the share of it that is left at the end.
    """

    name: Literal["linear"] = "linear"
    final: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class CosineRadius(LinearRadius):
    """The radius falls along half a cosine over the whole run."""

    name: Literal["cosine"] = "cosine"  # type: ignore[assignment]


AnyRadius = Annotated[ConstantRadius | RateRadius | LinearRadius | CosineRadius, BY_NAME, named("constant")]


class SAMSettings(Settings):
    """Sharpness-aware minimisation (Foret et al., 2021): the gradient at the worst place within a radius rho.

    norm: 2 or inf. scope: one norm over all parameter groups, or one for each. schedule: of the radius. interval: only
    every so many steps looks around. m: so many samples of a batch are moved by their own gradient (m-sharpness). clip:
    largest norm of the final gradient. moved: all parameters, those of norms alone (SAM-ON, Mueller et al., 2023), or
    patterns of their names. base: the optimizer that steps.
    """

    name: Literal["sam"] = "sam"
    rho: NonNegative = 0.05
    norm: Annotated[Literal[2, "inf"], BeforeValidator(lambda one: "inf" if one == math.inf else one)] = 2
    scope: Literal["all", "group"] = "all"
    schedule: AnyRadius = ConstantRadius()
    interval: Annotated[int, Field(ge=1)] = 1
    m: Annotated[int, Field(ge=1)] | None = None
    clip: Annotated[float, Field(gt=0.0)] | None = None
    moved: Literal["all", "norms"] | Annotated[list[str], Field(min_length=1)] = "all"
    base: AnyBase = SGDSettings()


class ASAMSettings(SAMSettings):
    """SAM that follows every rescaling of the weights which keeps the function (Kwon et al., 2021).

    adaptive: true for weights alone, as released; all for biases and shifts of norms too. eta: added to the size of a
    weight. by: the size of each element, or of its filter.
    """

    name: Literal["asam"] = "asam"  # type: ignore[assignment]
    rho: NonNegative = 0.5
    adaptive: Literal[True, "all"] = True
    eta: NonNegative = 0.01
    by: Literal["element", "filter"] = "element"


AnyOptimizer = Annotated[
    SGDSettings | AdamSettings | AdamWSettings | AdaBoundSettings | AMSBoundSettings | SAMSettings | ASAMSettings,
    BY_NAME,
    named("sgd"),
]


class ScheduleSettings(Settings):
    """Every schedule may start with a linear warm-up from 0.

    warmup_epochs: its length; 0 is none.
    """

    warmup_epochs: NonNegative = 0.0


class ConstantSettings(ScheduleSettings):
    """The learning rate stays as it is."""

    name: Literal["constant"] = "constant"


class FallingSettings(ScheduleSettings):
    """Schedules that run over the whole run.

    progress: what of the run counts as done: its steps, or the training FLOPs of all that it will spend, so that a rate
    falls by what was paid. flops needs train.flops, or a growth plan that is known in advance; then the FLOPs of that
    plan count, and where sites are given up on the way the schedule ends before its end. null is what ends the run:
    flops with train.flops, else steps.
    """

    progress: Literal["steps", "flops"] | None = None


class CosineSettings(FallingSettings):
    """Half a cosine over the whole run (Loshchilov and Hutter, 2017).

    final: the share of the learning rate that is left at the end.
    """

    name: Literal["cosine"] = "cosine"
    final: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0


class StepSettings(FallingSettings):
    """The learning rate falls at each milestone.

    milestones: shares of the whole run. factor: what the rate is multiplied by.
    """

    name: Literal["step"] = "step"
    milestones: Annotated[tuple[Milestone, ...], Field(strict=False, min_length=1)] = (0.3, 0.6, 0.8)
    factor: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1


AnySchedule = Annotated[ConstantSettings | CosineSettings | StepSettings, BY_NAME, named("cosine")]


class LossSettings(Settings):
    """A loss by name."""

    name: str


class AutoLossSettings(LossSettings):
    """The loss of the data's task: cross-entropy in nats, for regression the mean squared error."""

    name: Literal["auto"] = "auto"  # type: ignore[assignment]


class CrossEntropySettings(LossSettings):
    """Cross-entropy in nats, of classes and of tokens; `train.label_smoothing` goes with it."""

    name: Literal["cross_entropy"] = "cross_entropy"  # type: ignore[assignment]


class FocalSettings(LossSettings):
    """Cross-entropy that counts what is already known less, of classes and of tokens (Lin et al., 2017).

    gamma: the power of the missing probability that a sample is weighted by; 0 is cross-entropy.
    """

    name: Literal["focal"] = "focal"  # type: ignore[assignment]
    gamma: NonNegative = 2.0


class MarginSettings(LossSettings):
    """The hinge of several classes: how far others come within a margin of the right one (Crammer and Singer, 2001).

    margin: between logits.
    """

    name: Literal["margin"] = "margin"  # type: ignore[assignment]
    margin: Annotated[float, Field(gt=0.0)] = 1.0


class MeanSquaredSettings(LossSettings):
    """The mean squared error, for regression."""

    name: Literal["mse"] = "mse"  # type: ignore[assignment]


class MeanAbsoluteSettings(LossSettings):
    """The mean absolute error, for regression."""

    name: Literal["mae"] = "mae"  # type: ignore[assignment]


class HuberSettings(LossSettings):
    """Half the squared error, linear beyond delta, for regression (Huber, 1964).

    delta: in the units of the targets; of those of a table, which are scaled, in deviations.
    """

    name: Literal["huber"] = "huber"  # type: ignore[assignment]
    delta: Annotated[float, Field(gt=0.0)] = 1.0


AnyLoss = Annotated[
    AutoLossSettings
    | CrossEntropySettings
    | FocalSettings
    | MarginSettings
    | MeanSquaredSettings
    | MeanAbsoluteSettings
    | HuberSettings,
    BY_NAME,
    named("auto"),
]


def _whole(count: object) -> object:
    """Let 1e12 stand for an integer."""
    return int(count) if isinstance(count, float) and count.is_integer() else count


class TrainSettings(Settings):
    """How a stage trains.

    epochs: of the whole run, all stages together. steps: of the optimizer in the whole run, in place of epochs; null
    trains for epochs. flops: training FLOPs of the whole run, likewise: it ends with the first step by which all steps
    have spent them (3 x forward for each pass; evaluation and growth events are not counted), and schedules run over
    their share. loss: what is minimised, and reported as the loss. label_smoothing:
    share of each target that is spread over all classes, in training alone. precision: auto is bf16 and channels-last
    where the device has native bf16, else fp32. device: auto is cuda where there is one, else cpu.
    """

    epochs: Annotated[int, Field(ge=1)] = 30
    steps: Annotated[int, Field(ge=1)] | None = None
    flops: Annotated[int, BeforeValidator(_whole), Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: AnyOptimizer = SGDSettings()
    schedule: AnySchedule = CosineSettings()
    loss: AnyLoss = AutoLossSettings()
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @model_validator(mode="after")
    def _smoothing_needs_cross_entropy(self) -> TrainSettings:
        if self.label_smoothing > 0.0 and self.loss.name not in ("auto", "cross_entropy"):
            raise ValueError(
                f"label_smoothing goes with loss: cross_entropy, got {self.label_smoothing:g} with {self.loss.name}; "
                "set it to 0"
            )
        return self

    @model_validator(mode="after")
    def _flops_alone_end_the_run(self) -> TrainSettings:
        if self.flops is None:
            return self
        if self.steps is not None:
            raise ValueError(f"either steps or flops ends the run, got steps {self.steps} and flops {self.flops}")
        if getattr(self.schedule, "progress", None) == "steps":
            raise ValueError("schedule.progress must be flops where flops ends the run, for its steps are not known")
        radius = getattr(self.optimizer, "schedule", None)
        if isinstance(radius, LinearRadius):
            raise ValueError(
                f"optimizer.schedule {radius.name} falls over the steps of the run, which are not known where flops "
                "ends it; take constant or lr"
            )
        return self
