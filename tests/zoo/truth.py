"""What a model is and what it computes, told without growkit: photographs to the last bit, float64 twins."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

__all__ = ["Doubled", "call", "change", "doubled", "kept", "larger", "leaves_of", "perturbed_twin", "photograph", "run"]


def photograph(model: nn.Module) -> dict[str, Any]:
    """Everything a model holds, to the last bit: tensors as objects and as bytes, modes, flags, plain attributes."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return {
        "tensors": {name: (id(one), _bytes(one)) for name, one in (parameters | buffers).items()},
        "state_dict": {name: _frozen(one) for name, one in model.state_dict().items()},
        "requires_grad": {name: one.requires_grad for name, one in parameters.items()},
        "gradients": {name: None if one.grad is None else _bytes(one.grad) for name, one in parameters.items()},
        "training": {name: module.training for name, module in model.named_modules()},
        "hooks": {name: _hooks(module) for name, module in model.named_modules()},
        "attributes": {name: _plain(module) for name, module in model.named_modules()},
    }


_REGISTRIES = frozenset(vars(nn.Module()))


def _plain(module: nn.Module) -> dict[str, Any]:
    return {name: _frozen(value) for name, value in vars(module).items() if name not in _REGISTRIES}


def _hooks(module: nn.Module) -> dict[str, list[int]]:
    return {name: [id(hook) for hook in hooks.values()] for name, hooks in vars(module).items() if "hooks" in name}


def _bytes(tensor: Tensor) -> Any:
    if is_lazy(tensor):
        return tensor.dtype
    if tensor.is_meta or tensor.layout != torch.strided:
        return tensor.dtype, tuple(tensor.shape), tensor.layout
    data = tensor.detach().contiguous().view(-1).view(torch.uint8) if tensor.numel() else tensor.detach()
    return tensor.dtype, tuple(tensor.shape), tensor.stride(), bytes(data.tolist())


def _frozen(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _bytes(value)
    if isinstance(value, dict):
        return {key: _frozen(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_frozen(one) for one in value]
    if value is None or isinstance(value, (bool, int, float, complex, str, bytes, set, torch.dtype, torch.device)):
        return value
    if (is_dataclass(value) and not isinstance(value, type)) or type(value).__name__ == "SimpleNamespace":
        return _frozen(vars(value))
    return id(value)


class Doubled(TorchFunctionMode):
    """Casts to float32 become casts to float64, and noise does not depend on how many units there are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            return args[0].double()
        if func is torch.randn_like:
            whole = torch.randn([64] * args[0].dim(), dtype=args[0].dtype)
            return whole[tuple(slice(size) for size in args[0].shape)]
        exact = pytree.tree_map(lambda one: torch.float64 if one is torch.float32 else one, (args, kwargs or {}))
        return func(*exact[0], **exact[1])


def perturbed_twin(model: nn.Module, seed: int = 0) -> nn.Module:
    """A float64 copy without zeros to hide behind, and without dropout, which would draw another mask."""
    twin = copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.is_floating_point():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
        for name, buffer in twin.named_buffers():
            if "running" in name:
                buffer += 0.3 * torch.rand(buffer.shape, generator=generator, dtype=buffer.dtype)
    for module in twin.modules():
        for name, value in vars(module).items():
            if type(value) is float and ("drop" in name or (name == "p" and "Dropout" in type(module).__name__)):
                setattr(module, name, 0.0)
    return twin


def call(model: nn.Module, example: Any) -> Any:
    """Run a model on an example of any of the three kinds."""
    if isinstance(example, dict):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def doubled(example: Any) -> Any:
    return pytree.tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, example)


def larger(example: Any, other: Any) -> Any:
    """Two batches as one, where a tensor has one entry for each sample."""
    first = next(leaf for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim())
    size = len(first)

    def join(a: Any, b: Any) -> Any:
        return torch.cat([a, b[:1]]) if isinstance(a, Tensor) and a.dim() and len(a) == size else a

    return pytree.tree_map(join, example, other)


def _content(value: Any) -> Any:
    """What stands in a container that a forward may change; objects stay the objects that modules share."""
    return copy.copy(value) if type(value) in (dict, list) else None


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Buffers, plain attributes and modes are afterwards what they were."""
    modes = [(module, module.training) for module in model.modules()]
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    plain = [
        (module, {name: (value, _content(value)) for name, value in vars(module).items() if name not in _REGISTRIES})
        for module in model.modules()
    ]
    try:
        yield
    finally:
        for module, name, buffer, values in before:
            module._buffers[name] = buffer
            buffer.data.copy_(values)
        for module, attributes in plain:
            for name in [name for name in vars(module) if name not in _REGISTRIES and name not in attributes]:
                del module.__dict__[name]
            for name, (value, content) in attributes.items():
                module.__dict__[name] = value
                if content is not None:
                    value.clear()
                    value.update(content) if isinstance(content, dict) else value.extend(content)
        for module, training in modes:
            module.training = training


def leaves_of(output: Any) -> list[Any]:
    """The leaves of an output, also where torch does not know its class."""
    found = []
    for leaf in pytree.tree_leaves(output):
        parts = (
            leaf
            if isinstance(leaf, dict)
            else vars(leaf)
            if is_dataclass(leaf) and not isinstance(leaf, type)
            else None
        )
        found += [leaf] if parts is None else leaves_of(dict(parts))
    return found


def run(model: nn.Module, example: Any, *, training: bool) -> list[Any]:
    """All leaves of the outputs, with the model's buffers, mode and attributes kept."""
    with torch.random.fork_rng(), torch.no_grad(), kept(model), Doubled():
        torch.manual_seed(1)
        model.train(training)
        leaves = leaves_of(call(model, example))
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def change(before: list[Any], after: list[Any]) -> float:
    """The largest difference of an output, relative to the largest entry of that output."""
    if len(before) != len(after):
        return float("inf")
    worst = 0.0
    for old, new in zip(before, after, strict=True):
        if not isinstance(old, Tensor):
            worst = max(worst, 0.0 if old == new else float("inf"))
        elif old.shape != new.shape or not torch.isfinite(new).all():
            return float("inf")
        elif old.numel():
            worst = max(worst, float((new - old).abs().max() / old.abs().max().clamp_min(1e-30)))
    return worst
