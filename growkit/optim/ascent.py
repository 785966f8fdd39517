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
from typing import NamedTuple

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from growkit.optim.blocks import are_even, blocks, scratch

__all__ = ["Pull", "WalkedPull", "norm_of", "pulls_of", "sensitive_steps"]

SMALL = 16_384  # entries of a tensor


class Pull(NamedTuple):
    """What one list of alike parameters adds to the norm, and where it is pulled.

    Attributes:
        parameters: in their order.
        direction: T^2 g, or T sign(g) for the infinity norm; of each parameter.
        measured: T g, of which the norm is taken; for the infinity norm, which needs none, g.
    """

    parameters: list[Tensor]
    direction: list[Tensor]
    measured: list[Tensor]

    def squares(self) -> float:
        """The sum of squares of what is measured, read by the host."""
        dtype = _wide(self.measured[0].dtype)
        small = [one for one in self.measured if one.numel() <= SMALL]
        found = 0.0
        if small:  # copied into one, for a norm costs more than the copy of a small tensor
            together = _flatten_dense_tensors(small)
            found += torch.linalg.vector_norm(together if together.dtype == dtype else together.to(dtype)).item() ** 2
        if len(small) < len(self.measured):
            large = [one for one in self.measured if one.numel() > SMALL]
            found += torch.linalg.vector_norm(torch.stack(torch._foreach_norm(large, 2, dtype=dtype))).item() ** 2
        return found

    def move(self, factor: float) -> None:
        """Add the direction times a factor to the parameters."""
        torch._foreach_add_(self.parameters, self.direction, alpha=factor)


class WalkedPull(NamedTuple):
    """That of one large parameter on a CPU with T = |w| + eta, worked out block by block, twice.

    Attributes:
        parameters: the one.
        gradient: of the parameter.
        eta: added to T.
    """

    parameters: list[Tensor]
    gradient: Tensor
    eta: float

    def squares(self) -> float:
        """The sum of squares of T g."""
        found = 0.0
        for weight, gradient in blocks((self.parameters[0], self.gradient)):
            sizes = self._sizes(weight)
            found += torch.linalg.vector_norm(sizes.mul_(gradient), dtype=_wide(sizes.dtype)).item() ** 2
        return found

    def move(self, factor: float) -> None:
        """Add T^2 g times a factor to the parameter."""
        for weight, gradient in blocks((self.parameters[0], self.gradient)):
            weight.addcmul_(self._sizes(weight).square_(), gradient, value=factor)

    def _sizes(self, weight: Tensor) -> Tensor:
        return torch.abs(weight, out=scratch(len(weight), weight.dtype)).add_(self.eta)


def pulls_of(
    parameters: list[Tensor], gradients: list[Tensor], *, eta: float | None, infinite: bool, filters: bool
) -> list[Pull | WalkedPull]:
    """The direction of the ascent for parameters with gradients.

    Args:
        parameters: of one device and type.
        gradients: dense ones; they are not changed.
        eta: added to the T of ASAM; None for T = 1.
        infinite: the norm is the largest entry.
        filters: T of weights with more than two dimensions is the norm of their filter (first dimension).
    """
    if infinite:
        signs = list(torch._foreach_sign(gradients))
        if eta is not None:
            torch._foreach_mul_(signs, _sizes(parameters, eta, filters))
        return [Pull(parameters, signs, gradients)]
    if eta is None:
        return [Pull(parameters, gradients, gradients)]
    walked: list[Pull | WalkedPull] = []
    others: tuple[list[Tensor], list[Tensor]] = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if not filters and parameter.is_cpu and parameter.numel() > SMALL and are_even((parameter, gradient)):
            walked.append(WalkedPull([parameter], gradient, eta))
        else:
            others[0].append(parameter)
            others[1].append(gradient)
    return [*walked, _adaptive_pull(*others, eta, filters)] if others[0] else walked


def _adaptive_pull(parameters: list[Tensor], gradients: list[Tensor], eta: float, filters: bool) -> Pull:
    sizes = _sizes(parameters, eta, filters)
    once = list(torch._foreach_mul(sizes, gradients))
    torch._foreach_mul_(sizes, once)
    return Pull(parameters, sizes, once)


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


def norm_of(pulls: Sequence[Pull | WalkedPull]) -> float:
    """The root of the sum of squares of what is measured, over all of them."""
    return math.sqrt(sum([pull.squares() for pull in pulls]))


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
