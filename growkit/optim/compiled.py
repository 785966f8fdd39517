"""The step of AdaBound as one kernel: torch.compile reads every entry once and writes it once.

The kernel is made for tensors of any length and gets its numbers in a tensor, so that neither growth nor a schedule
makes it anew.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache

import torch
from torch import Tensor

from growkit.errors import UserInputError
from growkit.optim.rates import Rates

__all__ = ["LEAST", "compiled_kernel"]

LEAST = 32_768  # entries from which on a kernel costs less than its call

Kernel = Callable[[tuple[Tensor, ...], Rates], None]


@cache
def compiled_kernel(device: torch.device, dtype: torch.dtype, amsbound: bool) -> Kernel:
    """The kernel for parameters of one kind, compiled here and now, which takes seconds.

    Args:
        device: of the parameters.
        dtype: of the parameters.
        amsbound: whether there is a largest mean square.

    Raises:
        UserInputError: it cannot be compiled, as without a compiler.
    """
    step = torch.compile(_step_of_amsbound if amsbound else _step, dynamic=True, fullgraph=True)

    def kernel(group: tuple[Tensor, ...], rates: Rates) -> None:
        step(_numbers(rates, device, dtype), *group)

    trial = tuple(torch.ones(2 * LEAST, device=device, dtype=dtype) for _ in range(5 if amsbound else 4))
    try:
        with torch.no_grad():
            kernel(trial, TRIAL)
    except Exception as error:
        raise UserInputError(
            f"compile=True needs a compiler for {device.type} that torch.compile can use, got {_reason(error)}; "
            f"install one (for CPUs g++, or name it in CXX), or leave compile out"
        ) from error
    return kernel


TRIAL = Rates(1e-3, 1e-3, 1e-3, 0.9, 0.999, 1e-8, 1.0, 0.0, 0.0, maximize=False)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason'}"


@lru_cache(maxsize=8)
def _numbers(rates: Rates, device: torch.device, dtype: torch.dtype) -> Tensor:
    """In the type of the parameters, for others would be converted at every entry; complements are taken before."""
    return torch.tensor(
        [
            1.0 - rates.beta1,
            rates.beta2,
            1.0 - rates.beta2,
            rates.eps,
            rates.least_root,
            rates.largest_root,
            -rates.scale * rates.step,
            rates.decay,
            1.0 - rates.shrinkage,
            -1.0 if rates.maximize else 1.0,
        ],
        dtype=dtype,
        device=device,
    )


def _step(numbers: Tensor, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor) -> None:
    _moments(numbers, parameter, gradient, mean, square)
    _descend(numbers, parameter, mean, square)


def _step_of_amsbound(
    numbers: Tensor, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, largest: Tensor
) -> None:
    _moments(numbers, parameter, gradient, mean, square)
    largest.copy_(torch.maximum(largest, square))
    _descend(numbers, parameter, mean, largest)


def _moments(numbers: Tensor, parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor) -> None:
    towards_gradient, beta2, of_square, decay, sign = (*numbers[:3], numbers[7], numbers[9])
    gradient = gradient * sign + decay * parameter
    mean.copy_(mean + (gradient - mean) * towards_gradient)
    square.copy_(beta2 * square + of_square * gradient * gradient)


def _descend(numbers: Tensor, parameter: Tensor, mean: Tensor, square: Tensor) -> None:
    eps, least, largest, factor, kept = (*numbers[3:7], numbers[8])
    roots = torch.clamp(square.sqrt() + eps, least, largest)
    parameter.copy_(parameter * kept + factor * mean / roots)
