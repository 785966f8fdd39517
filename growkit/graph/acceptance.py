"""What is taken for a model: looked at before anything is traced, with one sentence for each kind that cannot grow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from growkit.errors import GrowthRefused, ModelError, UserInputError

__all__ = ["check_model", "check_values", "refuse_wrappers"]

# by name: some of them exist only in some builds of torch
_WRAPPERS = {
    "OptimizedModule": "grow the module inside, ._orig_mod, and compile it again",
    "DistributedDataParallel": "grow the module inside, .module, and wrap it again",
    "DataParallel": "grow the module inside, .module, and wrap it again",
    "FullyShardedDataParallel": "grow the plain module, with the full state dict, and shard it again",
    "FSDPModule": "grow the plain module, with the full state dict, and shard it again",
}
_QUANTISED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.nn.quantized")


def check_model(model: Any) -> None:
    """Refuse what cannot be traced, or whose widths cannot be known or changed.

    Raises:
        UserInputError: it is no module.
        GrowthRefused: it is, or holds, a wrapper that remembers old sizes (DDP, FSDP, compiled).
        ModelError: a module inside is scripted, quantised or lazy, or a parameter is sparse.
    """
    if not isinstance(model, nn.Module):
        raise UserInputError(f"model must be a torch.nn.Module, got {_described(model)}")
    refuse_wrappers(model)
    for name, module in model.named_modules():
        kind = f"{type(module).__name__}{_at(name)}"
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(f"a scripted module cannot be traced, got {kind}; pass the Python module it was made from")
        if type(module).__module__.startswith(_QUANTISED):
            raise ModelError(f"a quantised module cannot grow, got {kind}; grow the float model and quantise it then")
    for name, tensor in _tensors(model):
        if is_lazy(tensor):
            owner = name.rpartition(".")[0]
            raise ModelError(
                f"{type(model.get_submodule(owner)).__name__}{_at(owner)} has not seen data yet: a lazy module must be "
                "run once on a batch before its widths are known"
            )
        if tensor.is_inference():
            raise ModelError(
                f"weights made inside torch.inference_mode can be neither trained nor grown, got {name!r}; "
                "build or load the model outside"
            )
        if isinstance(tensor, nn.Parameter) and tensor.layout != torch.strided:
            raise ModelError(f"parameters must be dense to grow, got the sparse {name!r}; keep it as a dense tensor")


def check_values(model: nn.Module) -> None:
    """Refuse a model without values: its widths are known, but what it computes is not.

    Raises:
        ModelError: a parameter or buffer is on the meta device.
    """
    empty = next((name for name, tensor in _tensors(model) if tensor.is_meta), None)
    if empty is not None:
        raise ModelError(
            f"weights on the meta device have no values to compare or to grow, got {empty!r}; call "
            'model.to_empty(device="cpu") and load or initialise the weights first'
        )


def refuse_wrappers(model: nn.Module) -> None:
    """Raise GrowthRefused where `model` is, or holds, a wrapper that remembers old sizes (DDP, compiled)."""
    for name, module in model.named_modules():
        kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__name__ in _WRAPPERS]
        if kinds:
            raise GrowthRefused(
                f"a model must be unwrapped before it grows, got {kinds[0]}{_at(name)}, which remembers old sizes; "
                f"{_WRAPPERS[kinds[0]]}"
            )


def _described(value: Any) -> str:
    if isinstance(value, type) and issubclass(value, nn.Module):
        return f"the class {value.__name__}; pass an instance, {value.__name__}()"
    if isinstance(getattr(value, "__self__", None), nn.Module):
        return f"the method {value.__name__} of a {type(value.__self__).__name__}; pass the module itself"
    return f"{type(value).__name__} {value!r:.80}; pass an instance, such as Net()"


def _at(name: str) -> str:
    return f" at {name}" if name else ""


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
