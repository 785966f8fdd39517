"""How strongly a model's outputs react to the new units of each site: what no output shows, no check can notice.

One backward pass tells it for all sites at once. To first order, a wrong entry where the new units must be silent moves
the outputs by its size times the gradient; its size is that of the old entries beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from growkit.device import exact_arithmetic
from growkit.graph import GrowthSite
from growkit.rng import global_state, isolated
from growkit.surgery.dropout import WithoutDropout
from growkit.surgery.values import lookup
from growkit.surgery.verify import Inputs, Observation, at_least_fp32, function_change, live_entries, untouched

__all__ = ["brighten", "control", "reactions"]

WELL_VISIBLE = 1e-2
LARGEST_FACTOR = 2.0**60
SEEDS = 16  # both samples of a batch of two miss a branch of survival 1/2 in all of them once in 4e9


Entries = Mapping[str, Sequence[tuple[nn.Parameter, Tensor]]]
"""By site, its parameters with the masks of their new entries."""


def reactions(
    model: nn.Module, inputs: Inputs, entries: Entries, before: Sequence[Tensor] = ()
) -> tuple[dict[str, float], float]:
    """By site, how far wrong new entries would move the outputs, relative to the largest output.

    Outputs are those in train mode without dropout; their mean over all entries counts, as the root of squares. It is 0
    where no gradient reaches the new entries of a site, or one that is not finite. Where that may be chance, in a
    branch that is left out at random (stochastic depth), other random numbers are drawn.

    Args:
        model: a scratch copy after an edit.
        inputs: a batch.
        entries: of the edit.
        before: the outputs in train mode before the edit, without gradients.

    Returns:
        The reactions, and how far the outputs are from `before` where gradients are recorded.
    """
    found, change = dict.fromkeys(entries, 0.0), 0.0
    for seed in range(SEEDS):
        missing = {site: parameters for site, parameters in entries.items() if not found[site]}
        some, by_chance, outputs = _reactions(model, inputs, missing, seed)
        if seed == 0 and before:
            change = function_change(Observation([], list(before)), Observation([], outputs)).train
        found |= some
        if all(found.values()) or not by_chance:
            break
    return found, change


def _reactions(
    model: nn.Module, inputs: Inputs, entries: Entries, seed: int
) -> tuple[dict[str, float], bool, list[Tensor]]:
    """The reactions for one seed, whether any random number was drawn, and the outputs."""
    with untouched(model), exact_arithmetic(), torch.enable_grad(), isolated(seed), WithoutDropout():
        drawn = global_state()
        model.train()
        model.zero_grad()
        outputs = [at_least_fp32(output) for output in inputs.call(model)]
        by_chance = global_state() != drawn
        if any(output.requires_grad for output in outputs):  # else all weights are frozen
            torch.stack([_projection(output) for output in outputs if output.requires_grad]).sum().backward()
    sizes: dict[nn.Parameter, float] = {}
    found = {
        site: math.sqrt(sum(_reaction(parameter, mask, sizes) for parameter, mask in parameters))
        for site, parameters in entries.items()
    }
    model.zero_grad()
    reactions = {site: value if math.isfinite(value) else 0.0 for site, value in found.items()}
    return reactions, by_chance, [output.detach() for output in outputs]


@torch.no_grad()
def control(model: nn.Module, inputs: Inputs, entries: Entries, before: Sequence[Tensor]) -> float:
    """The change of the outputs in eval mode when no new entry is silent, which makes the edit wrong; for good.

    Args:
        model: a scratch copy after a right edit.
        inputs: a batch.
        entries: of the edit.
        before: the outputs in eval mode before the edit.
    """
    changed = [one for parameters in entries.values() for one in parameters]
    largest = max((parameter.numel() for parameter, _ in changed), default=0)
    noise = torch.randn(largest, generator=torch.Generator().manual_seed(0))
    for parameter, mask in changed:
        wrong = noise[: parameter.numel()].view(parameter.shape).to(parameter)
        parameter.addcmul_(mask.to(parameter.dtype), wrong, value=0.1)
    with untouched(model), exact_arithmetic(), isolated(0), WithoutDropout():
        model.eval()
        after = [output.to(old.dtype) for output, old in zip(inputs.call(model), before, strict=True)]
    return function_change(Observation(list(before), []), Observation(after, [])).eval


def _projection(output: Tensor) -> Tensor:
    """On a random direction, so that its square is on average the mean square of the entries, the largest being 1."""
    live = live_entries(output)
    largest = output.detach()[live].abs().max().clamp_min(torch.finfo(output.dtype).tiny)
    seen = torch.where(live, output, 0.0)
    return (seen * torch.randn_like(output)).sum() / (largest * math.sqrt(int(live.sum())))


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32))


def _reaction(parameter: nn.Parameter, mask: Tensor, sizes: dict[nn.Parameter, float]) -> float:
    """The mean square of the change that new entries of the size of all others bring about."""
    if parameter.grad is None:
        return 0.0
    gradient = parameter.grad.to_dense() if parameter.grad.layout != torch.strided else parameter.grad
    if parameter not in sizes:
        sizes[parameter] = float(_norm(parameter.detach()))
        sizes[parameter] *= sizes[parameter] / max(parameter.numel(), 1)
    return sizes[parameter] * float(_norm(gradient * mask)) ** 2


@torch.no_grad()
def brighten(model: nn.Module, found: Sequence[tuple[GrowthSite, float]]) -> list[tuple[Tensor, Tensor]]:
    """Enlarge, in place, the weights that read the units of sites with weak reactions, so that outputs show them.

    Args:
        model: a scratch copy.
        found: sites with their reactions.

    Returns:
        The tensors that were changed, with the values before: none where a site is silent because nothing is written to
        its new units.
    """
    factors: dict[str, float] = {}
    for site, reaction in found:
        if any(remedy.silences_writers for remedy in site.remedies) or reaction == 0.0:
            continue
        factor = min(2.0 ** round(math.log2(WELL_VISIBLE / reaction)), LARGEST_FACTOR)
        for member in site.consumers:
            if member.kind == "parameter":
                factors[member.names[0]] = max(factor, factors.get(member.names[0], 1.0))
    tensors = [(lookup(model, name, "parameter"), factor) for name, factor in factors.items()]
    saved = [(tensor, tensor.data) for tensor, _ in tensors]
    for tensor, factor in tensors:
        tensor.data = tensor.data * factor
    return saved
