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
    AnyBase,
    AnyOptimizer,
    ASAMSettings,
    LinearRadius,
    RateRadius,
    SAMSettings,
    SGDSettings,
)
from growkit.errors import ModelError, UserInputError
from growkit.optim.adabound import AdaBound, AMSBound
from growkit.optim.kin import ASAM
from growkit.optim.radius import Cosine, Linear
from growkit.optim.sam import SAM

__all__ = ["build_optimizer"]

# torch's own are fused: on a CPU that takes a third to a half of the time per step
KINDS: dict[type, tuple[Callable[..., torch.optim.Optimizer], bool]] = {
    SGDSettings: (torch.optim.SGD, True),
    AdamSettings: (torch.optim.Adam, True),
    AdamWSettings: (torch.optim.AdamW, True),
    AdaBoundSettings: (AdaBound, False),
    AMSBoundSettings: (AMSBound, False),
}


def build_optimizer(
    settings: AnyOptimizer, parameters: Iterable[nn.Parameter], *, model: nn.Module | None = None, total_steps: int = 1
) -> torch.optim.Optimizer:
    """The optimizer that `train.optimizer` names.

    Args:
        settings: which optimizer, with its hyper-parameters.
        parameters: of the model; those that are frozen (requires_grad False) are left out.
        model: what SAM protects between its passes.
        total_steps: of the whole run, for schedules of SAM's radius.

    Raises:
        ModelError: every parameter is frozen, or there is none.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not trained:
        raise ModelError("a model must have parameters to train, got none with requires_grad=True; unfreeze some")
    try:
        return _built(settings, trained, model, total_steps)
    except UserInputError as error:
        raise UserInputError(f"train.optimizer: {error}") from error


def _built(
    settings: AnyOptimizer, trained: list[nn.Parameter], model: nn.Module | None, total_steps: int
) -> torch.optim.Optimizer:
    if not isinstance(settings, SAMSettings):
        return _plain(settings, trained)
    kind = ASAM if isinstance(settings, ASAMSettings) else SAM
    arguments = settings.model_dump(exclude={"name", "base", "schedule", "norm"})
    schedule = _radius(settings, total_steps)
    base = _plain(settings.base, trained)
    return kind(trained, base, norm=float(settings.norm), schedule=schedule, model=model, **arguments)


def _radius(settings: SAMSettings, total_steps: int) -> Any:
    schedule = settings.schedule
    if isinstance(schedule, LinearRadius):
        return (Cosine if schedule.name == "cosine" else Linear)(total_steps, schedule.final)
    return "lr" if isinstance(schedule, RateRadius) else None


def _plain(settings: AnyBase, trained: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind, of_torch = KINDS[type(settings)]
    arguments: dict[str, Any] = settings.model_dump(exclude={"name", "beta1", "beta2"})
    if hasattr(settings, "beta1"):
        arguments["betas"] = settings.beta1, settings.beta2  # type: ignore[union-attr]
    if of_torch:
        arguments["fused"] = all(parameter.is_floating_point() for parameter in trained)
    return kind(trained, **arguments)
