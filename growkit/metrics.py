"""What is measured beside the loss, by task: accuracy; perplexity of tokens; errors of regression."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from growkit.data.records import CLASSIFICATION, IGNORED, REGRESSION
from growkit.losses import cross_entropy

__all__ = ["Evaluation", "Meter", "metric_names"]

LARGEST_EXPONENT = 700.0  # exp of more is no number


@dataclass(frozen=True)
class Evaluation:
    """Means over some samples; over their tokens, where they have some.

    Attributes:
        loss: the loss that the run names.
        accuracy: in 0..1; None for regression.
        samples: how many.
        metrics: what the task knows besides: `perplexity` (exp of the cross-entropy) of tokens; `cross_entropy` in nats
            of classes, where the loss is another one; `rmse`, `mae` in the units of the targets and `r2` of regression
            (share of the variance that is explained, mean over outputs; left out where targets are constant).
    """

    loss: float
    accuracy: float | None
    samples: int
    metrics: Mapping[str, float] = field(default_factory=dict)


def metric_names(task: str, plain: bool = True) -> tuple[str, ...]:
    """The metrics of a task, as in `Evaluation.metrics`; `plain` as for `Meter`."""
    if task == REGRESSION:
        return "rmse", "mae", "r2"
    return (() if plain else ("cross_entropy",)) + (() if task == CLASSIFICATION else ("perplexity",))


class Meter:
    """Sums on the device; one transfer to the host when the result is asked for.

    Args:
        task: of the data.
        plain: whether the loss is cross-entropy itself, so that it need not be computed again.
        scale: what targets of regression were divided by, [K] or [1]; None for nothing.
    """

    def __init__(self, task: str, plain: bool = True, scale: Tensor | None = None):
        self._task = task
        self._scale = scale
        self._plain = plain
        self._sums: Tensor | None = None
        self._samples = 0

    @property
    def empty(self) -> bool:
        """Whether nothing was added."""
        return self._sums is None

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss [], outputs and targets as the loss takes them."""
        if self._task == REGRESSION:
            weight, more = loss.new_tensor(len(targets)), _errors(outputs, targets, self._scale)
        else:
            entropy = loss if self._plain else cross_entropy(outputs, targets)
            if targets.is_floating_point():  # mixed: the class with the larger share counts
                targets = targets.argmax(-1)
            weight = (targets != IGNORED).sum()
            more = torch.stack([(outputs.argmax(-1) == targets).sum().double(), entropy.detach().double() * weight])
        sums = torch.cat([torch.stack([loss.detach().double() * weight, weight.double()]), more])
        self._sums = sums if self._sums is None else self._sums + sums
        self._samples += len(targets)

    def result(self) -> Evaluation:
        """The means so far; something must have been added."""
        assert self._sums is not None, "nothing was added"
        loss, weight, *more = self._sums.tolist()
        if self._task == REGRESSION:
            return Evaluation(loss / weight, None, self._samples, _regression(more, weight))
        correct, entropy = (total / weight for total in more)
        metrics = {"cross_entropy": entropy} if not self._plain else {}
        if self._task != CLASSIFICATION:
            metrics["perplexity"] = math.exp(min(entropy, LARGEST_EXPONENT))
        return Evaluation(loss / weight, correct, self._samples, metrics)


def _errors(outputs: Tensor, targets: Tensor, scale: Tensor | None) -> Tensor:
    """[4 K] sums over the samples, for each of K outputs: squared and absolute errors, targets, and their squares."""
    known = targets.detach().double() * (1.0 if scale is None else scale)
    error = outputs.detach().double() * (1.0 if scale is None else scale) - known
    return torch.stack([error.square(), error.abs(), known, known.square()]).sum(dim=1).flatten()


def _regression(sums: list[float], count: float) -> dict[str, float]:
    outputs = len(sums) // 4
    squared, absolute, targets, squares = (sums[part * outputs : (part + 1) * outputs] for part in range(4))
    found = {
        "rmse": math.sqrt(sum(squared) / (count * outputs)),
        "mae": sum(absolute) / (count * outputs),
    }
    spread = [max(0.0, square - target**2 / count) for square, target in zip(squares, targets, strict=True)]
    if all(one > 1e-12 * max(square, 1e-300) for one, square in zip(spread, squares, strict=True)):
        found["r2"] = sum(1 - error / one for error, one in zip(squared, spread, strict=True)) / outputs
    return found
