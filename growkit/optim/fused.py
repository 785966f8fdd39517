"""What torch's fused kernels take for granted, and read and write past a tensor where it does not hold."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, Optimizer

from growkit.errors import UserInputError
from growkit.optim.blocks import is_dense
from growkit.optim.checks import MOMENTS

__all__ = ["fitted"]


FUSED = (SGD, Adam, Adagrad)
AS_IT_IS = nullcontext()


def fitted(base: Optimizer) -> AbstractContextManager[None]:
    """Lay out what a fused base reads side by side in memory, and split groups inside the block where it must.

    Raises:
        UserInputError: state or a gradient has another shape than its parameter, or is sparse, or a parameter does
            not fill its memory.
    """
    groups = base.param_groups
    if not isinstance(base, FUSED) or not any([group.get("fused") for group in groups]):
        return AS_IT_IS
    for group in groups:
        if group.get("fused"):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    _lay_out(type(base).__name__, parameter, base.state.get(parameter, {}))
    parts = [part for group in groups for part in _parts(group, base.state)] if isinstance(base, SGD) else groups
    return AS_IT_IS if len(parts) == len(groups) else _with_groups(base, parts)


@contextmanager
def _with_groups(base: Optimizer, parts: list[dict[str, Any]]) -> Iterator[None]:
    groups, base.param_groups = base.param_groups, parts
    try:
        yield
    finally:
        base.param_groups = groups


def _lay_out(owner: str, parameter: Tensor, state: dict[str, Any]) -> None:
    """The kernels walk a parameter, its gradient and its state entry beside entry, as they lie in memory."""
    plain, shape, gradient = parameter.is_contiguous(), parameter.shape, parameter.grad
    if not (plain or is_dense(parameter)):
        raise UserInputError(
            f"{owner} with fused=True needs parameters that fill a stretch of memory, got a view of shape "
            f"{tuple(shape)} with strides {parameter.stride()}; use fused=False"
        )
    for name, value in state.items():
        if name not in MOMENTS or value is None:
            continue
        if value.shape != shape:
            raise UserInputError(
                f"{owner} needs state of the shape of its parameter, got {tuple(shape)} with {name} of "
                f"{tuple(value.shape)}; resize parameters by growkit.widen(..., optimizer=...), which resizes both"
            )
        if not (plain and value.is_contiguous()):
            state[name] = _beside(value, parameter)
    if gradient is None:
        return
    if gradient.layout != torch.strided:
        raise UserInputError(f"{owner} with fused=True needs dense gradients, got a sparse one; use fused=False")
    if gradient.shape != shape:
        raise UserInputError(
            f"{owner} needs gradients of the shape of their parameter, got {tuple(gradient.shape)} for one of "
            f"{tuple(shape)}; call zero_grad() after a parameter was resized"
        )
    if not (plain and gradient.is_contiguous()):
        parameter.grad = _beside(gradient, parameter)


def _beside(value: Tensor, parameter: Tensor) -> Tensor:
    """The same entries in the layout of the parameter."""
    if value.stride() == parameter.stride():
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
