"""Splitting: a unit becomes two that lie a step to either side of it, where that lowers the loss to second order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from growkit.config.growth import SplittingSettings
from growkit.device import exact_arithmetic
from growkit.errors import GrowthRefused, GrowthWaits
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.chain_pass import chain_pass
from growkit.growth.initializers.net2wider import copies_of
from growkit.growth.initializers.norms import mean_norm
from growkit.growth.initializers.units import UnitPlaces
from growkit.growth.initializers.widened import check_gradients
from growkit.growth.statistics import Measurement

__all__ = ["Splitting", "lowest_eigenpairs"]

LANCZOS_STEPS = 24  # exact for fan-ins of up to as many weights


@dataclass(frozen=True)
class Splitting(Initializer):
    """Units theta become theta + e v and theta - e v with half of the fan-out each (Liu, Wu and Wang, NeurIPS 2019).

    With S = E[dL/dh d^2h/dtheta^2] of a unit h(theta) the loss changes by e^2 v'Sv / 2 (their Theorem 2.4), so v is the
    eigenvector of the lowest eigenvalue, and the units with the lowest ones are split. Exact, through whatever stands
    between the layers in train mode, by products with S for all units at once (Lanczos with full reorthogonalisation);
    the paper's cheaper gradient form is not built. e = epsilon times the mean norm of the fan-ins.
    """

    settings: SplittingSettings = SplittingSettings()
    name: ClassVar[str] = "splitting"
    preserves: ClassVar[bool] = False

    def refuses(self, site: GrowthSite) -> str | None:
        if site.chain is None:
            return "splitting needs exactly one layer before and one after these units"
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        if num_new > site.width:
            raise GrowthRefused(
                f"splitting makes two units of one, so {site.name} can grow by at most its {site.width} units at an "
                f"event, got {num_new}; lower growth.how_many"
            )
        values, vectors, bias = self._eigenpairs(site, measurement, generator)
        order = values.argsort()[:num_new]
        gaining = int((values[order] < 0.0).sum())
        if gaining < num_new and self.settings.beyond_negative == "error":
            raise GrowthRefused(
                f"splitting lowers the loss where a splitting matrix has a negative eigenvalue, which {gaining} units "
                f"at {site.name} have, fewer than {num_new}; grow by fewer units, or set "
                "growth.initializer.beyond_negative: split"
            )
        facts: dict[str, Any] = {"split": order.tolist(), "eigenvalues": [round(float(v), 9) for v in values[order]]}
        if gaining < num_new:
            facts["beyond_negative"] = num_new - gaining
        slices, rewrites = self._apart(site, measurement, order.tolist(), vectors, bias)
        return Extended(slices, "split", "its only form", facts, rewrites)

    def _eigenpairs(
        self, site: GrowthSite, measurement: Measurement, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, str | None]:
        """The lowest eigenvalue [K] and eigenvector [K, fan-in (+ 1)] of every unit, and the name of the bias."""
        assert site.chain is not None
        with exact_arithmetic(), torch.enable_grad():
            seen = chain_pass(measurement, site)
            weight = seen.model.get_parameter(site.chain.producer)
            bias = next((name for name, p in seen.model.named_parameters() if p is seen.producer.bias), None)
            ends = [weight] if bias is None else [weight, seen.model.get_parameter(bias)]
            # its second derivative is S, unit by unit: each reads its own fan-in, and the loss is taken as linear in h
            linear = (seen.hidden_gradient * seen.consumer.input).sum()
            first = torch.autograd.grad(linear, ends, create_graph=True, materialize_grads=True)
            rows = torch.cat([one.reshape(site.width, -1) for one in first], dim=1)
            check_gradients([rows], site)

            def product(vectors: Tensor) -> Tensor:
                measurement.forwards += 1  # an upper bound: only the way from fan-in to consumer is walked
                if not rows.requires_grad:
                    return torch.zeros_like(vectors)
                found = torch.autograd.grad((rows * vectors).sum(), ends, retain_graph=True, materialize_grads=True)
                return torch.cat([one.reshape(site.width, -1) for one in found], dim=1).detach()

            values, vectors = lowest_eigenpairs(product, rows.detach(), generator)
        if not bool((values != 0.0).any()):
            raise GrowthWaits(
                f"splitting needs an activation that curves or a loss that minds it, and at {site.name} all splitting "
                "matrices are 0 on the growth batch (as with torch's ReLU); take another initializer, or set "
                "growth.fallback"
            )
        return values, vectors, bias

    def _apart(
        self, site: GrowthSite, measurement: Measurement, split: list[int], vectors: Tensor, bias: str | None
    ) -> tuple[dict[tuple[str, int], Tensor], dict[str, Tensor]]:
        assert site.chain is not None
        shares = torch.ones(site.width + len(split))
        shares[split] = shares[site.width :] = 0.5
        values, rewrites = copies_of(UnitPlaces(site, len(split)), measurement, split, shares)
        weight = measurement.tensor(site.chain.producer)
        steps = self.settings.epsilon * mean_norm(weight, 0) * vectors[split]
        fan_in = weight[0].numel()
        parts = {site.chain.producer: steps[:, :fan_in].reshape(-1, *weight.shape[1:])}
        if bias is not None:
            parts[bias] = steps[:, fan_in]
        for name, step in parts.items():
            values[name, 0] = values[name, 0] - step
            rewrites[name] = measurement.tensor(name).index_add(0, torch.tensor(split, device=step.device), step)
        return values, rewrites


def lowest_eigenpairs(
    product: Callable[[Tensor], Tensor], like: Tensor, generator: torch.Generator, steps: int = LANCZOS_STEPS
) -> tuple[Tensor, Tensor]:
    """The lowest eigenvalue [K] and eigenvector [K, D] of K symmetric matrices, by Lanczos's method on all at once.

    Args:
        product: [K, D] -> every matrix times its vector, [K, D].
        like: any tensor [K, D], for the sizes and the type.
        generator: of the first vectors, and of others where what the first ones lead to is exhausted.
        steps: how many products; with D the answer is exact.
    """
    basis: list[Tensor] = []
    images: list[Tensor] = []
    vector = torch.zeros_like(like, dtype=torch.float64)
    for _ in range(min(steps, like.shape[1])):
        drawn = torch.randn(like.shape, generator=generator, dtype=torch.float64).to(vector)
        basis.append(_next(vector, drawn, basis))
        images.append(product(basis[-1].to(like)).double())
        vector = images[-1]
    frame, image = torch.stack(basis, 1), torch.stack(images, 1)  # [K, steps, D]
    small = frame @ image.transpose(1, 2)
    values, vectors = torch.linalg.eigh((small + small.transpose(1, 2)) / 2)
    lowest = (frame.transpose(1, 2) @ vectors[:, :, :1]).squeeze(2)
    return values[:, 0].to(like), lowest.to(like)


def _next(vector: Tensor, drawn: Tensor, basis: list[Tensor]) -> Tensor:
    """`vector` [K, D] made orthogonal to the basis, twice for rounding, at length 1; `drawn` where nothing is left."""
    left = _without(vector, basis)
    exhausted = left.norm(dim=1, keepdim=True) <= 1e-6 * vector.norm(dim=1, keepdim=True)
    left = _without(torch.where(exhausted, drawn, left), basis)
    return left / left.norm(dim=1, keepdim=True)


def _without(vector: Tensor, basis: list[Tensor]) -> Tensor:
    for _ in range(2):
        for one in basis:
            vector = vector - (vector * one).sum(1, keepdim=True) * one
    return vector
