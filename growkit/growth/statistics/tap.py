"""Listening to the linear layers and convolutions of a model, whether they are modules or functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.overrides import TorchFunctionMode

__all__ = ["Call", "Tap", "differentiate"]


@dataclass
class Call:
    """One call of a linear or convolution with a watched weight.

    Attributes:
        input: what went in, one zero longer at the end of a dimension where padding="same" is uneven.
        output: what came out; a later in-place operation shows here.
        bias: the bias, if there is one.
        output_gradient: dL/d(output) before any in-place operation, filled in by the backward pass.
        stride, padding, dilation: per spatial dimension; empty for linear.
        edge: where autograd differentiates by the output as it was before any in-place operation, if it does.
    """

    input: Tensor
    output: Tensor
    bias: Tensor | None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    output_gradient: Tensor | None = None
    edge: GradientEdge | None = None


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
                    call.edge = get_gradient_edge(output)
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


def differentiate(
    loss: Tensor, model: nn.Module, parameters: Sequence[nn.Parameter], calls: Sequence[Call]
) -> list[Tensor]:
    """Gradients of parameters, zeros where there are none; calls get their `output_gradient`.

    No more is computed than these need. The model's own gradients are left as they are.
    """
    if _has_whole_node(loss):
        return _differentiate_whole(loss, model, parameters)
    asked = [parameter for parameter in parameters if parameter.requires_grad]
    ends = [*asked, *(call.edge for call in calls if call.edge is not None)]
    given = torch.autograd.grad(loss, ends, allow_unused=True) if ends else ()
    found = {id(parameter): gradient for parameter, gradient in zip(asked, given, strict=False)}
    return [_or_zeros(found.get(id(parameter)), parameter) for parameter in parameters]


def _has_whole_node(loss: Tensor) -> bool:
    """Whether it goes through a re-entrant checkpoint, which differentiates by all parameters or not at all."""
    left, seen = [loss.grad_fn], set[Any]()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            if node.name() == "CheckpointFunctionBackward":
                return True
            seen.add(node)
            left += [following for following, _ in node.next_functions]
    return False


def _differentiate_whole(loss: Tensor, model: nn.Module, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    model.zero_grad(set_to_none=True)
    try:
        loss.backward()
        return [_or_zeros(parameter.grad, parameter) for parameter in parameters]
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _or_zeros(gradient: Tensor | None, parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.detach()
