"""Putting a run together: everything a user can have got wrong is refused here, before a file is written."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import nn

from growkit.config import Config
from growkit.config.growth import NeverSettings
from growkit.config.models import ModelSettings
from growkit.cost import count_flops
from growkit.data import Data, load_data, num_batches
from growkit.device import ComputePolicy, choose_compute
from growkit.errors import UserInputError
from growkit.graph import find_sites
from growkit.growth.base import Clock
from growkit.growth.controller import GrowthController
from growkit.growth.plan import GrowthPlan
from growkit.models import build_model, check_output
from growkit.optim import build_optimizer
from growkit.report import check_writable
from growkit.rng import Streams, isolated
from growkit.surgery import Inputs
from growkit.train import Trainer, data_loss

__all__ = ["Assembly", "assemble"]

TRIAL_SAMPLES = 16  # of the batch on which sites are tried before the first event


@dataclass
class Assembly:
    """The parts of a run, fitted together.

    Attributes:
        seed_settings: of the model, None for a live module. plan: None where growth depends on training.
        planned_flops: training FLOPs of the plan. warnings: what the user should know and what was done about it.
    """

    config: Config
    data: Data
    model: nn.Module
    seed_settings: ModelSettings | None
    compute: ComputePolicy
    streams: Streams
    controller: GrowthController
    trainer: Trainer
    plan: GrowthPlan | None
    planned_flops: int | None
    warnings: list[str]
    site_names: tuple[str, ...]

    @property
    def clock(self) -> Clock:
        """The run's length."""
        return Clock(self.trainer.steps_per_epoch, self.trainer.total_steps)

    @property
    def widths(self) -> dict[str, int]:
        """Present width of every site that could grow at the start; one given up on the way keeps its column."""
        return {name: self.controller.sites[name].width for name in self.site_names}


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
    _check_splits(config, data)
    data = data.to(compute.device)
    if config.control == "none":
        return _fit(config, data, model, compute)
    planned = _fit(config.model_copy(update={"control": "none"}), data, copy.deepcopy(model), compute)
    return _control(config, data, model, compute, planned)


def _fit(
    config: Config, data: Data, live: nn.Module | None, compute: ComputePolicy, total_steps: int | None = None
) -> Assembly:
    streams = Streams(config.seed)
    with isolated(streams.seed_of("init")):
        model = live if live is not None else build_model(config.model, data.input_shape, data.num_outputs)
    compute.place(model)
    example = data.example(2)
    check_output(model, example, data.num_outputs, data.task)
    steps_per_epoch = num_batches(data, "train", config.train.batch_size, training=True)
    clock = Clock(steps_per_epoch, total_steps or steps_per_epoch * config.train.epochs)
    loss = data_loss(data.task, config.train.label_smoothing)
    controller = GrowthController(
        model, find_sites(model, example), config.growth, loss, compute, streams.generator("growth")
    )
    controller.prepare(Inputs((data.example(TRIAL_SAMPLES),)))
    plan = controller.plan(clock)
    counted = count_flops(model, example)
    # the graph's own formulas serve hypothetical widths; what they leave out does not change with the widths they know
    beyond_graph = counted.total - controller.sites.graph.flops()
    trainer = Trainer(
        model,
        build_optimizer(config.train.optimizer, model.parameters()),
        data,
        config.train,
        compute,
        streams,
        clock.total_steps,
    )
    return Assembly(
        config=config,
        data=data,
        model=model,
        seed_settings=None if live is not None else config.model,
        compute=compute,
        streams=streams,
        controller=controller,
        trainer=trainer,
        plan=plan,
        planned_flops=None if plan is None else _planned_flops(plan, controller, trainer, beyond_graph),
        warnings=_warnings(config, controller, plan, counted.unknown, beyond_graph),
        site_names=tuple(site.name for site in controller.tracked),
    )


def _control(config: Config, data: Data, live: nn.Module | None, compute: ComputePolicy, planned: Assembly) -> Assembly:
    """A baseline for the training FLOPs that the growth plan would spend."""
    if planned.plan is None or planned.planned_flops is None:
        raise UserInputError(
            f"control needs a growth plan known in advance, and growth.when {config.growth.when.name!r} depends on "
            "training; use growth.when: periodic"
        )
    asked = config
    never = config.growth.model_copy(update={"when": NeverSettings()})
    update: dict[str, Any] = {"growth": never}
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
    samples_per_step = planned.data.train.targets.shape[0] / planned.trainer.steps_per_epoch
    steps = max(1, round(planned.planned_flops / (3 * flops * samples_per_step)))
    parts = _fit(config, data, live, compute, total_steps=steps)
    parts.config = asked  # the record repeats the run: the plan it is compared with stands in these settings
    return parts


def _planned_flops(plan: GrowthPlan, controller: GrowthController, trainer: Trainer, beyond_graph: int) -> int:
    samples_per_step = len(trainer.data.train) / trainer.steps_per_epoch
    graph = controller.sites.graph
    return round(
        sum(
            3 * (graph.flops(widths) + beyond_graph) * steps * samples_per_step
            for steps, widths in plan.stages(trainer.total_steps)
        )
    )


def _check_splits(config: Config, data: Data) -> None:
    if len(data.train) < 2:
        raise UserInputError(
            f"data: the train split must hold at least 2 samples, got {len(data.train)}; "
            "raise data.limit or lower data.split"
        )


def _warnings(
    config: Config, controller: GrowthController, plan: GrowthPlan | None, unknown: tuple[str, ...], beyond_graph: int
) -> list[str]:
    found = []
    if plan is not None and config.growth.when.name == "periodic" and controller.tracked:
        wanted = config.growth.when.events
        if not plan.events:
            found.append("no growth event falls within the training: lower growth.when.start or raise train.epochs")
        elif wanted is not None and len(plan.events) < wanted:
            found.append(
                f"{len(plan.events)} of the {wanted} growth events of growth.when take place before the training "
                "or the room ends"
            )
    if unknown:
        found.append(f"FLOPs leave out operators without a formula: {', '.join(unknown)}")
    if beyond_graph:
        found.append(
            f"{beyond_graph:,} FLOPs per sample are outside the graph's formulas and taken as constant in the plan"
        )
    return found
