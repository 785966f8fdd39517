"""The step of a base optimizer with final gradients: clipped, through a gradient scaler, its momenta complete."""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from growkit.optim.ascent import HALVES, Pull, norm_of

__all__ = ["Scaler", "final_step"]

Scaler = torch.amp.GradScaler | None


def final_step(base: torch.optim.Optimizer, trained: Sequence[Tensor], clip: float | None, scaler: Scaler) -> None:
    """Step.

    Args:
        base: the optimizer.
        trained: its parameters with gradients.
        clip: largest norm of all gradients together; None for no limit.
        scaler: that scaled the loss; where it finds a gradient that is not finite, nothing is stepped.
    """
    if clip is not None:
        if scaler is not None:
            scaler.unscale_(base)
        _clip(trained, clip)
    _complete_momenta(base)
    if scaler is None:
        base.step()
    else:
        _step_scaled(base, trained, scaler)


def _clip(trained: Sequence[Tensor], clip: float) -> None:
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    if not any(gradient.dtype in HALVES for gradient in gradients):
        torch.nn.utils.clip_grad_norm_(trained, clip)
        return
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:  # in fp32 at least, for the norm of halves soon is no half any more
        alike.setdefault((gradient.device, gradient.dtype), []).append(gradient)
    factor = clip / (norm_of([Pull(each, each, each) for each in alike.values()]) + 1e-6)
    if factor < 1.0:
        torch._foreach_mul_(gradients, factor)


def _complete_momenta(base: torch.optim.Optimizer) -> None:
    """Torch's fused SGD fails where some parameters of a group have momentum and others none yet; 0 is as none."""
    groups, state = base.param_groups, base.state
    if not isinstance(base, torch.optim.SGD) or len(state) == sum(len(group["params"]) for group in groups):
        return
    for group in groups:
        begun = {one for one in group["params"] if state.get(one, {}).get("momentum_buffer") is not None}
        if group["fused"] and group["momentum"] and begun:
            for one in group["params"]:
                if one not in begun and one.grad is not None:
                    state[one]["momentum_buffer"] = torch.zeros_like(one, requires_grad=False)


def _step_scaled(base: torch.optim.Optimizer, trained: Sequence[Tensor], scaler: torch.amp.GradScaler) -> None:
    """A fused step that finds an overflow leaves momenta that it never wrote to, if they are new: they go again."""
    known = set(base.state)
    scaler.step(base)
    new = [parameter for parameter in trained if parameter not in known]
    if new and not all(_is_finite(parameter.grad) for parameter in trained):
        for parameter in new:
            base.state.pop(parameter, None)


def _is_finite(gradient: Tensor | None) -> bool:
    if gradient is None:
        return True
    return bool((gradient if gradient.layout == torch.strided else gradient.to_dense()).isfinite().all())
