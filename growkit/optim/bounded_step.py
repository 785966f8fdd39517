"""The arithmetic of AdaBound on lists of tensors, in as few passes over memory as torch's operations allow.

The moving means are those of Adam, for which torch has one kernel on a CPU. Small tensors go through one call for all
(`torch._foreach_*`). On a CPU large ones are walked in blocks that stay in the cache, each through all operations
before the next, with a buffer that every block uses again; or they go through one compiled kernel.
"""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growkit.optim.blocks import are_even, blocks, flat, scratch
from growkit.optim.compiled import LEAST, compiled_kernel
from growkit.optim.rates import Rates

__all__ = ["bounded_step"]

HALVES = (torch.float16, torch.bfloat16)
SMALL = 65_536  # entries of a tensor that one call for all serves best

Group = tuple[Tensor, ...]


def bounded_step(groups: Sequence[Group], rates: Rates, compiled: bool = False) -> None:
    """One step of several parameters, in place.

    Args:
        groups: per parameter itself, its gradient, the mean, the mean square, and for AMSBound the largest mean
            square; of any devices and types, halves with means in fp32.
        rates: the numbers.
        compiled: large parameters go through one kernel, some at a time.
    """
    alike: dict[tuple[torch.device, torch.dtype, bool], list[Group]] = {}
    members, last = [], None
    large: dict[tuple[torch.device, torch.dtype, bool], list[Group]] = {}
    for group in groups:
        first = group[0]
        if first.dtype in HALVES:
            _in_fp32(group, rates, compiled)
            continue
        size, even = first.numel(), are_even(group)
        if compiled and even and size >= LEAST and rates.step:
            large.setdefault((first.device, first.dtype, len(group) > 4), []).append(flat(group))
        elif even and size > SMALL and first.is_cpu:
            _walk(group, rates)
        elif size:
            kind = first.device, first.dtype, even and first.is_cpu
            if kind != last:  # most often all are of one
                members, last = alike.setdefault(kind, []), kind
            members.append(group)
    for kind, members in large.items():
        compiled_kernel(*kind)(members, rates)
    for (_, _, fused), members in alike.items():
        _together([*map(list, zip(*members, strict=True))], rates, fused)


def _in_fp32(group: Group, rates: Rates, compiled: bool) -> None:
    """The step of a half, in which eps and the square of a small gradient would be 0."""
    wide = tuple(one.float() for one in group)
    bounded_step([wide], rates, compiled)
    for kept, result in zip(group, wide, strict=True):
        if kept is not result and kept is not group[1]:
            kept.copy_(result)


def _walk(group: Group, rates: Rates) -> None:
    for block in blocks(group):
        parameter, mean, square = block[0], block[2], block[-1]
        _moments([[one] for one in block], rates)
        if rates.shrinkage:
            parameter.mul_(1.0 - rates.shrinkage)
        if rates.step == 0.0:
            parameter.add_(mean, alpha=-rates.scale * rates.lower)
            continue
        # the processor's own square root, where sqrt() calls a library that is slow on some processors
        roots = torch.pow(square, 0.5, out=scratch(len(square), square.dtype))
        roots.add_(rates.eps).clamp_(rates.least_root, rates.largest_root)
        parameter.addcdiv_(mean, roots, value=-rates.scale * rates.step)


def _together(lists: list[list[Tensor]], rates: Rates, fused: bool) -> None:
    parameters, means, squares = lists[0], lists[2], lists[-1]
    (_moments if fused else _moments_by_lists)(lists, rates)
    if rates.shrinkage:
        torch._foreach_mul_(parameters, 1.0 - rates.shrinkage)
    if rates.step == 0.0:
        torch._foreach_add_(parameters, means, alpha=-rates.scale * rates.lower)
        return
    roots = torch._foreach_sqrt(squares)
    torch._foreach_add_(roots, rates.eps)
    torch._foreach_clamp_min_(roots, rates.least_root)
    torch._foreach_clamp_max_(roots, rates.largest_root)
    torch._foreach_addcdiv_(parameters, means, roots, -rates.scale * rates.step)


FIRST = torch.ones((), device="cpu")  # Adam's kernel asks for a step number, which matters only to what it does with lr


def _moments(lists: list[list[Tensor]], rates: Rates) -> None:
    """The moving means, by the kernel of Adam with a learning rate of 0; its eps keeps 0/0 out of the weights."""
    parameters, gradients, means, squares, *largest = lists
    torch._fused_adam_(
        parameters,
        gradients,
        means,
        squares,
        largest[0] if largest else [],
        [FIRST] * len(parameters),
        lr=0.0,
        beta1=rates.beta1,
        beta2=rates.beta2,
        weight_decay=rates.decay,
        eps=1.0,
        amsgrad=bool(largest),
        maximize=rates.maximize,
    )


def _moments_by_lists(lists: list[list[Tensor]], rates: Rates) -> None:
    """The moving means of tensors in any layout, on any device."""
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
