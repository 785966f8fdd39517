"""Methods that neither autograd nor torch.compile follows."""

# torch has no public name for the switch of autograd alone
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch._compile import _disable_dynamo

__all__ = ["apart"]

P = ParamSpec("P")
R = TypeVar("R")


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """Run without autograd, and as it stands where torch.compile takes in the code around it.

    A compiled one would be made anew at every step, for its numbers change, and forget what it writes to buffers.
    """

    def unrecorded(*args: P.args, **settings: P.kwargs) -> R:
        enabled = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)  # no_grad() costs as much as all else on small models
        try:
            return function(*args, **settings)
        finally:
            torch._C._set_grad_enabled(enabled)

    uncompiled = _disable_dynamo(unrecorded)  # which itself costs as much

    @wraps(function)
    def called(*args: P.args, **settings: P.kwargs) -> R:
        return (uncompiled if torch.compiler.is_compiling() else unrecorded)(*args, **settings)

    return called
