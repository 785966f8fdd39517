"""What one more block at a place promises, in the unit in which the promises of sites are given."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from growkit.device import exact_arithmetic
from growkit.errors import TrainingError
from growkit.graph import copy_of
from growkit.growth.base import Prospect
from growkit.growth.depths import BlockOrder, key_of
from growkit.growth.statistics import Loss
from growkit.rng import isolated
from growkit.surgery import Inputs, insert, untouched

__all__ = ["measure_blocks", "spectrum_of_one"]


def measure_blocks(
    model: nn.Module, loss: Loss, batches: Sequence[tuple[Inputs, Tensor]], orders: Sequence[BlockOrder]
) -> dict[str, Prospect]:
    """The prospects of one more block at each place.

    The block that would come is inserted into a copy, silent as it begins, and the squared norm of the gradient of its
    parameters is read: what it adds to the squared gradient norm of the model, as n^2 s^2 is what a unit of a site
    adds. Both are divided by what they cost, so a block and a unit are compared per FLOP or per parameter. As with
    sites, this assumes plain gradient descent with one rate for old and new weights, and a fall of the loss of first
    order: only the ends of the branches have a gradient at first, and what the block learns once they have moved does
    not count. It is SensLI's criterion for insertions (Kreis et al., 2023), which compares gradients likewise.

    Args:
        model: it is left as it was.
        loss: of (outputs, targets).
        batches: at least two.
        orders: one for each place.

    Raises:
        TrainingError: a gradient is not finite.
    """
    return {key_of(order.name): _prospect(order, _gradients(model, loss, batches, order)) for order in orders}


def spectrum_of_one(gradients: Tensor) -> tuple[float, float, float]:
    """Squared norm of the mean gradient, what of it is chance, and its standard error over the batches.

    Chance is the mean of |sum of s_i g_i|^2 / B^2 over all signs s of which half are negative, as for the spectra of
    sites; the standard error is the jackknife's.

    Args:
        gradients: of each batch: [B, parameters], B at least 2.
    """
    count, gram = len(gradients), gradients.double() @ gradients.double().T
    own, total = float(gram.trace()), float(gram.sum())
    noise = (own - (total - own) / (count - 1)) / count**2
    left_out = [float(total - 2 * gram[i].sum() + gram[i, i]) / (count - 1) ** 2 for i in range(count)]
    spread = float(torch.tensor(left_out, dtype=torch.float64).var(correction=0))
    return total / count**2, max(0.0, noise), ((count - 1) * spread) ** 0.5


def _prospect(order: BlockOrder, gradients: Tensor) -> Prospect:
    if not bool(gradients.isfinite().all()):
        raise TrainingError(
            f"the gradient of a new block behind {order.name} must be finite, got inf or NaN on the growth batch; "
            "lower the learning rate"
        )
    gain, noise, error = spectrum_of_one(gradients)
    place = order.place
    return Prospect((gain,), noise, error, place.params_added, place.flops_added, 1.0, is_place=True)


def _gradients(model: nn.Module, loss: Loss, batches: Sequence[tuple[Inputs, Tensor]], order: BlockOrder) -> Tensor:
    """Of each batch, the gradient of all parameters of the block that would come, as one vector."""
    copy = copy_of(model)
    edit = insert(copy, order.place, seed=order.seeds[0])
    new = [one for child in edit.children for one in child.parameters() if one.requires_grad]
    found = []
    for inputs, targets in batches:
        copy.zero_grad(set_to_none=True)
        with untouched(copy), exact_arithmetic(), isolated(0), torch.enable_grad():
            copy.train()
            loss(copy(*inputs.args, **(inputs.kwargs or {})), targets).backward()
        found.append(torch.cat([_flat(one) for one in new]))
    return torch.stack(found)


def _flat(parameter: nn.Parameter) -> Tensor:
    gradient = parameter.grad
    return (torch.zeros_like(parameter) if gradient is None else gradient).detach().flatten().float()
