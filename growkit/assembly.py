"""Putting a run together: everything a user can have got wrong is refused here, before a file is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from growkit.config import Config
from growkit.config.growth import GrowthSettings, NeverSettings, PeriodicSettings, TrialSettings
from growkit.config.models import ModelSettings
from growkit.config.policies import SpreadSettings
from growkit.convolutions import strided_over_padding
from growkit.cost import count_flops, count_params
from growkit.data import Data, load_data
from growkit.device import ComputePolicy, choose_compute
from growkit.errors import ModelError, UserInputError
from growkit.folders import check_writable
from growkit.graph import check_model, check_values, copy_of, find_sites
from growkit.growth.aftermath import Aftermath
from growkit.growth.base import Clock
from growkit.growth.controller import GrowthController
from growkit.growth.limits import trial_steps
from growkit.growth.plan import GrowthPlan
from growkit.growth.policy import Policy
from growkit.growth.prospector import Prospector
from growkit.growth.statistics import Loss
from growkit.length import Outlook, Pace
from growkit.losses import build_loss
from growkit.models import build_model, check_output
from growkit.optim import build_optimizer
from growkit.rng import Streams, isolated
from growkit.surgery import Inputs, untouched
from growkit.train import Trainer

__all__ = ["Assembly", "assemble"]

TRIAL_SAMPLES = 16  # of the batch on which sites are tried before the first event


@dataclass
class Assembly:
    """The parts of a run, fitted together.

    Attributes:
        seed_settings: of the model, None for a live module. plan: None where growth depends on training.
        planned_flops: training FLOPs of the plan, or those that end the run. warnings: what the user should know and
            what was done about it. clock: the run's length. outlook: asked before it trains, what another length costs.
    """

    config: Config
    data: Data
    model: nn.Module
    seed_settings: ModelSettings | None
    compute: ComputePolicy
    streams: Streams
    controller: GrowthController
    aftermath: Aftermath
    trainer: Trainer
    plan: GrowthPlan | None
    planned_flops: int | None
    warnings: list[str]
    clock: Clock
    outlook: Outlook

    @property
    def widths(self) -> dict[str, int]:
        """Present width of every site that could ever grow; one given up on the way keeps its entry."""
        return self.controller.ground.widths

    @property
    def depths(self) -> dict[str, int]:
        """Number of blocks at every place that could become deeper at the start."""
        return dict(self.controller.depths.depths)


def assemble(
    config: Config, *, model: nn.Module | None = None, data: Data | None = None, writes: bool = True
) -> Assembly:
    """Build data, seed, graph, controller and trainer.

    Args:
        config: the settings.
        model: a live module in place of the one the settings name.
        data: likewise.
        writes: whether the run will write a folder.

    Raises:
        UserInputError: anything the user gave that does not fit.
    """
    if writes:
        check_writable(config.run.root)
    compute = choose_compute(config.train.precision, config.train.device)
    data = load_data(config.data) if data is None else data
    _check_settings(config, data)
    data = data.to(compute.device)
    if config.control == "none":
        return _fit(config, data, model, compute)
    trial = None if model is None else copy_of(model)
    planned = _fit(config.model_copy(update={"control": "none"}), data, trial, compute)
    return _control(config, data, model, compute, planned)


def _fit(
    config: Config, data: Data, live: nn.Module | None, compute: ComputePolicy, total_steps: int | None = None
) -> Assembly:
    streams = Streams(config.seed)
    with isolated(streams.seed_of("init")):
        model = live if live is not None else build_model(config.model, data.input_shape, data.num_outputs)
    check_model(model)
    check_values(model)
    compute = _trustworthy(compute, config, model, data)
    if config.growth.when.name != "never":
        copy_of(model)  # events measure on copies: a model that allows none is refused before it trains
    compute.place(model)
    example = data.example(2)
    pace = Pace.of(data, config.train)
    steps = total_steps or config.train.steps or pace.steps_per_epoch * config.train.epochs
    optimizer = build_optimizer(config.train.optimizer, model.parameters(), model=model, total_steps=steps)
    loss = build_loss(config.train.loss, data.task, config.train.label_smoothing)
    with untouched(model):  # its forward and its hooks may write to what it keeps
        check_output(model, example, data.num_outputs, data.task)
        _rehearse(config, model, data, loss, compute)
        sites = find_sites(model, example)
        controller = GrowthController(model, sites, config.growth, loss, compute, streams.generator("growth"))
        controller.prepare(Inputs((data.example(TRIAL_SAMPLES),)))
        controller.measure = Prospector(
            model=model,
            sites=lambda: [site for site in controller.tracked if site.width < controller.targets[site.name]],
            data=data,
            loss=loss,
            initializer=config.growth.initializer,
            batch_size=getattr(config.growth.initializer, "batch_size", config.train.batch_size),
            stream=Streams(streams.seed_of("growth")).generator("growth"),  # so that asking changes no event
            channels_last=compute.channels_last,
            blocks=lambda: controller.depths.next_orders(),
        )
        outlook = Outlook(controller, pace, config.train.flops)
        clock = outlook.clock(steps if config.train.flops is None else outlook.steps_to_limit())
        _check_policy(controller, clock, validates=len(data.split("validate")) > 0)
        _check_trial(controller.settings.trial, clock, len(data.split("validate")))
        _check_accuracy(controller.settings, data)
        _check_budget(controller, clock, example)
        plan, planned_flops = outlook.plan(clock.total_steps), outlook.flops(clock.total_steps)
    _check_schedule(config, planned_flops)
    aftermath = Aftermath(config.growth.optimizer, model, optimizer)
    trainer = Trainer(
        model,
        optimizer,
        data,
        config.train,
        compute,
        streams,
        # an event that fails makes a run that its FLOPs end longer than planned
        clock.total_steps if config.train.flops is None else outlook.most_steps(),
        damping=aftermath.rate,
        flops_per_sample=controller.counted.total,
        planned_flops=planned_flops,
    )
    return Assembly(
        config=config,
        data=data,
        model=model,
        seed_settings=None if live is not None else config.model,
        compute=compute,
        streams=streams,
        controller=controller,
        aftermath=aftermath,
        trainer=trainer,
        plan=plan,
        planned_flops=config.train.flops if planned_flops is None else planned_flops,
        warnings=_warnings(config, data, controller, plan, clock),
        clock=clock,
        outlook=outlook,
    )


def _control(config: Config, data: Data, live: nn.Module | None, compute: ComputePolicy, planned: Assembly) -> Assembly:
    """A baseline for the training FLOPs that the growth plan would spend, or that train.flops gives."""
    if config.growth.mode == "both" and planned.planned_flops is None:
        raise UserInputError(
            "control needs a growth plan known in advance, which growth.mode both has not: what sites a new block "
            "brings is known when it stands; use growth.mode width or depth, or give the length of the run as "
            "train.flops"
        )
    if planned.planned_flops is None:
        raise UserInputError(
            f"control needs a growth plan known in advance, and {_what_depends_on_training(config.growth)} on "
            "training; use growth.when: periodic with a growth.where and growth.how_many that measure nothing and no "
            "growth.trial, or give the length of the run as train.flops"
        )
    asked = config
    # targets, sites and budget speak of the seed, which the full network is not
    never = GrowthSettings(when=NeverSettings(), target=1.0, initializer=config.growth.initializer)
    update: dict[str, Any] = {"growth": never}
    if config.control == "full" and config.growth.mode == "depth":
        raise UserInputError(
            "control: full is the model at full width, which growth.mode depth leaves as it is; build the deep network "
            "by the settings of the model, such as model.depth, with growth.when: never"
        )
    if config.control == "full":
        full = None if live is not None else config.model.full()
        if full is None:
            raise UserInputError(
                f"control: full needs a model that knows its full width (vgg, wrn), got {config.model.name!r}; "
                "set the widths yourself and growth.when: never"
            )
        update["model"] = full
    config = config.model_copy(update=update)
    with isolated(Streams(config.seed).seed_of("init")):
        flops = count_flops(
            live
            if live is not None
            else build_model(config.model, data.input_shape, data.num_outputs).to(compute.device),
            data.example(1),
        ).total
    steps = max(1, round(planned.planned_flops / (planned.clock.forwards_per_step * flops)))
    parts = _fit(config, data, live, compute, total_steps=steps)
    parts.config = asked  # the record repeats the run: the plan it is compared with stands in these settings
    parts.planned_flops = planned.planned_flops
    return parts


def _what_depends_on_training(growth: GrowthSettings) -> str:
    """The parts of a policy without a plan, with their verb."""
    policy = Policy.build(growth)
    keys = [] if policy.trigger.planned_steps(Clock(1, 2)) is not None else ["growth.when"]
    keys += [key for key in policy.by_prospects if key not in keys]
    named = [f"{key} {getattr(growth, key.removeprefix('growth.')).name!r}" for key in keys]
    named += [] if growth.trial is None else ["growth.trial"]
    return " and ".join(named) + (" depends" if len(named) == 1 else " depend")


def _trustworthy(compute: ComputePolicy, config: Config, model: nn.Module, data: Data) -> ComputePolicy:
    """The policy, or fp32 where bf16 was chosen for a processor whose kernels cannot train one of the convolutions.

    Raises:
        UserInputError: bf16 was asked for.
    """
    if compute.device != "cpu" or compute.precision != "bf16":
        return compute
    example = data.example(2).cpu()
    try:
        with untouched(model), torch.no_grad():
            found = strided_over_padding(lambda: model(example))
    except Exception:  # whatever the user's forward raises is told by the checks that follow
        return compute
    if not found:
        return compute
    cause = (
        f"bf16 kernels for CPUs give wrong gradients to a convolution of {found[0]}, where entries meet padding alone"
    )
    if config.train.precision == "bf16":
        raise UserInputError(f"train.precision must be fp32 here, got bf16: {cause}; use fp32, auto or larger images")
    return replace(compute, precision="fp32", channels_last=False, reason=cause)


def _rehearse(config: Config, model: nn.Module, data: Data, loss: Loss, compute: ComputePolicy) -> None:
    """One forward and backward pass at each size of batch the run will use; the model is left as it was.

    Raises:
        ModelError: the model cannot be trained on such a batch, for instance one sample and a BatchNorm.
    """
    sizes = {config.train.batch_size, getattr(config.growth.initializer, "batch_size", config.train.batch_size)}
    for size in sorted({min(size, len(data.train)) for size in sizes}):
        try:
            with untouched(model), compute.autocast():
                model.train()
                loss(model(data.example(size)), data.train.targets[:size]).backward()
            sparse = [name for name, p in model.named_parameters() if p.grad is not None and p.grad.is_sparse]
        except Exception as error:  # the user's forward may raise anything
            raise ModelError(
                f"the model must train on a batch of {size} samples, but {type(error).__name__}: {str(error)[:500]}; "
                "see train.batch_size and growth.initializer.batch_size"
            ) from error
        finally:
            model.zero_grad(set_to_none=True)
        if sparse:
            raise ModelError(f"gradients must be dense, got sparse ones of {', '.join(sparse)}; set sparse=False")


def _check_settings(config: Config, data: Data) -> None:
    """Refuse settings that the data rule out."""
    build_loss(config.train.loss, data.task)
    if data.task == "regression" and config.train.label_smoothing > 0.0:
        raise UserInputError(
            f"train.label_smoothing is for classes and tokens, got {config.train.label_smoothing:g} for the "
            f"{data.task} data {data.name!r}; set it to 0"
        )
    memory = getattr(config.train.optimizer, "base", config.train.optimizer)
    if config.growth.optimizer.state != "carry" and getattr(memory, "momentum", 1.0) == 0.0:
        raise UserInputError(
            f"growth.optimizer.state must be carry where the optimizer remembers nothing, got "
            f"{config.growth.optimizer.state} with sgd of momentum 0"
        )
    if data.augment.mixup and config.train.loss.name == "margin":
        raise UserInputError(
            "train.loss must be one of shares of classes where data.augment.mixup makes them, got margin; take "
            "cross_entropy or focal, or set mixup to 0"
        )


def _check_schedule(config: Config, planned_flops: int | None) -> None:
    """Refuse a schedule that follows FLOPs where nobody knows how many there will be."""
    follows = getattr(config.train.schedule, "progress", None)
    if follows == "flops" and config.train.flops is None and planned_flops is None:
        raise UserInputError(
            "train.schedule.progress: flops needs to know what the run will spend, and "
            f"{_what_depends_on_training(config.growth)} on training; give its length as train.flops"
        )


def _check_policy(controller: GrowthController, clock: Clock, *, validates: bool) -> None:
    """Refuse a policy that could never fire, or that asks for what cannot be measured here."""
    policy, settings = controller.policy, controller.settings
    if settings.when.name == "never":
        return
    if (reason := policy.trigger.refuses(clock, validates)) is not None:
        raise UserInputError(f"growth.when could never fire: {reason}")
    if policy.by_prospects and controller.measure is None:
        raise UserInputError(
            f"{' and '.join(policy.by_prospects)} must be told what growth promises, which cannot be measured here "
            f"with growth.initializer {settings.initializer.name!r}; choose others"
        )


def _check_accuracy(growth: GrowthSettings, data: Data) -> None:
    """Refuse an accuracy to reach that no epoch will tell."""
    if growth.budget.accuracy is None:
        return
    if not len(data.split("validate")):
        raise UserInputError("growth.budget.accuracy needs a validate split, which is empty; set data.split.validate")
    if data.task == "regression":
        raise UserInputError(
            f"growth.budget.accuracy is for classes and tokens, got {growth.budget.accuracy:g} for the regression data "
            f"{data.name!r}; set params, flops or latency_ms instead"
        )


def _check_trial(trial: TrialSettings | None, clock: Clock, samples: int) -> None:
    """Refuse a trial that could never be held, or judged on the validate samples that there are."""
    if trial is None:
        return
    if samples < 2:
        raise UserInputError(
            f"growth.trial is judged on the validate split and needs 2 samples there, got {samples}; set "
            "data.split.validate, or growth.trial: null"
        )
    if (steps := trial_steps(trial, clock)) >= clock.total_steps:
        raise UserInputError(
            f"growth.trial must be shorter than the training of {clock.total_steps} steps, got {steps}; lower "
            f"growth.trial.steps, or raise {clock.setting}"
        )


def _check_budget(controller: GrowthController, clock: Clock, example: Tensor) -> None:
    """Refuse a budget that the seed alone exceeds."""
    budget, seed, inputs = controller.settings.budget, controller.counted.total, Inputs((example,))
    costs: dict[str, tuple[str, Callable[[], float]]] = {
        "params": ("the seed's", lambda: count_params(controller.model)),
        "flops": ("the seed's", lambda: seed),
        "latency_ms": ("the seed's", lambda: controller.latency_within(inputs, budget.latency_ms or 0.0)[0]),
        "train_flops": ("the training of the seed alone,", lambda: clock.forwards_per_step * clock.total_steps * seed),
    }
    for name, (whose, cost) in costs.items():
        limit = getattr(budget, name)
        if limit is not None and limit < (needed := cost()):
            raise UserInputError(
                f"growth.budget.{name} must not lie below {whose} {_number(needed)}, got {_number(limit)}"
            )


def _number(count: float) -> str:
    return f"{count:.3g}" if count < 1000 else f"{round(count):,}"


def _plan_warnings(config: Config, controller: GrowthController, plan: GrowthPlan | None, clock: Clock) -> list[str]:
    """What keeps growth from its events: sizes that are final, the length of the training, or the budget."""
    when, states = getattr(config.growth.when, "base", config.growth.when), controller.ground.states
    if not states or when.name == "never":
        return []
    if all(state.room <= 0 for state in states):
        limit = "growth.target" if config.growth.target is not None else "growth.budget"
        return [f"nothing will grow, for {limit} leaves every site as wide as it is"]
    if not isinstance(when, PeriodicSettings | SpreadSettings):
        return []
    steps = controller.policy.trigger.opportunities(clock) or ()
    if not steps:
        return [f"no growth event falls within the training: lower growth.when.start or raise {clock.setting}"]
    found = []
    if when.events is not None and len(steps) < when.events:
        found.append(f"the training has room for {len(steps)} of the {when.events} growth events")
    if plan is not None and len(plan.events) < len(steps) and not plan.reaches_target:
        found.append(f"growth.budget ends growth after {len(plan.events)} of {len(steps)} events")
    return found


def _warnings(
    config: Config,
    data: Data,
    controller: GrowthController,
    plan: GrowthPlan | None,
    clock: Clock,
) -> list[str]:
    unknown, beyond_graph = controller.counted.unknown, controller.flops_beyond_graph
    found = [*data.notes, *_plan_warnings(config, controller, plan, clock)]
    if left_out := controller.candidates.not_checked:
        found.append(f"the model does not bear {', '.join(left_out)}, so the trial of its sites left that out")
    if unknown:
        found.append(f"FLOPs leave out operators without a formula: {', '.join(unknown)}")
    if beyond_graph:
        found.append(
            f"{beyond_graph:,} FLOPs per sample are outside the graph's formulas and taken as constant in the plan"
        )
    return found
