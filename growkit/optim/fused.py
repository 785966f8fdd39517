"""What torch's fused kernels take for granted, and read and write past a tensor where it does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer

from growkit.errors import UserInputError
from growkit.optim.blocks import is_dense
from growkit.optim.checks import MOMENTS

__all__ = ["fitted"]


@contextmanager
def fitted(base: Optimizer) -> Iterator[None]:
    """Let a fused base step inside the block: tensors side by side in memory, and momenta of all or of none.

    Raises:
        UserInputError: state has another shape than its parameter, or a parameter does not fill its memory.
    """
    groups = base.param_groups
    if not isinstance(base, SGD | Adam | Adagrad) or not any(group.get("fused") for group in groups):
        yield
        return
    for group in groups:
        if group.get("fused"):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _lay_out(type(base).__name__, parameter, base.state.get(parameter, {}))
    parts = [part for group in groups for part in _parts(group, base.state)] if isinstance(base, SGD) else groups
    if len(parts) == len(groups):
        yield
        return
    base.param_groups = parts
    try:
        yield
    finally:
        base.param_groups = groups


def _lay_out(owner: str, parameter: Tensor, state: dict[str, Any]) -> None:
    """The kernels walk a parameter, its gradient and its state entry beside entry, as they lie in memory."""
    if not (parameter.is_contiguous() or is_dense(parameter)):
        raise UserInputError(
            f"{owner} with fused=True needs parameters that fill a stretch of memory, got a view of shape "
            f"{tuple(parameter.shape)} with strides {parameter.stride()}; use fused=False"
        )
    shape, gradient = parameter.shape, parameter.grad
    for name, value in state.items():
        if name in MOMENTS and isinstance(value, Tensor):
            if value.shape != shape:
                raise UserInputError(
                    f"{owner} needs state of the shape of its parameter, got {tuple(shape)} with {name} of "
                    f"{tuple(value.shape)}; resize parameters by growkit.widen(..., optimizer=...), which resizes both"
                )
            state[name] = _beside(value, parameter)
    if gradient is not None and gradient.layout == torch.strided:
        if gradient.shape != shape:
            raise UserInputError(
                f"{owner} needs gradients of the shape of their parameter, got {tuple(gradient.shape)} for one of "
                f"{tuple(shape)}; call zero_grad() after a parameter was resized"
            )
        beside = _beside(gradient, parameter)
        if beside is not gradient:
            parameter.grad = beside


def _beside(value: Tensor, parameter: Tensor) -> Tensor:
    """The same entries in the layout of the parameter."""
    if (value.is_contiguous() and parameter.is_contiguous()) or value.stride() == parameter.stride():
        return value
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value.detach())


def _parts(group: dict[str, Any], state: Any) -> list[dict[str, Any]]:
    """A group, or where only some of its parameters have momentum the two for which torch has a kernel.

    0 is no beginning for the others: the first gradient is taken whole, later ones are dampened.
    """
    if not group["fused"] or not group["momentum"]:
        return [group]
    begun: list[Any] = []
    others: list[Any] = []
    for one in group["params"]:
        if one.grad is not None:
            (others if state.get(one, {}).get("momentum_buffer") is None else begun).append(one)
    return [{**group, "params": begun}, {**group, "params": others}] if begun and others else [group]
