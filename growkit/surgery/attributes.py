"""Sizes that modules keep beside their weights: torch's own follow from the weights, others as the graph says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from typing import Any

from torch import nn

from growkit.errors import GrowthRefused
from growkit.graph import AttributeEdit
from growkit.graph.attribute_path import has_entries, item_at, like_tuple, steps_of
from growkit.surgery.records import AttributeChange

__all__ = ["find_attribute_changes", "holders_of", "read_attribute", "restore_attributes", "set_attributes"]


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

    Raises:
        GrowthRefused: a number to change is a field of a frozen dataclass.
    """
    changes = []
    for edit in edits:
        old = read_attribute(model, edit.module, edit.path)
        new = edit.new if edit.new is not None else old * edit.factor
        if old != new:
            _refuse_frozen(model, edit)
            changes.append(AttributeChange(edit.module, edit.path, old, new))
    for name in dict.fromkeys(tensor.rpartition(".")[0] for tensor in tensors):
        module = _module_at(model, name)
        # grouped convolutions and attention: their own sizes follow from the groups or heads they will have
        given = {change.name: change.new for change in changes if change.module == name}
        for attribute, value in _sizes(module, given).items():
            old = getattr(module, attribute)
            if value not in (old, given.get(attribute)):
                changes.append(AttributeChange(name, attribute, old, value))
    return changes


def _refuse_frozen(model: nn.Module, edit: AttributeEdit) -> None:
    steps = steps_of(edit.path)
    while len(steps) > 1:
        steps = steps[:-1]
        holder: Any = _module_at(model, edit.module)
        for step in steps:
            holder = item_at(holder, step)
        if isinstance(holder, tuple):
            continue  # replaced as a whole in what holds it
        if is_dataclass(holder) and type(holder).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise GrowthRefused(
                f"{type(holder).__name__} is a frozen dataclass, so that no number in it can change along; leave out "
                "frozen=True, or keep the size in an attribute of the module"
            )
        return


def _sizes(module: nn.Module, given: Mapping[str, Any]) -> dict[str, Any]:
    """The size attributes of torch's own module types, as their tensors and `given` attributes will have them."""
    if isinstance(module, nn.MultiheadAttention):
        return {"head_dim": given.get("embed_dim", module.embed_dim) // given.get("num_heads", module.num_heads)}
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
        sizes = (weight.shape[0], weight.shape[1] * given.get("groups", module.groups))
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
    value: Any = _module_at(model, module)
    for step in steps_of(path):
        value = item_at(value, step)
    return value


def set_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Make changes, in place."""
    for change in changes:
        _write(_module_at(model, change.module), steps_of(change.name), change.new)


def restore_attributes(model: nn.Module, changes: Sequence[AttributeChange]) -> None:
    """Take changes back in place, last first."""
    for change in reversed(changes):
        _write(_module_at(model, change.module), steps_of(change.name), change.old)


def holders_of(model: nn.Module, changes: Sequence[AttributeChange]) -> list[Any]:
    """The objects between a module and the numbers to change: containers, configuration objects; outermost first."""
    found = []
    for change in changes:
        value: Any = _module_at(model, change.module)
        for step in steps_of(change.name)[:-1]:
            found.append(value := item_at(value, step))
    return found


def _module_at(model: nn.Module, name: str) -> nn.Module:
    """As torch's get_submodule, without its many questions: an edit of all sites asks thousands of times."""
    module: Any = model
    for step in name.split(".") if name else ():
        module = module._modules[step]
    return module


def _write(owner: Any, steps: Sequence[Any], new: Any) -> None:
    """Write at the end of a path; tuples on the way are replaced by changed copies."""
    parents = [owner]
    for step in steps[:-1]:
        parents.append(item_at(parents[-1], step))
    for parent, step in zip(reversed(parents), reversed(steps), strict=True):
        if isinstance(parent, tuple):
            entries = [*parent[:step], new, *parent[step + 1 :]]
            new = like_tuple(parent, entries)
            continue
        if has_entries(parent):
            parent[step] = new
        else:
            setattr(parent, step, new)
        return
