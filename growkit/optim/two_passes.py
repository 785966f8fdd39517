"""What a second pass over the same batch must share with the first, and what it must not change.

Dropout and stochastic depth draw the same numbers; statistics that a forward keeps in buffers (those of batch norms,
and how many batches they saw) are those of the first pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from growkit.rng import global_state, set_global_state

__all__ = ["Replay", "kept_buffers"]


class Replay:
    """The state of all global random generators, before a first pass and for a second one."""

    def __init__(self) -> None:
        self._before = global_state()

    @contextmanager
    def again(self) -> Iterator[None]:
        """Draw the same numbers inside the block; afterwards go on as if it had not been."""
        after = global_state()
        set_global_state(self._before)
        try:
            yield
        finally:
            set_global_state(after)


@contextmanager
def kept_buffers(model: nn.Module | None) -> Iterator[None]:
    """Put back all buffers of a model after the block: values, and which tensors they are."""
    if model is None:
        yield
        return
    owners = [module._buffers for module in model.modules() if module._buffers]
    held = [(owner, name, buffer) for owner in owners for name, buffer in _present(owner)]
    values = [buffer.clone() for _, _, buffer in held]
    try:
        yield
    finally:
        with torch.no_grad():
            for (owner, name, buffer), value in zip(held, values, strict=True):
                owner[name] = buffer
                buffer.copy_(value)  # whether it was written to is not told: batch norms leave no trace


def _present(owner: dict[str, Tensor | None]) -> Iterator[tuple[str, Tensor]]:
    return ((name, buffer) for name, buffer in owner.items() if buffer is not None)
