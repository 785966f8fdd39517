"""What holds a width although no trace shows it: memory that several tensors share, and hooks on gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from growkit.graph.dimensions import Reason, pin
from growkit.graph.holdings import held_by
from growkit.graph.rules.context import TensorUse

__all__ = ["pin_ties"]

HOOKED = (
    "has a hook on its gradient, which may hold tensors of its present shape; remove the hook before growth and "
    "register it again"
)


def pin_ties(model: nn.Module, records: Mapping[int, TensorUse]) -> None:
    """Pin what growth would cut.

    Args:
        model: the module, with whatever it holds.
        records: of its parameters and buffers by identity.
    """
    _pin_shared_memory(model, records)
    for parameter in model.parameters():
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None):
            _pin(records[id(parameter)], HOOKED)


def _pin_shared_memory(model: nn.Module, records: Mapping[int, TensorUse]) -> None:
    """Views of one memory, such as a weight and its transpose, would part when one of them is resized."""
    places: dict[int, list[tuple[range, TensorUse | None]]] = {}
    for tensor in _held_tensors(model):
        if tensor.is_meta or tensor.layout is not torch.strided or tensor.numel() == 0:
            continue
        reach = sum((extent - 1) * stride for extent, stride in zip(tensor.shape, tensor.stride(), strict=True))
        width = tensor.element_size()
        span = range(tensor.storage_offset() * width, (tensor.storage_offset() + reach + 1) * width)
        record = records.get(id(tensor))
        neighbours = places.setdefault(tensor.untyped_storage().data_ptr(), [])
        for other, theirs in neighbours:
            if span.start < other.stop and other.start < span.stop:
                _pin_to(record, theirs)
                _pin_to(theirs, record)
        neighbours.append((span, record))


def _held_tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers, and what lies in plain attributes and containers."""
    for value in held_by(model):
        if issubclass(type(value), Tensor):  # not isinstance, which asks the object itself
            yield value


def _pin_to(record: TensorUse | None, other: TensorUse | None) -> None:
    if record is None:
        return
    what = (
        "a tensor that the model keeps elsewhere; take the view in the forward"
        if other is None
        else repr(other.names[0])
    )
    _pin(record, f"is a width of a {record.kind} that shares its memory with {what}")


def _pin(record: TensorUse, reason: str) -> None:
    for dim in record.dims:
        pin(dim, Reason(reason))
