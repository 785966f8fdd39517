"""Sizes that modules keep beside their weights: torch's own follow from the weights, others as the graph says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from torch import nn

from growkit.errors import SurgeryError
from growkit.graph import AttributeEdit
from growkit.surgery.records import AttributeChange

__all__ = ["find_attribute_changes", "read_attribute", "restore_attributes", "set_attributes"]

STEP = re.compile(r"\.?(?P<name>[A-Za-z_]\w*)|\[(?P<index>\d+)\]|\['(?P<key>[^']*)'\]")


def find_attribute_changes(
    model: nn.Module, edits: Sequence[AttributeEdit], tensors: Iterable[str]
) -> list[AttributeChange]:
    """What must change for the size attributes of `model` to fit its resized weights; nothing is changed yet.

    Args:
        model: the model, its tensors already resized.
        edits: what the graph says of attributes that do not follow from the shape of a weight.
        tensors: the names of the tensors that were resized.

    Returns:
        The changes to make, for undo and for the record.
    """
    changes = []
    for edit in edits:
        old = read_attribute(model, edit.module, edit.path)
        new = edit.new if edit.new is not None else old * edit.factor
        if old != new:
            changes.append(AttributeChange(edit.module, edit.path, old, new))
    for name in dict.fromkeys(tensor.rpartition(".")[0] for tensor in tensors):
        module = model.get_submodule(name)
        # grouped convolutions: their own size follows from the groups they will have
        groups = next((c.new for c in changes if (c.module, c.name) == (name, "groups")), None)
        for attribute, value in _sizes(module, groups).items():
            old = getattr(module, attribute)
            if old != value:
                changes.append(AttributeChange(name, attribute, old, value))
    return changes


def _sizes(module: nn.Module, groups: int | None = None) -> dict[str, Any]:
    """The size attributes of torch's own module types, as their tensors now have them."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.modules.batchnorm._NormBase):
        tensor = weight if weight is not None else module.running_mean
        return {} if tensor is None else {"num_features": tensor.shape[0]}
    if isinstance(module, nn.RNNBase):
        return _recurrent_sizes(module)
    if isinstance(module, nn.RNNCellBase):
        rows, columns = module.weight_ih.shape
        return {"input_size": columns, "hidden_size": rows // (rows // module.weight_hh.shape[1])}
    if weight is None:
        return {}
    if isinstance(module, nn.Linear):
        return {"out_features": weight.shape[0], "in_features": weight.shape[1]}
    if isinstance(module, nn.Bilinear):
        names = ("out_features", "in1_features", "in2_features")
        return dict(zip(names, weight.shape, strict=True))
    if isinstance(module, nn.modules.conv._ConvNd):
        sizes = (weight.shape[0], weight.shape[1] * (groups or module.groups))
        if module.transposed:
            return {"in_channels": sizes[0], "out_channels": sizes[1]}
        return {"out_channels": sizes[0], "in_channels": sizes[1]}
    if isinstance(module, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": tuple(weight.shape)}
    if isinstance(module, nn.GroupNorm):
        return {"num_channels": weight.shape[0]}
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return {"num_embeddings": weight.shape[0], "embedding_dim": weight.shape[1]}
    if isinstance(module, nn.PReLU):
        return {"num_parameters": weight.shape[0]}
    return {}


def _recurrent_sizes(module: nn.RNNBase) -> dict[str, Any]:
    gates = {"LSTM": 4, "GRU": 3}.get(module.mode, 1)
    rows, columns = module.get_parameter("weight_ih_l0").shape
    projected = {"proj_size": module.get_parameter("weight_hr_l0").shape[0]} if module.proj_size else {}
    return {"input_size": columns, "hidden_size": rows // gates} | projected


def read_attribute(model: nn.Module, module: str, path: str) -> Any:
    """The number at a path such as "num_heads", "sizes[1]" or "config.n_head" of a module."""
    value: Any = model.get_submodule(module)
    for step in _steps(path):
        value = _step(value, step)
    return value


def set_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Make changes, in place."""
    for change in changes:
        _write(model.get_submodule(change.module), _steps(change.name), change.new)


def restore_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Take changes back in place, last first."""
    for change in reversed(changes):
        _write(model.get_submodule(change.module), _steps(change.name), change.old)


def _steps(path: str) -> list[str | int | tuple[str]]:
    """Attribute names as strings, positions as integers, keys of dictionaries as tuples of one string."""
    steps: list[str | int | tuple[str]] = []
    for match in STEP.finditer(path):
        if match["name"] is not None:
            steps.append(match["name"])
        else:
            steps.append(int(match["index"]) if match["index"] is not None else (match["key"],))
    return steps


def _step(value: Any, step: str | int | tuple[str]) -> Any:
    if isinstance(step, str):
        return getattr(value, step)
    return value[step[0] if isinstance(step, tuple) else step]


def _write(owner: Any, steps: Sequence[str | int | tuple[str]], new: Any) -> None:
    """Write at the end of a path; tuples on the way are replaced by changed copies."""
    parents = [owner]
    for step in steps[:-1]:
        parents.append(_step(parents[-1], step))
    for parent, step in zip(reversed(parents), reversed(steps), strict=True):
        if isinstance(parent, tuple):
            if type(parent) is not tuple or not isinstance(step, int):
                raise SurgeryError(f"a size kept in a {type(parent).__name__} cannot be changed; use attributes")
            new = (*parent[:step], new, *parent[step + 1 :])
            continue
        if isinstance(step, str):
            setattr(parent, step, new)
        else:
            parent[step[0] if isinstance(step, tuple) else step] = new
        return
