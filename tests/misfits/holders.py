"""Modules that hold what cannot be copied, or hooks that reach into them."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .forwards import Net


class WithLock(Net):
    """deepcopy fails."""

    def __init__(self, inputs: int = 6) -> None:
        super().__init__(inputs)
        self.lock = threading.Lock()


class WithGenerator(Net):
    """deepcopy fails: a Python generator is held."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = (i for i in range(9))


class WithNonLeaf(Net):
    """deepcopy fails: a tensor with history is held."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.a.weight * 2


class WithDeepLock(Net):
    """deepcopy fails: a lock stands in a record, next to the model itself and to a tensor with history."""

    def __init__(self) -> None:
        super().__init__()
        self.tools = {"kept": SimpleNamespace(lock=threading.Lock(), of=[self]), "table": self.a.weight.sum(0)}


class WithoutCopies(Net):
    """Its own code forbids copies."""

    def __deepcopy__(self, memo: Any) -> Any:
        raise NotImplementedError("there can be only one")


class WithTorchGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rng = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def _add_one(module: nn.Module, args: Any, output: Any) -> Any:
    return output + 1


class WithHooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.a.register_forward_hook(lambda module, args, output: self.seen.append(1))
        self.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        self.b.register_full_backward_hook(lambda module, grads, outputs: None)
        self.register_forward_hook(_add_one)
