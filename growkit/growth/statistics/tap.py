"""Listening to the linear layers and convolutions of a model, whether they are modules or functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "Tap"]


@dataclass
class Call:
    """One call of a linear or convolution with a watched weight.

    Attributes:
        input: what went in, one zero longer at the end of a dimension where padding="same" is uneven.
        output: what came out; a later in-place operation shows here.
        bias: the bias, if there is one.
        output_gradient: dL/d(output) before any in-place operation, filled in by the backward pass.
        stride, padding, dilation: per spatial dimension; empty for linear.
    """

    input: Tensor
    output: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_gradient: Tensor | None = None


_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3, torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


class Tap(TorchFunctionMode):
    """Listens to every linear and convolution whose weight is watched, module or functional alike."""

    def __init__(self, weights: dict[int, str]):
        super().__init__()
        self._weights = weights
        self.calls: dict[str, Call] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func is F.linear or func in _CONVOLUTIONS:
            given = dict(zip(_CONVOLUTION_ARGUMENTS, args, strict=False)) | (kwargs or {})
            name = self._weights.get(id(given["weight"]))
            if name is not None:
                self.calls[name] = call = self._call(func, given, output)
                if output.requires_grad:
                    # a hook sees the gradient of the value as it is now, also if the model overwrites it in place later
                    output.register_hook(lambda gradient: setattr(call, "output_gradient", gradient.detach()))
        return output

    @staticmethod
    def _call(func: Any, given: dict[str, Any], output: Tensor) -> Call:
        spatial = _CONVOLUTIONS.get(func, 0)
        weight = given["weight"]

        def per_dimension(key: str, default: int) -> tuple[int, ...]:
            value = given.get(key, default)
            return (value,) * spatial if isinstance(value, int) else tuple(value)

        dilation = per_dimension("dilation", 1)
        inputs = given["input"]
        if given.get("padding") == "same":
            reach = [d * (k - 1) for d, k in zip(dilation, weight.shape[2:], strict=True)]
            given = given | {"padding": tuple(size // 2 for size in reach)}
            # an odd reach has one more zero at the end of its dimension than at the start
            inputs = F.pad(inputs, [extra for size in reversed(reach) for extra in (0, size % 2)])
        elif given.get("padding") == "valid":
            given = given | {"padding": 0}
        return Call(
            inputs, output, given.get("bias"), per_dimension("stride", 1), per_dimension("padding", 0), dilation
        )
