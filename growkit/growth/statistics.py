"""What initializers may know: the facts of one growth batch, each measured once and only if asked for.

Legend: B batch, O fan-out units, C fan-in units, V consumer kernel positions, U producer kernel positions, Q positions of
the hidden map, K new units.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from growkit.device import exact_arithmetic
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.rng import isolated
from growkit.surgery import Extension, Growth, Inputs, grow, lookup, untouched

__all__ = ["ActivationFacts", "Call", "GradientMatrix", "Measurement", "gradient_matrix"]

Loss = Callable[[Any, Tensor], Tensor]


@dataclass
class Call:
    """One call of a linear or convolution with a watched weight.

    Attributes:
        input: what went in. output_gradient: dL/d(output), filled in by the backward pass.
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


class _Tap(TorchFunctionMode):
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
        padding = given.get("padding", 0)
        if padding == "same":
            padding = tuple(d * (k - 1) // 2 for d, k in zip(dilation, weight.shape[2:], strict=True))
        elif padding == "valid":
            padding = 0
        given = given | {"padding": padding}
        return Call(
            given["input"], output, given.get("bias"), per_dimension("stride", 1), per_dimension("padding", 0), dilation
        )


@dataclass(frozen=True)
class ActivationFacts:
    """What stands between producer and consumer does to a unit whose pre-activation is 0.

    Attributes:
        value: largest |f(0)|. slope: |f'(0)|, the share of a gradient that passes. has_norm: a BatchNorm stands there.
    """

    value: float
    slope: float
    has_norm: bool


@dataclass(frozen=True)
class GradientMatrix:
    """The linear map from a new unit's fan-out to the gradient of its zero fan-in, at unit slope.

    Attributes:
        matrix: [O*V, C*U] or [O*V, C*U + 1] where the producer has a bias (its gradient is the last column).
        fan_out_shape: shape of one unit's fan-out, (O, *kernel). fan_in_shape: of its fan-in, (C, *kernel).
    """

    matrix: Tensor
    fan_out_shape: tuple[int, ...]
    fan_in_shape: tuple[int, ...]


def gradient_matrix(
    producer: Call, consumer: Call, producer_weight: Tensor, consumer_weight: Tensor, *, centre: bool = False
) -> GradientMatrix:
    """The matrix M with dL/dw_in = M^T w_out for a unit of zero fan-in and unit slope between the two layers.

    Exact for any stride, padding and dilation, borders included: the output gradient is spread back to the hidden
    positions once per kernel position of the consumer, and correlated with the producer's input (the published
    composition of the two kernels is exact only for stride and dilation 1 away from borders; Evci et al., ICLR 2022,
    section 3).

    Args:
        producer: the call of the layer that gains outputs. consumer: of the layer that gains inputs.
        producer_weight: [hidden, C, *kernel]. consumer_weight: [O, hidden, *kernel].
        centre: a BatchNorm in train mode stands between: it removes the mean over batch and positions.
    """
    assert consumer.output_gradient is not None, "the backward pass has not run"
    if not consumer.stride:
        if producer.stride:
            raise GrowthRefused("a convolution followed by a linear layer has no closed-form gradient matrix")
        x, dz = producer.input.flatten(0, -2), consumer.output_gradient.flatten(0, -2)
        spread = dz - dz.mean(0, keepdim=True) if centre else dz
        matrix, per_unit = spread.T @ x, spread.sum(0)
    else:
        spread = _spread_back(producer, consumer, consumer_weight)
        if centre:
            spread = spread - spread.mean(dim=(0, *range(2, spread.dim())), keepdim=True)
        matrix = _weight_gradient(producer, spread, producer_weight).flatten(1)
        per_unit = spread.sum(dim=(0, *range(2, spread.dim())))
    if producer.bias is not None:
        matrix = torch.cat([matrix, per_unit[:, None]], dim=1)
    fan_out = (consumer_weight.shape[0], *consumer_weight.shape[2:])
    return GradientMatrix(matrix, fan_out, tuple(producer_weight.shape[1:]))


def _spread_back(producer: Call, consumer: Call, weight: Tensor) -> Tensor:
    """dL/d(hidden) for hidden units wired to one consumer weight each: [B, O*V, *hidden positions]."""
    kernel, dz = weight.shape[2:], consumer.output_gradient
    assert dz is not None
    outputs, positions = weight.shape[0], kernel.numel()
    one_hot = torch.eye(positions, dtype=dz.dtype, device=dz.device).view(1, positions, *kernel)
    hidden = producer.output.shape[2:]
    reach = [
        (size - 1) * s - 2 * p + d * (k - 1) + 1
        for size, s, p, d, k in zip(
            dz.shape[2:], consumer.stride, consumer.padding, consumer.dilation, kernel, strict=True
        )
    ]
    transposed = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}[len(kernel)]
    return transposed(
        dz,
        one_hot.expand(outputs, *one_hot.shape[1:]).reshape(outputs, positions, *kernel),
        stride=consumer.stride,
        padding=consumer.padding,
        output_padding=[h - r for h, r in zip(hidden, reach, strict=True)],
        groups=outputs,
        dilation=consumer.dilation,
    )


def _weight_gradient(producer: Call, hidden_gradient: Tensor, weight: Tensor) -> Tensor:
    """Gradient of a convolution like the producer with as many outputs as `hidden_gradient` has: [O*V, C, *kernel]."""
    shape = (hidden_gradient.shape[1], *weight.shape[1:])
    _, gradient, _ = torch.ops.aten.convolution_backward(
        hidden_gradient,
        producer.input,
        hidden_gradient.new_empty(shape),
        None,
        list(producer.stride),
        list(producer.padding),
        list(producer.dilation),
        False,
        [0] * len(producer.stride),
        1,
        [False, True, False],
    )
    return gradient


@dataclass
class Measurement:
    """Facts of one growth batch about a model that is left as it was.

    Attributes:
        model: the model before the event. loss: data loss of (outputs, targets). inputs, targets: the growth batch.
        sites: the sites of the coming event; all are measured by one forward and one backward pass.
    """

    model: nn.Module
    loss: Loss
    inputs: Inputs
    targets: Tensor
    sites: tuple[GrowthSite, ...]
    forwards: int = 0  # passes made so far, a backward pass counted as two forwards, for the FLOPs ledger
    _calls: dict[str, Call] | None = field(default=None, repr=False)
    _activations: dict[str, ActivationFacts] | None = field(default=None, repr=False)

    def tensor(self, name: str) -> Tensor:
        """The present values of a parameter."""
        return self.model.get_parameter(name).detach()

    def bias_of(self, site: GrowthSite) -> str | None:
        """The name of the producer's bias in a chain; None where it has none."""
        assert site.chain is not None
        bias = self._all_calls()[site.chain.producer].bias
        return next((name for name, p in self.model.named_parameters() if p is bias), None)

    def gradient_matrix(self, site: GrowthSite) -> GradientMatrix:
        """The gradient matrix of a chain site; see `gradient_matrix`."""
        assert site.chain is not None
        calls = self._all_calls()
        producer, consumer = calls[site.chain.producer], calls[site.chain.consumer]
        return gradient_matrix(
            producer,
            consumer,
            self.tensor(site.chain.producer),
            self.tensor(site.chain.consumer),
            centre="batch_norm" in site.chain.between,
        )

    def activation(self, site: GrowthSite) -> ActivationFacts:
        """f(0) and f'(0) of what stands between producer and consumer of a chain site."""
        if self._activations is None:
            self._activations = self._probe_activations([s for s in self.sites if s.chain is not None])
        return self._activations[site.name]

    def response(self, site: GrowthSite, fan_in: dict[tuple[str, int], Tensor]) -> Tensor:
        """Gradient norms of the zero fan-out of units with the given fan-in, measured on a copy: [K]."""
        assert site.chain is not None
        model = copy.deepcopy(self.model)
        count = next(iter(fan_in.values())).shape[0]
        edit = grow(model, [Growth(site, count, Extension(fan_in))])
        try:
            self._backward(model)
            gradient = model.get_parameter(site.chain.consumer).grad
            assert gradient is not None
            return gradient[:, -count:].transpose(0, 1).flatten(1).norm(dim=1)
        finally:
            edit.undo()

    def _all_calls(self) -> dict[str, Call]:
        if self._calls is None:
            names = {name for site in self.sites if site.chain for name in (site.chain.producer, site.chain.consumer)}
            gradients = [(parameter, parameter.grad) for parameter in self.model.parameters()]
            self._calls = self._backward(self.model, names)
            for parameter, gradient in gradients:
                parameter.grad = gradient
        return self._calls

    def _backward(self, model: nn.Module, watched: Iterable[str] = ()) -> dict[str, Call]:
        self.forwards += 3
        weights = {id(model.get_parameter(name)): name for name in watched}
        with untouched(model), exact_arithmetic(), isolated(0), torch.enable_grad():
            model.train()
            model.zero_grad(set_to_none=True)
            with _Tap(weights) as tap:
                outputs = model(*self.inputs.args, **(self.inputs.kwargs or {}))
            self.loss(outputs, self.targets).backward()
        for call in tap.calls.values():
            call.input, call.output = call.input.detach(), call.output.detach()
        return tap.calls

    def _probe_activations(self, sites: list[GrowthSite]) -> dict[str, ActivationFacts]:
        """Widen a copy by one silent unit per site and watch what becomes of its zero pre-activation, in eval mode."""
        self.forwards += 1
        model = copy.deepcopy(self.model)
        edit = grow(model, [Growth(site, 1) for site in sites])
        try:
            names = {name for site in sites if site.chain for name in (site.chain.producer, site.chain.consumer)}
            weights = {id(lookup(model, name, "parameter")): name for name in names}
            with untouched(model), exact_arithmetic(), isolated(0), torch.enable_grad():
                model.eval()
                with _Tap(weights) as tap:
                    model(*self.inputs.args, **(self.inputs.kwargs or {}))
                return {site.name: _activation_facts(tap, site) for site in sites}
        finally:
            edit.undo()


def _activation_facts(tap: _Tap, site: GrowthSite) -> ActivationFacts:
    assert site.chain is not None
    pre, post = tap.calls[site.chain.producer].output, tap.calls[site.chain.consumer].input
    axis = 1 if tap.calls[site.chain.consumer].stride else -1
    unit = post.select(axis, -1)
    (gradient,) = torch.autograd.grad(unit.sum(), pre, retain_graph=True)
    return ActivationFacts(
        value=float(unit.detach().abs().max()),
        slope=float(gradient.select(axis, -1).abs().max()),
        has_norm="batch_norm" in site.chain.between,
    )
