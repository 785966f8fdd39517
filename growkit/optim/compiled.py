"""The step of AdaBound as one kernel: torch.compile reads every entry once and writes it once.

The kernel is made for tensors of any length and gets its numbers in a tensor, so that neither growth nor a schedule
makes it anew. It takes several parameters, for its call costs as much as the step of a small one; places that nobody
needs are filled with tensors of nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from itertools import chain

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from growkit.errors import UserInputError
from growkit.optim.rates import Rates

__all__ = ["LEAST", "compiled_kernel"]

LEAST = 32_768  # entries from which on a kernel costs less than its call
TOGETHER = 4  # parameters; twice as many save little more and take twice as long to compile

Kernel = Callable[[Sequence[tuple[Tensor, ...]], Rates], None]


@cache
def compiled_kernel(device: torch.device, dtype: torch.dtype, amsbound: bool) -> Kernel:
    """The kernel for parameters of one kind, compiled here and now, which takes seconds.

    It takes as many as there are, each with its gradient and its means, all of one dimension.

    Args:
        device: of the parameters.
        dtype: of the parameters.
        amsbound: whether there is a largest mean square.

    Raises:
        UserInputError: it cannot be compiled, as without a compiler.
    """
    step, width = (_steps_of_amsbound, 5) if amsbound else (_steps, 4)
    step = torch.compile(step, dynamic=True, fullgraph=True)

    def group_of(size: int) -> tuple[Tensor, ...]:
        return tuple(torch.zeros(size, device=device, dtype=dtype) for _ in range(width))

    with torch.inference_mode(False):
        nothing = [group_of(2) for _ in range(TOGETHER)]
    # lengths that are alike would be taken for one and the same
    trial = [group_of(2 * LEAST + number) for number in range(TOGETHER)]

    def kernel(groups: Sequence[tuple[Tensor, ...]], rates: Rates) -> None:
        numbers = _numbers(rates, device, dtype)
        for start in range(0, len(groups), TOGETHER):
            some = groups[start : start + TOGETHER]
            # .data: that a tensor is a part of another, and of which length, would be looked at and make a new kernel
            step(numbers, *[one.data for one in chain(*some, *nothing[len(some) :])])
            increment_version([one for group in some for one in (group[0], *group[2:])])

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


def _steps(numbers: Tensor, *tensors: Tensor) -> None:
    for first in range(0, len(tensors), 4):
        parameter, gradient, mean, square = tensors[first : first + 4]
        _moments(numbers, parameter, gradient, mean, square)
        _descend(numbers, parameter, mean, square)


def _steps_of_amsbound(numbers: Tensor, *tensors: Tensor) -> None:
    for first in range(0, len(tensors), 5):
        parameter, gradient, mean, square, largest = tensors[first : first + 5]
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
