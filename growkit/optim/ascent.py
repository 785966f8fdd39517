"""Where SAM and ASAM look: the step to the largest loss nearby, to first order.

Foret, Kleiner, Mobahi and Neyshabur, ICLR 2021, equation 2; Kwon, Kim, Park and Choi, ICML 2021. With T = 1 for SAM:

    p = 2:    e = rho T^2 g / |T g|        p = infinity:    e = rho T sign(g)

ASAM's T makes the step follow every rescaling of the weights that keeps the function: |w| + eta for each weight, or the
norm of its filter + eta. Biases and shifts of norms keep T = 1, as in the code that its authors released.
"""

# torch has no public names for its operations on lists
# pyright: reportPrivateImportUsage=false

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SMALL = 16_384  # entries of a tensor

__all__ = ["Pull", "norm_of", "pulls_of", "sensitive_steps"]


@dataclass(frozen=True)
class Pull:
    """What one list of alike parameters adds to the norm, and where it is pulled.

    Attributes:
        parameters: in their order.
        direction: T^2 g, or T sign(g) for the infinity norm; of each parameter.
        measured: T g, of which the norm is taken; for the infinity norm, which needs none, g.
    """

    parameters: list[Tensor]
    direction: list[Tensor]
    measured: list[Tensor]


def pulls_of(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    normalised: Sequence[bool],
    *,
    infinite: bool,
    eta: float,
    filters: bool,
) -> list[Pull]:
    """The direction of the ascent for parameters with gradients.

    Args:
        parameters: of any devices and types.
        gradients: dense ones; they are not changed.
        normalised: for which of them T is that of ASAM.
        infinite: the norm is the largest entry.
        eta: added to T.
        filters: T of weights with more than two dimensions is the norm of their filter (first dimension).
    """
    alike: dict[tuple[torch.device, torch.dtype, bool], list[tuple[Tensor, Tensor]]] = {}
    for parameter, gradient, special in zip(parameters, gradients, normalised, strict=True):
        alike.setdefault((parameter.device, parameter.dtype, special), []).append((parameter, gradient))
    return [
        _pull([one for one, _ in pairs], [one for _, one in pairs], infinite, eta if special else None, filters)
        for (_, _, special), pairs in alike.items()
    ]


def _pull(parameters: list[Tensor], gradients: list[Tensor], infinite: bool, eta: float | None, filters: bool) -> Pull:
    sizes = None if eta is None else _sizes(parameters, eta, filters)
    if infinite:
        signs = list(torch._foreach_sign(gradients))
        return Pull(parameters, signs if sizes is None else list(torch._foreach_mul(sizes, signs)), gradients)
    if sizes is None:
        return Pull(parameters, gradients, gradients)
    once = torch._foreach_mul(sizes, gradients)
    torch._foreach_mul_(sizes, once)
    return Pull(parameters, sizes, list(once))


def _sizes(parameters: list[Tensor], eta: float, filters: bool) -> list[Tensor]:
    """T of each entry."""
    if not filters:
        sizes = list(torch._foreach_abs(parameters))
        torch._foreach_add_(sizes, eta)
        return sizes
    return [_filter_norms(one) + eta if one.dim() > 2 else one.detach().abs() + eta for one in parameters]


def _filter_norms(weight: Tensor) -> Tensor:
    weight = weight.detach()
    norms = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=_wide(weight.dtype)).to(weight.dtype)
    return norms.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight).clone()


def _wide(dtype: torch.dtype) -> torch.dtype:
    """Halves are squared in fp32: 65504 is soon passed."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def norm_of(pulls: Sequence[Pull]) -> float:
    """The root of the sum of squares of what is measured, over all of them, read by the host."""
    squares = 0.0
    for pull in pulls:
        dtype = _wide(pull.measured[0].dtype)
        small = [one for one in pull.measured if one.numel() <= SMALL]
        large = pull.measured if not small else [one for one in pull.measured if one.numel() > SMALL]
        if small:  # copied into one, for a norm costs more than the copy of a small tensor
            squares += float(torch.linalg.vector_norm(_flatten(small), dtype=dtype)) ** 2
        if large:
            squares += float(torch.linalg.vector_norm(torch.stack(torch._foreach_norm(large, 2, dtype=dtype)))) ** 2
    return math.sqrt(squares)


def _flatten(tensors: list[Tensor]) -> Tensor:
    return torch.cat([one.reshape(-1) for one in tensors]) if len(tensors) > 1 else tensors[0].reshape(-1)


def sensitive_steps(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    normalised: Sequence[bool],
    radii: Sequence[float],
    *,
    infinite: bool,
    etas: Sequence[float],
    filters: Sequence[bool],
) -> dict[Tensor, Tensor]:
    """The steps themselves, as functions of parameters and gradients that autograd can follow.

    Args:
        parameters: in their order.
        gradients: made with create_graph.
        normalised: for which of them T is that of ASAM.
        radii: rho of each parameter.
        infinite: the norm is the largest entry.
        etas: what is added to T of each.
        filters: for which T is the norm of a filter.
    """
    sizes = [
        _size(w, eta, by_filter) if special else torch.ones_like(w)
        for w, special, eta, by_filter in zip(parameters, normalised, etas, filters, strict=True)
    ]
    if infinite:
        moves = [size * gradient.sign() for size, gradient in zip(sizes, gradients, strict=True)]
        return {w: rho * move for w, rho, move in zip(parameters, radii, moves, strict=True)}
    once = [size * gradient for size, gradient in zip(sizes, gradients, strict=True)]
    if not once:
        return {}
    length = torch.stack([one.square().sum() for one in once]).sum().sqrt()
    if not float(length.detach()):
        return {w: torch.zeros_like(w) for w in parameters}
    return {w: rho * size * one / length for w, rho, size, one in zip(parameters, radii, sizes, once, strict=True)}


def _size(weight: Tensor, eta: float, by_filter: bool) -> Tensor:
    if not by_filter or weight.dim() <= 2:
        return weight.abs() + eta
    norms = torch.linalg.vector_norm(weight.flatten(1), dim=1)
    return norms.view(-1, *[1] * (weight.dim() - 1)).expand_as(weight) + eta
