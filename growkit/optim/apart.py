"""Methods that neither autograd nor torch.compile follows."""

# torch has no public name for the switch of autograd alone
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import is_grad_enabled
from torch._C import _set_grad_enabled as set_grad_enabled
from torch._C._dynamo.eval_frame import get_eval_frame_callback
from torch._compile import _disable_dynamo
from torch.compiler import is_dynamo_compiling

__all__ = ["apart"]

P = ParamSpec("P")
R = TypeVar("R")


def apart(function: Callable[P, R]) -> Callable[P, R]:
    """Run without autograd, and as it stands where torch.compile takes in the code around it.

    A compiled one would be made anew at every step, for its numbers change, and forget what it writes to buffers.
    """

    @_disable_dynamo  # which itself costs as much as all else on small models
    def uncompiled(*args: P.args, **settings: P.kwargs) -> R:
        with torch.no_grad():
            return function(*args, **settings)

    @wraps(function)
    def called(*args: P.args, **settings: P.kwargs) -> R:
        # torch.compile, which leaves a frame without operations as it is, would still compile what that calls
        if is_dynamo_compiling() or get_eval_frame_callback() is not None:
            return uncompiled(*args, **settings)
        enabled = is_grad_enabled()
        set_grad_enabled(False)  # no_grad() costs several times as much
        try:
            return function(*args, **settings)
        finally:
            set_grad_enabled(enabled)

    return called
