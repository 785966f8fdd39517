"""A perturbed copy of a model to try edits on, on which weights that are zero at first hide nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from growkit.errors import ModelError
from growkit.graph import attributes_kept, copy_of
from growkit.rng import isolated
from growkit.surgery.caches import caches_of
from growkit.surgery.verify import Inputs

__all__ = ["perturb", "scratch_copy"]


@contextmanager
def scratch_copy(model: nn.Module, inputs: Inputs) -> Iterator[nn.Module]:
    """A perturbed copy to try things on; where a model cannot be copied, itself, put back to the last bit."""
    try:
        clone = copy_of(model)
    except ModelError:
        with _borrowed(model):
            perturb(model, inputs)
            yield model
        return
    clone.zero_grad()
    for cache in caches_of(clone, inputs):  # made of other weights
        cache.apply()
    perturb(clone, inputs)
    yield clone


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    tensors = [*model.parameters(), *model.buffers()]
    saved = [(tensor, tensor.data, tensor.grad) for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.clone()
    try:
        yield
    finally:
        for tensor, values, gradient in saved:
            tensor.data, tensor.grad = values, gradient


@torch.no_grad()
def perturb(model: nn.Module, inputs: Inputs | None = None) -> None:
    """Move all weights a little: a model full of zeros (zero-initialised residual branches) would pass any check.

    The running statistics of norms are moved too; given `inputs`, they are set to those of the batch before: with the
    ones of a new model, what the first layers do may be lost on the way.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(noise(parameter), alpha=0.02)
    if inputs is not None:
        _calibrate(model, inputs)
    buffers = dict(model.named_buffers())
    for name, buffer in buffers.items():
        if name.endswith("running_mean"):  # by a part of the deviation: more would go through many layers like a storm
            variance = buffers.get(name.removesuffix("mean") + "var")
            deviation = variance.clamp_min(0.0).sqrt() if variance is not None else 1.0
            buffer.add_(0.05 * noise(buffer) * deviation)
    for name, buffer in buffers.items():
        if name.endswith("running_var"):
            buffer.mul_(1.0 + 0.2 * noise(buffer).tanh())


def _calibrate(model: nn.Module, inputs: Inputs) -> None:
    """One pass in train mode in which running statistics forget what was.

    A channel that hardly varies on a small batch would be blown up by whatever other values it sees in eval mode, and
    rounding with it, so no variance is left below the mean of its layer.
    """
    norms = [(module, module.momentum) for module in model.modules() if isinstance(module, _NormBase)]
    modes = [(module, module.training) for module in model.modules()]
    if not norms:
        return
    try:
        for norm, _ in norms:
            norm.momentum = 1.0
        model.train()
        with attributes_kept(model), isolated(0), contextlib.suppress(Exception):  # the trial reports what fails
            inputs.call(model)
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
    for norm, _ in norms:
        variance = norm.running_var
        if variance is not None and bool(torch.isfinite(variance).all()):
            variance.clamp_(min=float(variance.mean()))
