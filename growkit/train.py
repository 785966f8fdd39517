"""One train stage: steps and epochs. It knows nothing of growth; it only stops when it is told to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import tee
from typing import Any

import torch
from torch import Tensor, nn

from growkit.config.train import TrainSettings
from growkit.cost import TrainingCost
from growkit.data import Data, batches, num_batches
from growkit.device import ComputePolicy, lacks_memory
from growkit.errors import GrowkitError, TrainingError
from growkit.losses import build_loss, is_cross_entropy
from growkit.metrics import Evaluation, Meter
from growkit.rng import Streams
from growkit.schedule import rate_factor
from growkit.twins import become, twin_of

__all__ = ["Trainer"]


@dataclass
class Trainer:
    """Trains one model to the end of its budget of steps or FLOPs, in as many stages as it is interrupted.

    Attributes:
        model, optimizer: changed in place; the model may be widened between stages.
        data: device-resident. settings: of training. compute: device and precision. streams: random streams.
        total_steps: the whole run's optimizer steps, or the most there can be where `settings.flops` ends it.
        flops_per_sample: forward, of the model as it is; whoever widens it says so.
        planned_flops: what the whole run will spend, for a schedule that follows FLOPs where steps end the run.
        step, epoch: done so far. cost: training FLOPs spent so far.
        damping: what the scheduled learning rate is multiplied by, besides, for a step (from 0).
        last_batch_size, last_passes: samples of the last step and how often it passed through the model.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    data: Data
    settings: TrainSettings
    compute: ComputePolicy
    streams: Streams
    total_steps: int
    damping: Callable[[int], float] = lambda step: 1.0
    flops_per_sample: int = 0
    planned_flops: int | None = None
    step: int = 0
    epoch: int = 0
    cost: TrainingCost = field(default_factory=TrainingCost)
    last_batch_size: int = 0
    last_passes: int = 1

    def __post_init__(self) -> None:
        self.loss = build_loss(self.settings.loss, self.data.task, self.settings.label_smoothing)
        self.steps_per_epoch = num_batches(self.data, "train", self.settings.batch_size, training=True)
        self._base_rates = [group["lr"] for group in self.optimizer.param_groups]
        self._meter = self._new_meter()
        self._source = self._endless()
        self._feed: Iterator[tuple[Tensor, Tensor]] = self._source
        assert self.steps_per_epoch > 0, "a train split of one sample gives no training batch"

    @property
    def finished(self) -> bool:
        """Whether every step is done, or all FLOPs are spent."""
        limit = self.settings.flops
        return self.step >= self.total_steps or (limit is not None and self.cost.training >= limit)

    @property
    def progress(self) -> float:
        """The share of the run that is done, by what the schedule follows."""
        follows = getattr(self.settings.schedule, "progress", None)
        if self.settings.flops is None and follows != "flops":
            return self.step / max(1, self.total_steps)
        total = self.settings.flops or self.planned_flops
        assert total is not None, "a schedule that follows FLOPs is refused where they are not known"
        return min(1.0, self.cost.training / total)

    @property
    def learning_rate(self) -> float:
        """The first parameter group's present learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    def train_stage(
        self,
        *,
        stop: Callable[[int], bool],
        on_step: Callable[[int], None] = lambda step: None,
        on_epoch: Callable[[Evaluation], None] = lambda result: None,
    ) -> None:
        """Train until `stop(step)` says so or the run's steps are done.

        Dropout draws from its own stream, lent to torch's global generators for the stage.

        Args:
            stop: asked after every optimizer step.
            on_step: called after every step, gradients still in place.
            on_epoch: called after the last step of every epoch with the mean training loss and accuracy.

        Raises:
            TrainingError: the loss is not finite at the end of an epoch or of the stage.
        """
        with self.streams.lent("dropout"):
            while not self.finished:
                self._guarded_step()
                on_step(self.step)
                if self.step % self.steps_per_epoch == 0 or self.finished:
                    self._close_epoch(on_epoch)
                if stop(self.step):
                    self._check_finite()
                    return

    def _guarded_step(self) -> None:
        """One step; whatever the model or torch raises on the way is a failure of the run, with its cause."""
        try:
            self._one_step(*self._next_batch())
        except (GrowkitError, OSError):
            raise
        except Exception as error:
            hint = (
                "no memory is left; lower train.batch_size" if lacks_memory(error) else "the model or its loss raised"
            )
            raise TrainingError(
                f"step {self.step + 1} failed: {hint}: {type(error).__name__}: {str(error).strip()[:500]}"
            ) from error

    def _one_step(self, inputs: Tensor, targets: Tensor) -> None:
        self._set_rate()
        self.model.train()
        firsts: dict[int, tuple[Tensor, Tensor]] = {}  # an optimizer may ask more than once for a part of the batch;
        calls = 0  # the first time is the one at the weights that the step began with

        def closure(part: slice = slice(0, None)) -> Any:  # torch's stub says float, its optimizers take a tensor
            nonlocal calls
            calls += 1
            self.optimizer.zero_grad(set_to_none=True)
            with self.compute.autocast():
                outputs = self.model(inputs[part])
            loss = self.loss(outputs, targets[part])
            loss.backward()
            firsts.setdefault(part.start, (loss.detach(), outputs.detach()))
            return loss

        in_parts = getattr(self.optimizer, "m", None) is not None
        self.optimizer.step(closure, **({"samples": len(targets)} if in_parts else {}))
        for start, (loss, outputs) in firsts.items():
            self._meter.add(loss, outputs, targets[start : start + len(outputs)])
        self.step += 1
        self.last_batch_size, self.last_passes = len(targets), calls // len(firsts)
        self.cost.add_steps(self.flops_per_sample, self.last_batch_size, self.last_passes)

    def _set_rate(self) -> None:
        factor = rate_factor(self.settings.schedule, self.step, self.progress, self.steps_per_epoch)
        factor *= self.damping(self.step)
        for group, base in zip(self.optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = base * factor

    def fork(self) -> Trainer:
        """One that goes on from here on its own, with a twin of the model and of the optimizer.

        Both get the same batches, which are kept while one of them is ahead; `rejoin` or `part` ends that.

        Raises:
            ModelError: the model allows no copy.
        """
        other = copy.copy(self)
        other.model, other.optimizer = twin_of(self.model, self.optimizer)
        other.streams, other._meter = self.streams.fork(), copy.copy(self._meter)
        other.cost = TrainingCost(**self.cost.to_json())
        self._feed, other._feed = tee(self._source)
        return other

    def part(self) -> None:
        """Let the fork be: batches come for this trainer alone from now on, which must not be behind its fork."""
        self._feed = self._source

    def rejoin(self, fork: Trainer) -> None:
        """Go on, in place, from where a fork has come to; it is spent then. The model must have its old structure."""
        become(self.model, self.optimizer, fork.model, fork.optimizer)
        self.streams.rejoin(fork.streams)
        self.step, self.epoch, self._meter = fork.step, fork.epoch, fork._meter
        self.last_batch_size, self.last_passes = fork.last_batch_size, fork.last_passes
        self.cost, self.flops_per_sample = fork.cost, fork.flops_per_sample
        self.part()

    def close(self) -> None:
        """End the processes that read samples ahead, where there are any."""
        self._source.close()
        self._source = self._feed = self._endless()

    def _next_batch(self) -> tuple[Tensor, Tensor]:
        return next(self._feed)

    def _endless(self) -> Generator[tuple[Tensor, Tensor], None, None]:
        """Pass after pass over the train split."""
        while True:
            yield from batches(
                self.data,
                "train",
                self.settings.batch_size,
                order=self.streams.generator("order"),
                augmentation=self.streams.generator("augmentation"),
                channels_last=self.compute.channels_last,
            )

    def _new_meter(self) -> Meter:
        plain = is_cross_entropy(self.settings.loss, self.settings.label_smoothing)
        return Meter(self.data.task, plain, self.data.target_std)

    def _close_epoch(self, on_epoch: Callable[[Evaluation], None]) -> None:
        self._check_finite()
        self.epoch += 1
        result, self._meter = self._meter.result(), self._new_meter()
        on_epoch(result)

    def _check_finite(self) -> None:
        """Once an epoch and once a stage: a check makes the host wait for the device."""
        loss = 0.0 if self._meter.empty else self._meter.result().loss
        if not math.isfinite(loss):
            place = "train.optimizer.base.lr" if hasattr(self.settings.optimizer, "base") else "train.optimizer.lr"
            raise TrainingError(
                f"the training loss must stay finite, got {loss} in epoch {self.epoch + 1} (by step {self.step}); "
                f"lower {place}, or raise train.schedule.warmup_epochs"
            )
