"""The step of a base optimizer with final gradients: clipped, through a gradient scaler."""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.amp.grad_scaler import OptState

from growkit.errors import UserInputError
from growkit.optim.ascent import LEAST, Pull, as_reals, in_units, largest_entry, norm_of
from growkit.optim.base_step import step_base
from growkit.optim.fused import fitted

__all__ = ["Scaler", "final_step", "forget_unscaling", "is_unscaled", "tell_overflow", "usable"]

Scaler = torch.amp.GradScaler | None


def usable(optimizer: Any, scaler: Scaler) -> Scaler:
    """The scaler that SAM was given, or None for one that is switched off.

    Raises:
        UserInputError: it was used in a way that cannot work.
    """
    if "grad_scale" in optimizer.__dict__:
        del optimizer.grad_scale, optimizer.found_inf  # which its step would have taken away
        raise UserInputError("SAM steps through a scaler itself: call step(closure, scaler=scaler)")
    if scaler is None:
        return None
    if not isinstance(scaler, torch.amp.GradScaler):
        raise UserInputError(f"SAM's scaler must be a torch.amp.GradScaler or None, got {scaler!r}")
    if not scaler.is_enabled():
        return None
    state = scaler._per_optimizer_states.pop(id(optimizer), None)
    if state is not None and state["stage"] is OptState.UNSCALED:
        raise UserInputError("SAM's gradients are those of its base: call scaler.unscale_(optimizer.base)")
    return scaler


def is_unscaled(base: torch.optim.Optimizer, scaler: Scaler) -> bool:
    """Whether the present gradients went through `scaler.unscale_(base)`."""
    if scaler is None:
        return False
    state = scaler._per_optimizer_states.get(id(base))
    return state is not None and state["stage"] is OptState.UNSCALED


def forget_unscaling(base: torch.optim.Optimizer, scaler: Scaler) -> bool:
    """Make a scaler take the gradients of the next pass for scaled ones; whether those of the last were unscaled."""
    if scaler is None or not is_unscaled(base, scaler):
        return False
    # not what it found: update() may be called between the passes, and asks for it
    scaler._per_optimizer_states[id(base)]["stage"] = OptState.READY
    return True


def final_step(base: torch.optim.Optimizer, clip: float | None, scaler: Scaler) -> None:
    """Step.

    Args:
        base: the optimizer.
        clip: largest norm of all gradients together; None for no limit.
        scaler: that scaled the loss; where it finds a gradient that is not finite, nothing is stepped.
    """
    if clip is not None:
        if scaler is not None and not is_unscaled(base, scaler):
            scaler.unscale_(base)
        _clip([gradient for _, gradient in _trained(base)], clip)
    if scaler is None:
        step_base(base)
    else:
        with fitted(base):
            _step_scaled(base, scaler)


def tell_overflow(base: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """Let a scaler know of a first gradient that was not finite, in the place of a step: it sees only the present ones.

    Args:
        base: the optimizer, with gradients; they may be unscaled already.
        scaler: that scaled the loss.
    """
    state = scaler._per_optimizer_states[id(base)]
    if state["stage"] is OptState.READY:
        scaler._check_inf_per_device(base)
    for found in state["found_inf_per_device"].values():
        found.fill_(1.0)
    state["stage"] = OptState.STEPPED


def _trained(base: torch.optim.Optimizer) -> list[tuple[Tensor, Tensor]]:
    """The parameters that have a gradient, with it."""
    return [(one, one.grad) for group in base.param_groups for one in group["params"] if one.grad is not None]


def _clip(gradients: list[Tensor], clip: float) -> None:
    dense = [one if one.layout == torch.strided else one.to_dense() for one in gradients]
    norm = _norm(dense)
    if not LEAST < norm < math.inf and math.isfinite(unit := largest_entry(dense)):
        norm = unit * _norm(in_units(one, unit) for one in dense) if unit else 0.0
    if not (factor := clip / (norm + 1e-6)) >= 1.0:
        torch._foreach_mul_(gradients, factor)


def _norm(gradients: Iterable[Tensor]) -> float:
    """In fp32 at least, for the norm of halves soon is no half any more."""
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for gradient in gradients:
        alike.setdefault((gradient.device, gradient.dtype), []).append(as_reals(gradient))
    return norm_of([Pull(each, each, each) for each in alike.values()])


def _step_scaled(base: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """A fused step that finds an overflow leaves momenta that it never wrote to, if they are new: they go again."""
    known = {parameter for parameter, memory in base.state.items() if not isinstance(memory, dict) or memory}
    scaler.step(base)
    trained = _trained(base)
    new = [parameter for parameter, _ in trained if parameter not in known]
    if new and not all(_is_finite(gradient) for _, gradient in trained):
        for parameter in new:
            base.state.pop(parameter, None)


def _is_finite(gradient: Tensor) -> bool:
    return bool((gradient if gradient.layout == torch.strided else gradient.to_dense()).isfinite().all())
