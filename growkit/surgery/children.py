"""The modules that an insertion brings: a silent copy of a residual block, or an identity layer and its activation."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from growkit.errors import GrowthRefused
from growkit.rng import isolated
from growkit.surgery.records import DepthRecord

__all__ = ["Sibling", "build_children"]

Sibling = tuple[nn.Parameter, nn.Parameter]
"""A parameter of the model, and the new one that is built after it."""


def build_children(model: nn.Module, record: DepthRecord) -> tuple[dict[str, nn.Module], list[Sibling]]:
    """The modules that a record inserts, by name; nothing is inserted yet.

    Raises:
        GrowthRefused: a block cannot be copied.
    """
    source = model.get_submodule(record.source)
    if record.form == "residual block":
        block = _silent_copy(model, source, record)
        return {record.children[0]: block}, list(zip(source.parameters(), block.parameters(), strict=True))
    norm = None if record.norm is None else model.get_submodule(record.norm)
    layer, siblings = _identity_layer(source, norm)
    activation = [] if record.activation is None else [_bare_copy(model, model.get_submodule(record.activation))]
    return dict(zip(record.children, [layer, *activation], strict=True)), siblings


@torch.no_grad()
def _silent_copy(model: nn.Module, source: nn.Module, record: DepthRecord) -> nn.Module:
    block = _bare_copy(model, source)
    with isolated(record.seed):
        block.apply(_reset)
    for name in record.zeroed:
        block.get_parameter(name).zero_()
    return block


def _bare_copy(model: nn.Module, source: nn.Module) -> nn.Module:
    """A copy without hooks, which holds nothing of the rest of the model."""
    memo: dict[int, Any] = {}
    for module in source.modules():
        _check_hooks(module)
        for hooks in (getattr(module, name) for name in _HOOKS):
            memo[id(hooks)] = type(hooks)()
    try:
        block = copy.deepcopy(source, memo)
    except Exception as error:  # a user's module may hold anything
        raise GrowthRefused(
            f"a block must allow a deep copy to be repeated, got {type(error).__name__}: {error}"
        ) from error
    own = {id(module) for module in source.modules()}
    outside = [name for name, module in model.named_modules() if id(module) in memo and id(module) not in own]
    if outside:
        raise GrowthRefused(
            f"a block to be repeated must hold only modules of its own, but it refers to {outside[0] or 'the model'!r}"
        )
    return block


def _check_hooks(module: nn.Module) -> None:
    """Older torch computes a weight from others in a hook; without it the copy's weight would never change."""
    for hook in module._forward_pre_hooks.values():
        if type(hook).__module__.startswith("torch.nn.utils"):
            raise GrowthRefused(
                f"a block to be repeated must compute no weight in a hook, got {type(hook).__name__}; "
                "torch.nn.utils.parametrizations has the same without one"
            )


_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None) or getattr(module, "_reset_parameters", None)
    if callable(reset):
        reset()


@torch.no_grad()
def _identity_layer(source: nn.Module, norm: nn.Module | None) -> tuple[nn.Module, list[Sibling]]:
    """A layer of `source`'s form that passes its input on, and which parameter each of its own is built after."""
    weight, bias = source.get_parameter("weight"), source.bias
    # a normaliser that is not repeated took the bias's place
    shift = bias if bias is not None else getattr(norm, "bias", None)
    layer = _square(source, biased=bias is not None or norm is not None)
    if isinstance(layer, nn.Linear):
        nn.init.eye_(layer.weight)
    else:
        nn.init.dirac_(layer.get_parameter("weight"), getattr(layer, "groups", 1))
    siblings = [(weight, layer.get_parameter("weight"))]
    if layer.bias is not None:
        new = layer.get_parameter("bias")
        new.zero_()
        siblings.append((shift if isinstance(shift, nn.Parameter) else weight, new))
    for sibling, new in siblings:
        new.requires_grad_(sibling.requires_grad)
    if weight.dim() == 4 and not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last):
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return layer.train(source.training), siblings


def _square(source: nn.Module, *, biased: bool) -> nn.Module:
    weight = source.get_parameter("weight")
    width, like = weight.shape[0], {"device": weight.device, "dtype": weight.dtype}
    with isolated():
        if isinstance(source, nn.Linear):
            return nn.Linear(width, width, bias=biased, **like)
        assert isinstance(source, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        padding = tuple(size // 2 for size in source.kernel_size)
        kernel: Any = source.kernel_size
        return type(source)(width, width, kernel, padding=padding, groups=source.groups, bias=biased, **like)  # type: ignore[arg-type]
