"""The step of a base optimizer without what torch puts around it, which costs small models more than the arithmetic."""

# torch has no public names for its kernels, nor for the hooks of all optimizers
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from inspect import signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import _profiler_enabled as profiler_enabled
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from growkit.optim.apart import apart
from growkit.optim.blocks import are_even
from growkit.optim.fused import fitted

__all__ = ["step_base"]


def step_base(base: Optimizer) -> None:
    """Step as `base.step()` does, bit for bit.

    Torch's frame around it, for hooks and profilers, is left out where there are none, and its fused SGD is called as
    the one kernel that it is.
    """
    bare = _is_bare(base)
    if bare and SGD_IS_KNOWN and type(base) is SGD and _by_kernel(base):
        return
    with fitted(base):
        if bare:
            type(base).step.__wrapped__(base)  # type: ignore[attr-defined]
        else:
            base.step()


FRAME = Optimizer.profile_hook_step(lambda optimizer: None).__code__  # of what torch makes of a step


def _is_bare(base: Optimizer) -> bool:
    """Whether nobody would see that torch's frame is left out."""
    if getattr(type(base).step, "__code__", None) is not FRAME or "step" in base.__dict__:  # wrapped by others
        return False
    hooks = base._optimizer_step_pre_hooks or base._optimizer_step_post_hooks
    if hooks or _global_optimizer_pre_hooks or _global_optimizer_post_hooks:
        return False
    return not profiler_enabled()


KNOWN = {"params", "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize"} | {
    *("fused", "foreach", "differentiable")
}
SGD_IS_KNOWN = {*signature(SGD).parameters} == KNOWN  # a setting that a later torch may have is not left out


@apart  # else a compiled one would be made anew for every learning rate
def _by_kernel(base: SGD) -> bool:
    """The step of torch's fused SGD; False, and nothing done, where it is more than one kernel for each group."""
    calls = []
    for group in base.param_groups:
        if (lists := _alike(group, base.state)) is None:
            return False
        calls.append((group, lists))
    for group, lists in calls:
        torch._fused_sgd_(
            *lists,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            momentum=group["momentum"],
            dampening=group["dampening"],
            nesterov=group["nesterov"],
            maximize=group["maximize"],
            is_first_step=False,
        )
    return True


def _alike(group: dict[str, Any], state: Any) -> tuple[list[Tensor], list[Tensor], list[Tensor]] | None:
    """Parameters, gradients and momenta of a group, if there are any, as one kernel on a CPU takes them; else None."""
    if not group["fused"] or isinstance(group["lr"], Tensor) or isinstance(group["weight_decay"], Tensor):
        return None
    parameters: list[Tensor] = []
    gradients: list[Tensor] = []
    momenta: list[Tensor] = []
    kept, dtype, in_order = bool(group["momentum"]), None, iter(state.items())
    for parameter in group["params"]:
        if (gradient := parameter.grad) is None:
            continue
        if parameter.dtype is not dtype:
            if dtype is not None:
                return None
            dtype = parameter.dtype
        if kept:
            owner, memory = next(in_order, NOBODY)  # most often its own; to look it up takes a call of Python
            if owner is not parameter:
                memory = state.get(parameter, NOTHING)
            momentum = memory.get("momentum_buffer")
        else:
            momentum = gradient
        if momentum is None or not parameter.is_cpu or not momentum.numel() == parameter.numel() == gradient.numel():
            return None
        # a sparse gradient is not contiguous
        side_by_side = parameter.is_contiguous() and gradient.is_contiguous() and momentum.is_contiguous()
        if not (side_by_side or are_even((parameter, gradient, momentum))):
            return None
        parameters.append(parameter)
        gradients.append(gradient)
        momenta.append(momentum)
    return (parameters, gradients, momenta if kept else []) if dtype else None


NOTHING: dict[str, Any] = {}
NOBODY = (None, NOTHING)
