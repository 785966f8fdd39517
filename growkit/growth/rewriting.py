"""Existing weights that an event gives new values: written in place, and taken back to the last bit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from growkit.errors import SurgeryError

__all__ = ["Rewriting", "combine"]


def combine(old: Tensor, rewrites: Sequence[Tensor]) -> Tensor:
    """What several sites make of one tensor: every entry changed by the product of all factors, in any order.

    A tensor may be the fan-out of one site and the fan-in of another. Factors compose whatever each site did to its own
    side: divided shares, a rescaled side, a step to one side. Entries that are 0 have no factor; their changes are
    added.

    Args:
        old: the present values.
        rewrites: new values of the whole tensor; a single one is the answer to the last bit.
    """
    if len(rewrites) == 1:
        return rewrites[0]
    exact = old.double()
    apart = exact == 0
    nonzero = torch.where(apart, torch.ones_like(exact), exact)
    factor, total = torch.ones_like(exact), torch.zeros_like(exact)
    for one in rewrites:
        factor, total = factor * one.double() / nonzero, total + one.double()
    return torch.where(apart, total, exact * factor).to(old.dtype)


class Rewriting:
    """The tensors of one model that an event rewrote, and what they were."""

    def __init__(self) -> None:
        self._before: list[tuple[Tensor, Tensor]] = []

    @torch.no_grad()
    def write(self, model: nn.Module, by_site: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Give tensors of `model` new values in place, as the objects they are.

        Args:
            model: at the sizes before the event.
            by_site: site -> tensor name -> new values.

        Raises:
            SurgeryError: an initializer names a tensor that is none of the model's, or gives another shape.
        """
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
        wanted: dict[str, list[Tensor]] = {}
        for site, rewrites in by_site.items():
            for name, values in rewrites.items():
                if name not in tensors or tensors[name].shape != values.shape:
                    has = tuple(tensors[name].shape) if name in tensors else "none"
                    raise SurgeryError(
                        f"a rewrite must name a tensor of the model and keep its shape, got {tuple(values.shape)} for "
                        f"{name!r} {has}, from the initializer of {site}"
                    )
                wanted.setdefault(name, []).append(values)
        for name, rewrites in wanted.items():
            tensor = tensors[name]
            values = torch.empty_like(tensor.data).copy_(combine(tensor.data, rewrites))
            self._before.append((tensor, tensor.data))  # first, for an interrupt may come between
            tensor.data = values

    def undo(self) -> None:
        """Put all of it back, last first; the tensors must have their sizes of before the event again."""
        while self._before:
            tensor, values = self._before[-1]
            tensor.data = values
            self._before.pop()
