"""One pass of the growth batch through a chain: what its two layers saw, with or without the way to differentiate."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite, copy_of
from growkit.growth.initializers.widened import check_gradients, loss_of
from growkit.growth.statistics import Measurement
from growkit.growth.statistics.tap import Call, Tap

__all__ = ["ChainPass", "chain_pass", "patches"]


@dataclass(frozen=True)
class ChainPass:
    """A pass in train mode through a copy of the model.

    Attributes:
        model: the copy.
        producer, consumer: the calls of the two layers, part of autograd's graph.
        hidden_gradient: dL/d(what the consumer read).
    """

    model: nn.Module
    producer: Call
    consumer: Call
    hidden_gradient: Tensor


def chain_pass(measurement: Measurement, site: GrowthSite) -> ChainPass:
    """Run the growth batch, and the backward pass as far as the consumer's input.

    Raises:
        TrainingError: the loss or a gradient is not finite.
        GrowthRefused: the loss does not depend on the consumer.
    """
    assert site.chain is not None
    model = copy_of(measurement.model)
    model.zero_grad()
    names = (site.chain.producer, site.chain.consumer)
    with Tap({id(model.get_parameter(name)): name for name in names}) as tap:
        loss = loss_of(model, measurement, site)
    producer, consumer = (tap.calls[name] for name in names)
    (gradient,) = torch.autograd.grad(loss, consumer.input, retain_graph=True, allow_unused=True)
    measurement.forwards += 2
    if gradient is None or consumer.output_gradient is None:
        raise GrowthRefused(
            f"the loss must depend on what {site.chain.consumer} reads for its units to have a gradient, and here it "
            "does not, or goes another way (padding='same' of an even kernel)"
        )
    check_gradients([gradient, consumer.output_gradient], site)
    return ChainPass(model, producer, consumer, gradient.detach())


def patches(call: Call, weight: Tensor) -> Tensor:
    """What a layer multiplies its weight with at every output: [positions of the batch, C*kernel (+ 1)].

    Args:
        call: of a linear layer or convolution.
        weight: its weight [O, C, *kernel].

    Returns:
        One row for each sample and output position; the last column is 1 where the layer has a bias.
    """
    inputs = call.input.detach()
    if call.stride:
        channels, kernel = weight.shape[1], weight.shape[2:]
        size = weight[0].numel()
        one_hot = torch.eye(size, dtype=inputs.dtype, device=inputs.device).view(size, channels, *kernel)
        convolve = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[len(kernel)]
        inputs = convolve(inputs, one_hot, stride=call.stride, padding=call.padding, dilation=call.dilation)
        inputs = inputs.movedim(1, -1)
    rows = inputs.flatten(0, -2)
    return rows if call.bias is None else torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
