"""Losses by name: each is a function of (outputs, targets) that gives the mean over samples, or over tokens."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from growkit.config.train import (
    AutoLossSettings,
    CrossEntropySettings,
    FocalSettings,
    HuberSettings,
    LossSettings,
    MarginSettings,
    MeanAbsoluteSettings,
    MeanSquaredSettings,
)
from growkit.data.records import CLASSIFICATION, IGNORED, LANGUAGE, PAIRS, REGRESSION
from growkit.errors import UserInputError

__all__ = ["build_loss", "cross_entropy", "focal", "is_cross_entropy"]

SERVES = {
    "cross_entropy": (CLASSIFICATION, LANGUAGE, PAIRS),
    "focal": (CLASSIFICATION, LANGUAGE, PAIRS),
    "margin": (CLASSIFICATION,),
    "mse": (REGRESSION,),
    "mae": (REGRESSION,),
    "huber": (REGRESSION,),
}


def build_loss(settings: LossSettings, task: str, label_smoothing: float = 0.0) -> Callable[[Any, Tensor], Tensor]:
    """The loss that `settings` name, as a function of (outputs, targets), taken in fp32.

    Shapes: outputs [B, K], for language and pairs [B, T, K]; targets without the last dimension, for regression with
    it. Targets of -100 pad and do not count. Floats [B, K] are shares of classes, as mixup makes them.

    Args:
        settings: which one; `auto` is cross-entropy in nats, for regression the mean squared error.
        task: of the data.
        label_smoothing: of cross-entropy, in 0..1.

    Raises:
        UserInputError: the loss is not for this task.
    """
    if task not in SERVES.get(settings.name, (task,)):
        fitting = ", ".join(name for name, tasks in SERVES.items() if task in tasks)
        raise UserInputError(f"train.loss must be for {task} data, one of {fitting}, got {settings.name}")
    match settings:
        case FocalSettings(gamma=gamma):
            return partial(focal, gamma=gamma)
        case MarginSettings(margin=margin):
            return lambda outputs, targets: F.multi_margin_loss(outputs.float(), targets, margin=margin)
        case MeanAbsoluteSettings():
            return lambda outputs, targets: F.l1_loss(outputs.float(), targets)
        case HuberSettings(delta=delta):
            return lambda outputs, targets: F.huber_loss(outputs.float(), targets, delta=delta)
        case CrossEntropySettings() | MeanSquaredSettings() | AutoLossSettings():
            return _squared if task == REGRESSION else partial(cross_entropy, label_smoothing=label_smoothing)
    raise TypeError(f"no loss is made from {type(settings).__name__}")


def is_cross_entropy(settings: LossSettings, label_smoothing: float = 0.0) -> bool:
    """Whether the loss of classes and tokens is their plain cross-entropy."""
    return settings.name in ("auto", "cross_entropy") and label_smoothing == 0.0


def _squared(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(outputs.float(), targets)


def cross_entropy(outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy in nats of logits [..., K] against classes [...], or shares of them [B, K]."""
    known = targets if targets.is_floating_point() else targets.flatten()
    return F.cross_entropy(outputs.float().flatten(0, -2), known, label_smoothing=label_smoothing)


def focal(outputs: Tensor, targets: Tensor, gamma: float) -> Tensor:
    """Mean of -(1 - p)^gamma log p, p the probability of the target (Lin et al., 2017, eq. 4, without alpha).

    Of shares of classes [B, K] the mean over classes, by their shares.
    """
    if targets.is_floating_point():
        surprise = -outputs.float().log_softmax(-1)
        return (targets * _missing(surprise) ** gamma * surprise).sum() / len(targets)
    surprise = F.cross_entropy(outputs.float().flatten(0, -2), targets.flatten(), reduction="none")  # 0 where ignored
    return (_missing(surprise) ** gamma * surprise).sum() / (targets != IGNORED).sum()


def _missing(surprise: Tensor) -> Tensor:
    """1 - p, kept a hair above 0, where a power below 1 has no slope."""
    return (-torch.expm1(-surprise)).clamp_min(1e-12)
