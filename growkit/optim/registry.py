"""From settings to an optimizer; every one takes `step(closure)`, so that the train stage knows no special case."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from growkit.config.train import (
    AdaBoundSettings,
    AdamSettings,
    AdamWSettings,
    AMSBoundSettings,
    AnyOptimizer,
    SGDSettings,
)
from growkit.errors import ModelError
from growkit.optim.adabound import AdaBound, AMSBound

__all__ = ["build_optimizer"]

# torch's own are fused: on a CPU that takes a third to a half of the time per step
KINDS: dict[type, tuple[Callable[..., torch.optim.Optimizer], bool]] = {
    SGDSettings: (torch.optim.SGD, True),
    AdamSettings: (torch.optim.Adam, True),
    AdamWSettings: (torch.optim.AdamW, True),
    AdaBoundSettings: (AdaBound, False),
    AMSBoundSettings: (AMSBound, False),
}


def build_optimizer(settings: AnyOptimizer, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names.

    Args:
        settings: which optimizer, with its hyper-parameters.
        parameters: of the model; those that are frozen (requires_grad False) are left out.

    Raises:
        ModelError: every parameter is frozen, or there is none.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ModelError("a model must have parameters to train, got none with requires_grad=True; unfreeze some")
    kind, of_torch = KINDS[type(settings)]
    arguments: dict[str, Any] = settings.model_dump(exclude={"name", "beta1", "beta2"})
    if hasattr(settings, "beta1"):
        arguments["betas"] = settings.beta1, settings.beta2  # type: ignore[union-attr]
    if of_torch:
        arguments["fused"] = all(parameter.is_floating_point() for parameter in trained)
    return kind(trained, **arguments)
