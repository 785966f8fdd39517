"""A twin of a model with its optimizer, which trains on its own, and its return into the original."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from growkit.graph import copy_of

__all__ = ["become", "twin_of"]


def twin_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Copies of both, the optimizer's being of the parameters of the copied model, and without hooks on its steps.

    Raises:
        ModelError: the model allows no copy.
    """
    twin = copy_of(model)
    memo: dict[int, Any] = {id(mine): its for mine, its in zip(_parts(model), _parts(twin), strict=True)}
    for hooks in (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks):
        memo[id(hooks)] = OrderedDict()
    return twin, copy.deepcopy(optimizer, memo)


@torch.no_grad()
def become(
    model: nn.Module, optimizer: torch.optim.Optimizer, twin: nn.Module, twins_optimizer: torch.optim.Optimizer
) -> None:
    """Give `model` and `optimizer`, in place, all that training has changed in their twins, which are spent then.

    That is parameters with their gradients, buffers, optimizer state, and the numbers and tensors in plain attributes.
    The model must have the structure that its twin was copied from.
    """
    for mine, its in zip(_tensors(model), _tensors(twin), strict=True):
        mine.data.copy_(its.data)
        mine.grad = its.grad
    for mine, its in zip(model.modules(), twin.modules(), strict=True):
        vars(mine).update({name: value for name, value in vars(its).items() if _is_plain(value)})
    optimizer.load_state_dict(twins_optimizer.state_dict())


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _parts(model: nn.Module) -> list[Any]:
    return [*model.modules(), *_tensors(model)]


def _is_plain(value: Any) -> bool:
    return isinstance(value, int | float | complex | str | None) or (
        isinstance(value, Tensor) and not isinstance(value, nn.Parameter)
    )
