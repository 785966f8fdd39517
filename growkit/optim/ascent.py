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
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from growkit.optim.blocks import are_even, blocks, scratch

__all__ = [
    "LEAST",
    "Pull",
    "WalkedPull",
    "as_reals",
    "in_units",
    "largest_entry",
    "norm_of",
    "pulls_of",
    "sensitive_steps",
]

SMALL = 16_384  # entries of a tensor
LEAST = 1e-15  # of norms: what squares in fp32 lose below their least number is nothing beside it
HALVES = (torch.float16, torch.bfloat16)


class Pull(NamedTuple):
    """What one list of alike parameters adds to the norm, and where it is pulled.

    Attributes:
        parameters: in their order.
        direction: T^2 g, or T sign(g) for the infinity norm; of each parameter.
        measured: T g, of which the norm is taken, complex entries as pairs; for the infinity norm, which needs none, g.
    """

    parameters: list[Tensor]
    direction: list[Tensor]
    measured: list[Tensor]

    def squares(self) -> float:
        """The sum of squares of what is measured, at least in fp32, read by the host."""
        own = self.measured[0].dtype
        dtype = torch.float32 if own in HALVES else own
        norms = torch._foreach_norm(self.measured, 2, dtype=dtype)
        on_host = [one.item() for one in norms] if norms[0].is_cpu else torch.stack(norms).tolist()  # read at once
        return sum([one * one for one in on_host])

    def move(self, factor: float) -> None:
        """Add the direction times a factor to the parameters."""
        if self.parameters[0].dtype in HALVES:  # neither the factor nor its product need fit into one
            for parameter, direction in zip(self.parameters, self.direction, strict=True):
                parameter.add_(direction.float() * factor)
        else:
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
        """The sum of squares of T g, in the type of the weights, read by the host."""
        found = 0.0
        for weight, gradient in blocks((self.parameters[0], self.gradient)):
            norm = torch.linalg.vector_norm(self._sizes(weight).mul_(gradient)).item()
            found += norm * norm
        return found

    def move(self, factor: float) -> None:
        """Add T^2 g times a factor to the parameter."""
        for weight, gradient in blocks((self.parameters[0], self.gradient)):
            weight.addcmul_(self._sizes(weight).square_(), gradient, value=factor)

    def _sizes(self, weight: Tensor) -> Tensor:
        return torch.abs(weight, out=scratch(len(weight), weight.dtype)).add_(self.eta)


def pulls_of(
    parameters: list[Tensor],
    gradients: list[Tensor],
    *,
    eta: float | None,
    infinite: bool,
    filters: Mapping[Tensor, int],
) -> list[Pull | WalkedPull]:
    """The direction of the ascent for parameters with gradients.

    Args:
        parameters: of one device and type; complex ones for T = 1 alone.
        gradients: dense ones; they are not changed.
        eta: added to the T of ASAM; None for T = 1.
        infinite: the norm is the largest entry.
        filters: along which dimension filters lie, for the weights whose T is the norm of their filter.
    """
    if infinite:
        signs = list(torch._foreach_sign(gradients))
        if eta is not None:
            signs = [size * sign for size, sign in zip(_sizes(parameters, eta, filters), signs, strict=True)]
        return [Pull(parameters, signs, gradients)]
    if eta is None:
        measured = [as_reals(one) for one in gradients] if gradients[0].dtype.is_complex else gradients
        return [Pull(parameters, gradients, measured)]
    walked: list[Pull | WalkedPull] = []
    others: tuple[list[Tensor], list[Tensor]] = [], []
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if parameter not in filters and _is_walked(parameter, gradient):
            walked.append(WalkedPull([parameter], gradient, eta))
        else:
            others[0].append(parameter)
            others[1].append(gradient)
    return [*walked, _adaptive_pull(*others, eta, filters)] if others[0] else walked


def _is_walked(parameter: Tensor, gradient: Tensor) -> bool:
    """Whether it is a large one in the memory of a CPU, and no half, whose products would not fit into a block."""
    return (
        parameter.is_cpu
        and parameter.numel() > SMALL
        and parameter.dtype not in HALVES
        and are_even((parameter, gradient))
    )


def _adaptive_pull(
    parameters: list[Tensor], gradients: list[Tensor], eta: float, filters: Mapping[Tensor, int]
) -> Pull:
    sizes = _sizes(parameters, eta, filters)
    once = list(torch._foreach_mul(sizes, [_wide(gradient) for gradient in gradients]))
    torch._foreach_mul_(sizes, once)
    return Pull(parameters, sizes, once)


def _sizes(parameters: list[Tensor], eta: float, filters: Mapping[Tensor, int]) -> list[Tensor]:
    """T of each entry, in fp32 for halves."""
    if not filters:
        sizes = list(torch._foreach_abs([_wide(one.detach()) for one in parameters]))
        torch._foreach_add_(sizes, eta)
        return sizes
    return [_size(_wide(one.detach()), eta, filters.get(one)).contiguous() for one in parameters]


def _wide(tensor: Tensor) -> Tensor:
    """Halves are multiplied and squared in fp32: 65504 is soon passed."""
    return tensor.float() if tensor.dtype in HALVES else tensor


def norm_of(pulls: Sequence[Pull | WalkedPull]) -> float:
    """The root of the sum of squares of what is measured, over all of them.

    Below `LEAST`, or infinite, it may be that of squares which the type cannot hold, though it holds the entries.
    """
    squares = 0.0
    for pull in pulls:
        squares += pull.squares()
    return math.sqrt(squares)


def as_reals(tensor: Tensor) -> Tensor:
    """Complex entries as pairs of real ones; real ones as they are."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def largest_entry(tensors: Sequence[Tensor]) -> float:
    """The largest size of a real entry, read by the host; NaN if one is not finite."""
    dense = [one if one.layout == torch.strided else one.to_dense() for one in tensors if one.numel()]
    sizes = [as_reals(one).abs().max().item() for one in dense]
    return max(sizes, default=0.0) if all(map(math.isfinite, sizes)) else math.nan


def in_units(tensor: Tensor, unit: float) -> Tensor:
    """A tensor in float64, divided by the size that shall be 1."""
    if tensor.is_complex():
        return torch.view_as_complex(in_units(as_reals(tensor), unit))
    return tensor.double() / tensor.new_tensor(unit, dtype=torch.float64)  # a number's reciprocal may be infinite


def sensitive_steps(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    normalised: Sequence[bool],
    radii: Sequence[float],
    *,
    infinite: bool,
    etas: Sequence[float],
    filters: Mapping[Tensor, int],
) -> dict[Tensor, Tensor]:
    """The steps themselves, as functions of parameters and gradients that autograd can follow; in fp32 for halves.

    Args:
        parameters: in their order.
        gradients: made with create_graph.
        normalised: for which of them T is that of ASAM.
        radii: rho of each parameter, less than 0 where the loss is climbed.
        infinite: the norm is the largest entry.
        etas: what is added to T of each.
        filters: along which dimension filters lie, for the weights whose T is the norm of their filter.
    """
    sizes = [
        _size(_wide(w), eta, filters.get(w)) if special else torch.ones_like(_wide(w))
        for w, special, eta in zip(parameters, normalised, etas, strict=True)
    ]
    wide = [_wide(gradient) for gradient in gradients]
    if infinite:
        moves = [size * gradient.sign() for size, gradient in zip(sizes, wide, strict=True)]
        return {w: rho * move for w, rho, move in zip(parameters, radii, moves, strict=True)}
    once = [size * gradient for size, gradient in zip(sizes, wide, strict=True)]
    if not once:
        return {}
    unit = _largest_of(once)  # the steps are the same for every unit of the gradients, so are their derivatives
    if unit is None:
        return {w: torch.zeros_like(w) for w in parameters}
    once = [one / unit for one in once]
    length = torch.stack([as_reals(one).square().sum() for one in once]).sum().sqrt()
    return {w: rho * size * one / length for w, rho, size, one in zip(parameters, radii, sizes, once, strict=True)}


def _largest_of(tensors: Sequence[Tensor]) -> Tensor | None:
    """The largest size of a real entry, infinite or NaN if one is; None where all are 0."""
    sizes = [as_reals(one.detach()).abs().max() for one in tensors if one.numel()]
    largest = torch.stack(sizes).max() if sizes else None
    return largest if largest is not None and float(largest) else None


def _size(weight: Tensor, eta: float, filter_dim: int | None) -> Tensor:
    """T of each entry, so that autograd can follow."""
    if filter_dim is None:
        return weight.abs() + eta
    others = [dim for dim in range(weight.dim()) if dim != filter_dim]
    return torch.linalg.vector_norm(weight, dim=others, keepdim=True).expand_as(weight) + eta
