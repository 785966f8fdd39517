"""How well a model does on a split: means over its samples, and sample by sample with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from growkit.config.train import AutoLossSettings, LossSettings
from growkit.data import Data, batches
from growkit.data.records import IGNORED, REGRESSION
from growkit.device import ComputePolicy
from growkit.losses import build_loss, is_cross_entropy
from growkit.metrics import Evaluation, Meter
from growkit.rng import isolated

__all__ = ["SampleScores", "evaluate", "evaluate_samples", "mean_and_error"]


def evaluate(
    model: nn.Module,
    data: Data,
    split: str,
    compute: ComputePolicy,
    batch_size: int = 1000,
    loss: LossSettings = AutoLossSettings(),  # noqa: B008 - frozen
) -> Evaluation | None:
    """Loss (without label smoothing) and metrics of `model` on a split; None where the split is empty.

    The mode of every submodule and torch's random state are as before.

    Raises:
        DataError: there is no such split.
    """
    if len(data.split(split)) == 0:
        return None
    meter, loss_of = Meter(data.task, is_cross_entropy(loss), data.target_std), build_loss(loss, data.task)
    with _predictions(model, data, split, compute, batch_size) as predictions:
        for outputs, targets in predictions:
            meter.add(loss_of(outputs, targets), outputs, targets)
    return meter.result()


@dataclass(frozen=True)
class SampleScores:
    """An evaluation, sample by sample; all float64 [N] on the CPU.

    Attributes:
        evaluation: the means.
        losses: of each sample alone; 0 where it does not count.
        hits: the share of each that is right, 0 or 1 where it is of one class; None for regression.
        weights: how much each counts in the means: 1, or its number of tokens.
    """

    evaluation: Evaluation
    losses: Tensor
    hits: Tensor | None
    weights: Tensor

    @property
    def standard_error(self) -> float:
        """Of the accuracy, or where there is none of the loss, over the samples."""
        return mean_and_error(self.losses if self.hits is None else self.hits, self.weights)[1]


@torch.no_grad()
def evaluate_samples(
    model: nn.Module, data: Data, split: str, compute: ComputePolicy, loss: LossSettings, batch_size: int = 1000
) -> SampleScores | None:
    """As `evaluate`, and the loss and the hits of every sample with it: what differences are tested on, in pairs."""
    if len(data.split(split)) == 0:
        return None
    meter, loss_of = Meter(data.task, is_cross_entropy(loss), data.target_std), build_loss(loss, data.task)
    losses, hits, weights = [], [], []
    with _predictions(model, data, split, compute, batch_size) as predictions:
        for outputs, targets in predictions:
            meter.add(loss_of(outputs, targets), outputs, targets)
            counts = torch.ones_like(targets[:, 0]) if data.task == REGRESSION else _each(targets != IGNORED)
            # one by one, by the loss itself: so no loss needs a second form that could differ from it
            alone = [loss_of(outputs[i : i + 1], targets[i : i + 1]) for i in range(len(targets))]
            losses.append(torch.where(counts > 0, torch.stack(alone).double(), 0.0))
            weights.append(counts.double())
            if data.task != REGRESSION:
                hits.append(_each(outputs.argmax(-1) == targets).double() / counts.clamp_min(1))
    return SampleScores(
        meter.result(), torch.cat(losses).cpu(), torch.cat(hits).cpu() if hits else None, torch.cat(weights).cpu()
    )


def mean_and_error(values: Tensor, weights: Tensor) -> tuple[float, float]:
    """The weighted mean of values [N] and its standard error, the samples being drawn with their weights [N].

    The error is that of a ratio of two sums (Cochran, Sampling Techniques, 1977, section 2.11); with equal weights it
    is the usual one. It is infinite for a single sample, which says nothing about the spread.

    Example:
        >>> mean_and_error(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        (2.0, 1.0)
    """
    count, total = len(values), weights.sum()
    mean = (weights * values).sum() / total
    if count < 2:
        return float(mean), math.inf
    squares = (weights * (values - mean)).square().sum()
    return float(mean), float((squares * count / (count - 1)).sqrt() / total)


def _each(marked: Tensor) -> Tensor:
    """How many of each sample's entries [N, ...] are marked."""
    return marked.reshape(len(marked), -1).sum(1)


@contextmanager
def _predictions(
    model: nn.Module, data: Data, split: str, compute: ComputePolicy, batch_size: int
) -> Iterator[Iterator[tuple[Tensor, Tensor]]]:
    """Outputs and targets of `model` in evaluation mode, batch by batch, without gradients; it is left as it was."""

    def each() -> Iterator[tuple[Tensor, Tensor]]:
        with closing(batches(data, split, batch_size, channels_last=compute.channels_last)) as source:
            for inputs, targets in source:
                with compute.autocast():
                    outputs = model(inputs)
                yield outputs, targets

    modes = [(module, module.training) for module in model.modules()]
    try:
        with isolated(), torch.no_grad():
            model.eval()
            yield each()
    finally:
        for module, training in modes:
            module.training = training
