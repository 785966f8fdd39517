"""What a second pass over the same batch must share with the first, and what it must not change.

Dropout and stochastic depth draw the same numbers; statistics that a forward keeps in buffers (those of batch norms,
and how many batches they saw) are those of the first pass.
"""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from growkit.rng import global_state, set_global_state

__all__ = ["KeptBuffers", "Marks", "Replay"]


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


class Marks:
    """Gradients as they are now, to tell later whether a backward has added to them or made others."""

    def __init__(self, gradients: Sequence[Tensor]) -> None:
        self._first = weakref.ref(gradients[0])  # the id of a freed one may be another's; one reference is enough
        self._known, self._versions = list(map(id, gradients)), [one._version for one in gradients]

    def fit(self, gradients: Sequence[Tensor]) -> bool:
        """Whether these are the same gradients, and nobody wrote to them since."""
        if self._first() is None or gradients[0]._version != self._versions[0]:  # mostly that is enough
            return False
        return self._known == list(map(id, gradients)) and self._versions == [one._version for one in gradients]


class KeptBuffers:
    """All buffers of a model, as they are now: values, and which tensors they are."""

    def __init__(self, model: nn.Module | None) -> None:
        self._held: list[tuple[dict[str, Any], str, Any]] = []
        for owner in _owners(model):
            self._held += [(owner, name, buffer) for name, buffer in owner.items() if _may_change(buffer)]
        self._values = [buffer.clone() for _, _, buffer in self._held]

    def restore(self) -> None:
        """Put them back; whether they were written to is not asked, for batch norms leave no trace of it."""
        for owner, name, buffer in self._held:
            owner[name] = buffer
        if self._held:
            # by .data: the first pass's graph may still be needed, and knows from a count who wrote to a buffer
            entries = [buffer.data for _, _, buffer in self._held]
            try:
                torch._foreach_copy_(entries, self._values)
            except RuntimeError:  # as of nested tensors and conjugate views, which lists may not hold
                for entry, value in zip(entries, self._values, strict=True):
                    if entry.is_nested or entry.shape == value.shape:  # else it was resized, with weights that tell so
                        entry.copy_(value)
            for (_, _, buffer), value in zip(self._held, self._values, strict=True):
                if buffer.is_sparse:  # a list of entries, of which .data is another one
                    with torch.autograd._unsafe_preserve_version_counter(buffer):
                        buffer.copy_(value)


def _may_change(buffer: Tensor | None) -> bool:
    """Whether torch would let a forward write to it: not where entries share memory, or what inference made."""
    if buffer is None or buffer.is_inference():
        return False
    if buffer.layout != torch.strided or buffer.is_nested:  # of which each entry stands by itself
        return True
    return all(stride or extent <= 1 for stride, extent in zip(buffer.stride(), buffer.shape, strict=True))


def _owners(model: nn.Module | None) -> list[dict[str, Tensor | None]]:
    """What holds buffers; `modules()` would cost more than all the rest of a step on small models."""
    if model is None:
        return []
    modules, known, found = [model], {id(model)}, []
    for module in modules:  # which grows meanwhile
        if module._buffers:
            found.append(module._buffers)
        for one in module._modules.values():
            if one is None:
                continue
            if not one._modules:  # one that is shared comes several times: putting the same values back twice is fine
                if one._buffers:
                    found.append(one._buffers)
            elif id(one) not in known:
                known.add(id(one))
                modules.append(one)
    return found
