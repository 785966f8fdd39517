"""Sizes that modules keep beside their weights: torch's own by rule, a user's by the literals that the trace found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from growkit.graph import LiteralChange
from growkit.surgery.records import AttributeChange

__all__ = ["find_attribute_changes", "restore_attributes", "set_attributes"]


def find_attribute_changes(model: nn.Module, literals: Sequence[LiteralChange]) -> list[AttributeChange]:
    """What must change for the size attributes of `model` to fit its resized weights; nothing is changed yet.

    Args:
        model: the model, its tensors already resized.
        literals: numbers in the traced ops that must change with the edit; the innermost owner module that holds such
            a number as an attribute gets the new one (`groups`, `num_heads`, ...). Whether that was right is decided
            by verification.

    Returns:
        The changes to make, for undo and for the record.
    """
    changes: list[AttributeChange] = []
    for literal in literals:
        changes += _literal_owner(model, literal, changes)
    for name, module in model.named_modules():
        # grouped convolutions: their own size follows from the groups they will have
        groups = next((c.new for c in changes if (c.module, c.name) == (name, "groups")), None)
        for attribute, value in _sizes(module, groups).items():
            old = getattr(module, attribute)
            if old != value:
                changes.append(AttributeChange(name, attribute, old, value))
    return changes


def _literal_owner(model: nn.Module, literal: LiteralChange, done: Sequence[AttributeChange]) -> list[AttributeChange]:
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
            return [AttributeChange(owner, name, literal.old, literal.new) for name in matching]
    return []


def _sizes(module: nn.Module, groups: int | None = None) -> dict[str, Any]:
    """The size attributes of torch's own module types, as their tensors now have them."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = weight if weight is not None else module.running_mean
        return {} if tensor is None else {"num_features": tensor.shape[0]}
    if isinstance(module, nn.RNNBase):
        return {"input_size": module.get_parameter("weight_ih_l0").shape[1]}
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.modules.conv._ConvNd):
        sizes = (weight.shape[0], weight.shape[1] * (groups or module.groups))
        if module.transposed:
            return {"in_channels": sizes[0], "out_channels": sizes[1]}
        return {"out_channels": sizes[0], "in_channels": sizes[1]}
    if isinstance(module, nn.LayerNorm):
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": weight.shape[0]}
    if isinstance(module, nn.Embedding):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight.shape[0]}
    return {}


def set_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Make changes, in place."""
    for change in changes:
        setattr(model.get_submodule(change.module), change.name, change.new)


def restore_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Take changes back in place, last first."""
    for change in reversed(changes):
        setattr(model.get_submodule(change.module), change.name, change.old)
