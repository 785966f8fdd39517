"""Changes of values that a site's remedies ask for: scaling, centring, silencing, copying, sharing."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from growkit.graph import Average, Centre, Copy, LiftGain, Scale, Share, Silence, ValueEdit

__all__ = ["Directory", "edited", "gradient_after", "lookup"]

SMALLEST_GAIN = 0.1  # of the root mean square: dividing by less would make weights that no longer train like the others


def lookup(model: nn.Module, name: str, kind: str) -> Tensor:
    """The parameter or buffer called `name`."""
    return model.get_parameter(name) if kind == "parameter" else model.get_buffer(name)


class Directory:
    """The modules of a model by all their names, and the tensors they own; valid until modules are added or removed.

    What `lookup` finds step by step is found at once, which counts where thousands of tensors change.
    """

    def __init__(self, model: nn.Module):
        self.modules = dict(model.named_modules(remove_duplicate=False))

    def find(self, name: str, kind: str) -> Tensor | None:
        """The parameter or buffer called `name`, None if there is none."""
        owner, _, last = name.rpartition(".")
        module = self.modules.get(owner)
        if module is None:
            return None
        return (module._parameters if kind == "parameter" else module._buffers).get(last)

    def __getitem__(self, key: tuple[str, str]) -> Tensor:
        """The tensor of that name and kind.

        Raises:
            KeyError: there is none.
        """
        tensor = self.find(*key)
        if tensor is None:
            raise KeyError(key)
        return tensor


def edited(model: nn.Module, tensor: Tensor, edit: ValueEdit) -> Tensor:
    """The values of `tensor` after an edit, as a new tensor."""
    values = tensor.data.clone()
    if isinstance(edit, Silence):
        return values.index_fill_(edit.dim, torch.from_numpy(edit.rows).to(values.device), 0.0)
    if isinstance(edit, Copy | Share):
        origin = tensor.data.index_select(edit.dim, torch.from_numpy(edit.origins).to(values.device))
        return values.copy_(origin) if isinstance(edit, Copy) else values.add_(origin * _along(edit, values))
    if isinstance(edit, Scale):
        return values.mul_(edit.factor) if edit.rows is None else _scale_rows(values, edit)
    if isinstance(edit, LiftGain):
        return _lifted(values)
    if isinstance(edit, Average):
        return _averaged(model, values, edit)
    return _centred(model, values, edit)


def gradient_after(gradient: Tensor, edit: ValueEdit) -> Tensor:
    """The gradient by the values after an edit: what was scaled up moves the loss as much less."""
    if not isinstance(edit, Scale):
        return gradient
    values = gradient.to_dense().clone()
    inverse = replace(edit, factor=1.0 / edit.factor)
    return values.mul_(inverse.factor) if edit.rows is None else _scale_rows(values, inverse)


def _along(edit: Share, values: Tensor) -> Tensor:
    view = [1] * values.dim()
    view[edit.dim] = -1
    return torch.from_numpy(edit.shares).to(values).view(view)


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


def _averaged(model: nn.Module, values: Tensor, edit: Average) -> Tensor:
    """In float64, as `_centred`."""
    new = torch.from_numpy(edit.rows).to(values.device)
    old = torch.ones(values.shape[edit.dim], dtype=torch.bool, device=values.device).index_fill_(0, new, False)
    written = values.double()
    if edit.gain is None:
        mean = written.movedim(edit.dim, 0)[old].mean(0, keepdim=True)
        return values.index_copy_(edit.dim, new, mean.expand(len(new), *mean.shape[1:]).movedim(0, edit.dim).to(values))
    gain = model.get_parameter(edit.gain).data.double().reshape(-1, *[1] * (values.dim() - 1))
    units = written.movedim(edit.dim, 0)
    mean = (units[old] * gain[old]).mean(0, keepdim=True) / gain[new]
    return values.index_copy_(edit.dim, new, mean.movedim(0, edit.dim).to(values))


def _lifted(gain: Tensor) -> Tensor:
    """The gain with entries close to zero raised to its root mean square, signs kept; a gain of zeros to 1."""
    level = gain.square().mean().sqrt()
    level = torch.where(level > 0, level, torch.ones_like(level))
    raised = torch.where(gain < 0, -level, level)
    return torch.where(gain.abs() < SMALLEST_GAIN * level, raised, gain)
