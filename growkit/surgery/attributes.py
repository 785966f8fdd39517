"""Sizes that modules keep beside their weights: torch's own by rule, a user's by the literal that the trace recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from growkit.graph import LiteralChange
from growkit.surgery.records import AttributeChange

__all__ = ["change_attributes", "restore_attributes", "set_attributes"]


def change_attributes(model: nn.Module, literals: Sequence[LiteralChange]) -> list[AttributeChange]:
    """Bring the size attributes of `model` in line with its resized weights, in place.

    Args:
        model: the model, its tensors already resized.
        literals: numbers in the traced ops that must change with the edit; the innermost owner module that holds such
            a number as an attribute gets the new one (`groups`, `num_heads`, ...). Whether that was right is decided
            by verification.

    Returns:
        Every change made, for undo and for the record.
    """
    names = {id(module): name for name, module in model.named_modules()}
    changes: list[AttributeChange] = []
    for literal in literals:
        changes += _patch_owner(model, literal, changes)
    for module in model.modules():
        for attribute, value in _sizes(module).items():
            old = getattr(module, attribute)
            if old != value:
                setattr(module, attribute, value)
                changes.append(AttributeChange(names[id(module)], attribute, old, value))
    return changes


def _patch_owner(model: nn.Module, literal: LiteralChange, done: Sequence[AttributeChange]) -> list[AttributeChange]:
    for owner in literal.owners:
        module = model.get_submodule(owner)
        if any(change.module == owner and change.old == literal.old and change.new == literal.new for change in done):
            return []
        matching = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and type(value) is int and value == literal.old and name not in _sizes(module)
        ]
        if matching:
            for name in matching:
                setattr(module, name, literal.new)
            return [AttributeChange(owner, name, literal.old, literal.new) for name in matching]
    return []


def _sizes(module: nn.Module) -> dict[str, Any]:
    """The size attributes of torch's own module types, as their tensors now have them."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = weight if weight is not None else module.running_mean
        return {} if tensor is None else {"num_features": tensor.shape[0]}
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.modules.conv._ConvNd):
        sizes = (weight.shape[0], weight.shape[1] * module.groups)
        if module.transposed:
            return {"in_channels": sizes[0], "out_channels": sizes[1]}
        return {"out_channels": sizes[0], "in_channels": sizes[1]}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": weight.shape[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    return {}


def set_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Make recorded changes again (replay)."""
    for change in changes:
        setattr(model.get_submodule(change.module), change.name, change.new)


def restore_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Take recorded changes back, last first."""
    for change in reversed(changes):
        setattr(model.get_submodule(change.module), change.name, change.old)
