"""The arithmetic of AdaBound on lists of tensors, in as few passes over memory as torch's operations allow.

Small tensors go through one call for all (`torch._foreach_*`). On a CPU large ones are walked in blocks that stay in
the cache, each through all operations before the next, with two buffers that every block uses again.
"""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Rates", "bounded_step"]

BLOCK = 131_072  # entries; smaller blocks stay in nearer caches, but each costs nine calls


@dataclass(frozen=True)
class Rates:
    """The numbers of one step.

    Attributes:
        step: of the adaptive phase, bias-corrected.
        lower, upper: the bounds of a step size.
        beta1, beta2: of the moving means.
        eps: added to the root of the mean square.
        scale: of the clipped step size.
        decay: times the weights, added to the gradient.
        shrinkage: the share of the weights that is taken off beside the step.
        maximize: whether the gradient is turned round.
    """

    step: float
    lower: float
    upper: float
    beta1: float
    beta2: float
    eps: float
    scale: float
    decay: float
    shrinkage: float
    maximize: bool

    @property
    def least_root(self) -> float:
        """The root of the mean square at and below which a step size is `upper`: that is what is clipped here."""
        return self.step / self.upper if self.upper else math.inf

    @property
    def largest_root(self) -> float:
        """The root at and above which a step size is `lower`."""
        return self.step / self.lower if self.lower else math.inf


def bounded_step(tensors: Sequence[tuple[Tensor, ...]], rates: Rates) -> None:
    """One step of several parameters, in place.

    Args:
        tensors: per parameter itself, its gradient, the mean, the mean square, and for AMSBound the largest mean
            square; of any devices and types.
        rates: the numbers.
    """
    alike: dict[tuple[torch.device, torch.dtype], list[tuple[Tensor, ...]]] = {}
    for group in tensors:
        if _is_walked(group):
            _walk(group, rates)
        elif group[0].numel():
            alike.setdefault((group[0].device, group[0].dtype), []).append(group)
    for groups in alike.values():
        _together([list(each) for each in zip(*groups, strict=True)], rates)


def _is_walked(group: tuple[Tensor, ...]) -> bool:
    first = group[0]
    return (
        first.device.type == "cpu"
        and first.numel() > BLOCK
        and all(one.dtype == first.dtype and one.stride() == first.stride() for one in group)
        and _is_dense(first)
    )


def _is_dense(tensor: Tensor) -> bool:
    """Whether the entries fill a stretch of memory, in whatever order."""
    span = 1 + sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return span == tensor.numel()


def _walk(group: tuple[Tensor, ...], rates: Rates) -> None:
    blocks = [one.as_strided((one.numel(),), (1,)).split(BLOCK) for one in group]
    buffers = torch.empty(2, BLOCK, dtype=group[0].dtype)
    for parameter, gradient, mean, square, *largest in zip(*blocks, strict=True):
        roots, pull = buffers[0, : len(parameter)], buffers[1, : len(parameter)]
        if rates.maximize or rates.decay:
            torch.mul(gradient, -1.0 if rates.maximize else 1.0, out=pull)
            gradient = pull.add_(parameter, alpha=rates.decay)
        mean.lerp_(gradient, 1.0 - rates.beta1)
        square.mul_(rates.beta2).addcmul_(gradient, gradient, value=1.0 - rates.beta2)
        if largest:
            square = torch.maximum(largest[0], square, out=largest[0])
        if rates.shrinkage:
            parameter.mul_(1.0 - rates.shrinkage)
        if rates.step == 0.0:
            parameter.add_(mean, alpha=-rates.scale * rates.lower)
            continue
        torch.sqrt(square, out=roots).add_(rates.eps).clamp_(rates.least_root, rates.largest_root)
        parameter.addcdiv_(mean, roots, value=-rates.scale * rates.step)


def _together(lists: list[list[Tensor]], rates: Rates) -> None:
    parameters, gradients, means, squares, *largest = lists
    if rates.maximize:
        gradients = list(torch._foreach_neg(gradients))
    if rates.decay:
        gradients = list(torch._foreach_add(gradients, parameters, alpha=rates.decay))
    torch._foreach_lerp_(means, gradients, 1.0 - rates.beta1)
    torch._foreach_mul_(squares, rates.beta2)
    torch._foreach_addcmul_(squares, gradients, gradients, 1.0 - rates.beta2)
    if largest:
        torch._foreach_maximum_(largest[0], squares)
        squares = largest[0]
    if rates.shrinkage:
        torch._foreach_mul_(parameters, 1.0 - rates.shrinkage)
    if rates.step == 0.0:
        torch._foreach_add_(parameters, means, alpha=-rates.scale * rates.lower)
        return
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, rates.eps)
    torch._foreach_clamp_min_(roots, rates.least_root)
    if rates.largest_root < math.inf:
        torch._foreach_clamp_max_(roots, rates.largest_root)
    torch._foreach_addcdiv_(parameters, means, roots, -rates.scale * rates.step)
