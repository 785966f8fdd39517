"""The exact gradient of SAM's objective L(w + e(w)), with the derivative of e that the paper leaves out."""

# torch has no public name for writing to tensors unseen
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim.ascent import Pull
from growkit.optim.displacement import Displacement
from growkit.optim.two_passes import KeptBuffers, Replay

__all__ = ["exact_gradient"]


def exact_gradient(
    loss_of: Callable[[], Tensor],
    trained: Sequence[Tensor],
    steps_of: Callable[[dict[Tensor, Tensor]], Mapping[Tensor, Tensor]],
    model: nn.Module | None,
    displacement: Displacement,
) -> tuple[Tensor, bool]:
    """Put grad L(w + e) + (de/dw)^T grad L(w + e) in the place of the gradients.

    Args:
        loss_of: computes the loss at the present weights.
        trained: the parameters.
        steps_of: gives e of each parameter from their gradients, so that autograd can follow.
        model: whose buffers shall be those of the first pass, if it is known.
        displacement: moves the weights and puts them back.

    Returns:
        The loss at w, and whether e was finite; if not, nothing was done.
    """
    replay = Replay()
    with torch.enable_grad():
        loss = loss_of()
        gradients = torch.autograd.grad(loss, trained, create_graph=True, allow_unused=True)
        if any(one is not None and one.layout != torch.strided for one in gradients):
            raise UserInputError("SAM with second_order needs dense gradients, got a sparse one; use sparse=False")
        pairs = zip(trained, gradients, strict=True)
        steps = steps_of({one: gradient for one, gradient in pairs if gradient is not None})
    looked_at = [gradient for one, gradient in zip(trained, gradients, strict=True) if one in steps]
    if not all(bool(one.isfinite().all()) for one in (*looked_at, *steps.values())):
        return loss.detach(), False
    buffers = KeptBuffers(model)
    try:
        with _unseen(steps):
            displacement.move([(Pull([one], [step.detach()], [step.detach()]), 1.0) for one, step in steps.items()])
        with replay.again(), torch.enable_grad():
            there = torch.autograd.grad(loss_of(), trained, allow_unused=True)
    finally:
        with _unseen(steps):
            displacement.restore()
        torch.clear_autocast_cache()  # of the weights as they were moved
        buffers.restore()
    _chain(trained, there, steps)
    return loss.detach(), True


@contextmanager
def _unseen(weights: Iterable[Tensor]) -> Iterator[None]:
    """Write to weights behind the back of autograd, which still needs the graph of the first pass."""
    with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tuple(weights)):
        yield


def _chain(trained: Sequence[Tensor], there: Sequence[Tensor | None], steps: Mapping[Tensor, Tensor]) -> None:
    """The gradient there, and what comes through the steps."""
    pull = dict(zip(trained, there, strict=True))
    ends = [(step, end) for one, step in steps.items() if (end := pull[one]) is not None and step.requires_grad]
    through = torch.autograd.grad([one for one, _ in ends], trained, [end for _, end in ends], allow_unused=True)
    for parameter, direct, chained in zip(trained, there, through, strict=True):
        parts = [part for part in (direct, chained) if part is not None]
        parameter.grad = parts[0] + parts[1] if len(parts) > 1 else next(iter(parts), None)
