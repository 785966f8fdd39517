"""A widened copy of the model on which new units are tried, and Adam on their slices."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from growkit.device import exact_arithmetic
from growkit.errors import TrainingError
from growkit.graph import GrowthSite, TensorEdit, copy_of
from growkit.growth.initializers.norms import scaled
from growkit.growth.initializers.units import UnitPlaces
from growkit.growth.statistics import Measurement
from growkit.rng import isolated
from growkit.surgery import Extension, Growth, grow, lookup

__all__ = ["SlicePlace", "WidenedCopy", "adam", "alive", "check_gradients", "loss_of", "widened"]

SlicePlace = tuple[str, int]
"""A tensor by name, and the dimension along which new slices stand in it."""

Slices = Mapping[SlicePlace, Tensor]

DRAWS = 16  # a unit that is silent on a large batch at every one of them is no accident


def loss_of(model: nn.Module, measurement: Measurement, site: GrowthSite) -> Tensor:
    """The loss of a copy of the model on the growth batch, in train mode, with the same random numbers at every call.

    Raises:
        TrainingError: it is not finite.
    """
    measurement.forwards += 1
    model.train()
    with isolated(0):
        outputs = model(*measurement.inputs.args, **(measurement.inputs.kwargs or {}))
        loss = measurement.loss(outputs, measurement.targets)
    if not bool(loss.isfinite()):
        raise TrainingError(
            f"the loss must be finite to grow at {site.name}, got {loss.item()} on the growth batch; "
            "lower the learning rate"
        )
    return loss


def check_gradients(gradients: Iterable[Tensor], site: GrowthSite) -> None:
    """Raise TrainingError where the loss is finite but its gradients are not."""
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        raise TrainingError(
            f"the gradient at {site.name} must be finite to grow there, got inf or NaN on the growth batch; "
            "lower the learning rate"
        )


@dataclass
class WidenedCopy:
    """A copy of the model with new units at one site; what is done to it does not touch the model.

    Attributes:
        model: the copy.
    """

    model: nn.Module
    _entries: Mapping[SlicePlace, tuple[Tensor, ...]]
    _kinds: Mapping[SlicePlace, str]
    _site: GrowthSite
    _measurement: Measurement

    def loss(self) -> Tensor:
        """See `loss_of`."""
        return loss_of(self.model, self._measurement, self._site)

    def loss_or_inf(self) -> float:
        """The same as a number, infinite where it is not finite."""
        try:
            return self.loss().item()
        except TrainingError:
            return float("inf")

    @torch.no_grad()
    def write(self, values: Slices) -> None:
        """Give new slices other values."""
        for place, slices in values.items():
            self.model.get_parameter(place[0]).data[self._entries[place]] = slices.detach()

    def gradients(self, of: Tensor, places: Sequence[SlicePlace], *, twice: bool = False) -> dict[SlicePlace, Tensor]:
        """The gradients of new slices: of a loss, or of what was made of such gradients.

        Args:
            of: a scalar; 0 comes out where it does not depend on a slice.
            places: which slices.
            twice: for gradients that something is made of.
        """
        self._measurement.forwards += 2
        parameters = [self.model.get_parameter(name) for name, _ in places]
        found = torch.autograd.grad(of, parameters, create_graph=twice, materialize_grads=True)
        return {place: gradient[self._entries[place]] for place, gradient in zip(places, found, strict=True)}

    def running_statistics(self) -> dict[SlicePlace, Tensor]:
        """What batch norms shall remember of the new units: the statistics of the growth batch, in `Extended`'s form.

        The neutral ones, 0 and 1, would give units that are read at once another scale in eval mode than in training.
        """
        norms = [module for module in self.model.modules() if isinstance(module, _NormBase)]
        if not norms:
            return {}
        for norm in norms:
            norm.momentum = 1.0
        self.loss()
        tensors = {place: lookup(self.model, place[0], kind) for place, kind in self._kinds.items() if kind == "buffer"}
        return {place: tensor[self._entries[place]] for place, tensor in tensors.items()}


@contextmanager
def widened(measurement: Measurement, site: GrowthSite, num_new: int, values: Slices) -> Iterator[WidenedCopy]:
    """A copy of the model, widened at `site` and filled from `values`, in exact arithmetic and with gradients.

    The site, which the copy shares with the model, has its new width inside the context.
    """
    kinds, entries = {}, {}
    for edit in site.tensor_edits(num_new):
        for dim, index in enumerate(edit.index_maps):
            if index is not None:
                kinds[edit.names[0], dim] = edit.kind
                shape = lookup(measurement.model, edit.names[0], edit.kind).shape
                entries[edit.names[0], dim] = _new_entries(edit, dim, shape, measurement.targets.device)
    model = copy_of(measurement.model)
    model.zero_grad()
    edit = grow(model, [Growth(site, num_new, Extension(values))])
    try:
        with exact_arithmetic(), torch.enable_grad():
            yield WidenedCopy(model, entries, kinds, site, measurement)
    finally:
        edit.undo()


def _new_entries(edit: TensorEdit, dim: int, shape: Sequence[int], device: torch.device) -> tuple[Tensor, ...]:
    """The index of the new slices along `dim`; where they cross new positions of another dimension there are none."""
    positions = [
        np.arange(extent) if index is None else np.flatnonzero(index < 0 if number == dim else index >= 0)
        for number, (index, extent) in enumerate(zip(edit.index_maps, shape, strict=True))
    ]
    return tuple(torch.from_numpy(one).to(device) for one in np.ix_(*positions))


def alive(
    copy: WidenedCopy, places: UnitPlaces, draw: Callable[[], dict[SlicePlace, Tensor]], role: str
) -> dict[SlicePlace, Tensor]:
    """Random slices for new units of which each has a gradient on the side `role`; those that have none are redrawn.

    Under torch's ReLU a random fan-in may be silent on the whole batch, and no gradient leads out of that. After
    DRAWS rounds the silent ones stay.
    """
    asked = [place for place in places.of(role) if place.is_parameter]
    slices = draw()
    copy.write(slices)
    for _ in range(DRAWS):
        gradients = copy.gradients(copy.loss(), [place.key for place in asked])
        squares = torch.zeros(places.num_new, dtype=torch.float64)
        for place in asked:
            rows = gradients[place.key].double().cpu().movedim(place.dim, 0)
            squares.index_add_(0, place.numbers, rows.reshape(len(rows), -1).square().sum(1))
        silent = squares == 0.0
        if not bool(silent.any()):
            break
        others = draw()
        for place in places:
            if place.key in slices:
                view = [1] * slices[place.key].dim()
                view[place.dim] = -1
                mask = silent[place.numbers].view(view).to(slices[place.key].device)
                slices[place.key] = torch.where(mask, others[place.key], slices[place.key])
        copy.write(slices)
    return slices


def adam(
    copy: WidenedCopy,
    start: Slices,
    norms: Mapping[SlicePlace, float],
    gradients: Callable[[], Slices],
    *,
    steps: int,
    lr: float,
    maximize: bool = False,
) -> dict[SlicePlace, Tensor]:
    """Move new slices by Adam (Kingma and Ba, 2015), each put back to its norm after every step (Evci et al. 2022).

    Args:
        copy: what they stand in; it holds the last ones afterwards.
        start: where they begin.
        norms: the norm of every slice of a place.
        gradients: of what is to fall at the slices that the copy holds.
        steps: how many.
        lr: how far a step moves a weight, relative to the root mean square of its slice.
        maximize: what is to rise.
    """
    moved = {place: nn.Parameter(slices.detach().clone()) for place, slices in start.items()}
    groups = [
        {"params": [slices], "lr": lr * norms[place] / math.sqrt(slices.numel() / slices.shape[place[1]])}
        for place, slices in moved.items()
    ]
    optimizer = torch.optim.Adam(groups, maximize=maximize)
    for _ in range(steps):
        for place, gradient in gradients().items():
            moved[place].grad = gradient.detach()
        optimizer.step()
        for place, slices in moved.items():
            slices.data = scaled(slices.data, place[1], norms[place])
        copy.write(moved)
    return {place: slices.detach() for place, slices in moved.items()}
