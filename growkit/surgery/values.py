"""Changes of values that a site's remedies ask for: scaling, centring, silencing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growkit.graph import Centre, LiftGain, Scale, Silence, ValueEdit

__all__ = ["edited", "lookup"]

SMALLEST_GAIN = 0.1  # of the root mean square: dividing by less would make weights that no longer train like the others


def lookup(model: nn.Module, name: str, kind: str) -> Tensor:
    """The parameter or buffer called `name`."""
    return model.get_parameter(name) if kind == "parameter" else model.get_buffer(name)


def edited(model: nn.Module, tensor: Tensor, edit: ValueEdit) -> Tensor:
    """The values of `tensor` after an edit, as a new tensor."""
    values = tensor.data.clone()
    if isinstance(edit, Silence):
        return values.index_fill_(edit.dim, torch.from_numpy(edit.rows).to(values.device), 0.0)
    if isinstance(edit, Scale):
        return values.mul_(edit.factor) if edit.rows is None else _scale_rows(values, edit)
    if isinstance(edit, LiftGain):
        return _lifted(values)
    return _centred(model, values, edit)


def _scale_rows(values: Tensor, edit: Scale) -> Tensor:
    rows = torch.from_numpy(edit.rows).to(values.device)
    return values.index_copy_(edit.dim, rows, values.index_select(edit.dim, rows) * edit.factor)


def _centred(model: nn.Module, values: Tensor, edit: Centre) -> Tensor:
    """In float64, for the mean of many weights: what is left must be far below what the check would see."""
    exact = values.double()
    if edit.gain is None:
        return (exact - exact.mean(edit.dim, keepdim=True)).to(values.dtype)
    view = [1] * values.dim()
    view[edit.dim] = -1
    gain = model.get_parameter(edit.gain).data
    written = exact * gain.double().reshape(view)
    return ((written - written.mean(edit.dim, keepdim=True)) / _lifted(gain).double().reshape(view)).to(values.dtype)


def _lifted(gain: Tensor) -> Tensor:
    """The gain with entries close to zero raised to its root mean square, signs kept; a gain of zeros to 1."""
    level = gain.square().mean().sqrt()
    level = torch.where(level > 0, level, torch.ones_like(level))
    raised = torch.where(gain < 0, -level, level)
    return torch.where(gain.abs() < SMALLEST_GAIN * level, raised, gain)
