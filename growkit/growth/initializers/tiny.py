"""TINY: new units for what the layer behind them would change its outputs by, if only its own weights could."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from growkit.config.growth import RandomSettings, TinySettings
from growkit.device import exact_arithmetic
from growkit.errors import GrowthRefused, GrowthWaits
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers.chain_pass import ChainPass, chain_pass, patches
from growkit.growth.initializers.gradmax import top_singular
from growkit.growth.initializers.norms import mean_norm, random_slices
from growkit.growth.initializers.widened import SlicePlace, widened
from growkit.growth.statistics import Measurement, gradient_matrix

__all__ = ["Tiny", "expressivity_bottleneck"]

AMPLITUDES = tuple(2.0**power for power in range(2, -15, -1))
NEGLIGIBLE = 1e-10  # eigenvalues of S below this share of the largest count as 0


@dataclass(frozen=True)
class Tiny(Initializer):
    """Fan-in and fan-out from the singular vectors of S^(-1/2) N (Verbockhaven et al., TMLR 2024, Proposition 3.2).

    V = -dL/dz is what the outputs z of the layer behind should gain; V_res is what is left of it after the best change
    of that layer's own weights (least squares). N correlates V_res with what the new units could read, S is the second
    moment of the latter. With S^(-1/2) N' = sum_k s_k u_k v_k' a unit gets the fan-in sqrt(s_k) S^(-1/2) v_k and the
    fan-out sqrt(s_k) u_k: of all units that answer linearly, those whose outputs come nearest to V_res. Both sides are
    brought to the mean norms of the existing weights and multiplied by the root of an amplitude, that of the powers of
    2 which gives the batch the lowest loss in train mode.

    The paper changes the old weights of that layer along with it; here they stay, and are left to the optimizer. Units
    made for V_res alone may then raise the loss at any amplitude: in that case they are made for V itself, and
    `facts["own_share"]` says so.
    """

    settings: TinySettings = TinySettings()
    name: ClassVar[str] = "tiny"
    preserves: ClassVar[bool] = False

    def refuses(self, site: GrowthSite) -> str | None:
        if site.chain is None:
            return "tiny needs exactly one layer before and one after these units, with nothing but activations between"
        if "batch_norm" in site.chain.between:
            return "tiny needs units that answer the more the larger their fan-in is, and a BatchNorm stands in between"
        return None

    def extend(self, site: GrowthSite, num_new: int, measurement: Measurement, generator: torch.Generator) -> Extended:
        assert site.chain is not None, "refuses() was not asked"
        with exact_arithmetic(), torch.enable_grad():
            seen = chain_pass(measurement, site)
        weights = measurement.tensor(site.chain.producer), measurement.tensor(site.chain.consumer)
        for own_share in (False, True):
            fan_out, sigma, fan_in = expressivity_bottleneck(seen, *weights, num_new, generator, own_share=own_share)
            self._check_rank(site, len(sigma), num_new)
            bias = next((name for name, p in seen.model.named_parameters() if p is seen.producer.bias), None)
            values, facts = self._search(site, self._units(site, weights, fan_out, fan_in, bias), measurement)
            if facts["loss"] < facts["loss_before"]:
                break
        else:
            raise GrowthWaits(
                f"tiny needs an amplitude of the new units that lowers the loss, and at {site.name} none of "
                f"{min(AMPLITUDES):.0e} to {max(AMPLITUDES):g} does on the growth batch; grow later, or set "
                "growth.fallback"
            )
        facts = {"sigma": [round(float(s), 9) for s in sigma], "own_share": own_share, **facts}
        missing = num_new - len(sigma)
        if missing:
            facts["random_beyond_rank"] = missing
            values = self._filled(site, values, missing, measurement, generator)
        return Extended(values, "both", "its only form", facts)

    def _check_rank(self, site: GrowthSite, rank: int, num_new: int) -> None:
        if not rank or (rank < num_new and self.settings.beyond_rank == "error"):
            remedy = "set growth.initializer.beyond_rank: random" if rank else "set growth.fallback"
            raise GrowthRefused(
                f"tiny can make at most as many units as the bottleneck at {site.name} has rank, {rank} on the growth "
                f"batch, got {num_new}; grow by fewer units, or {remedy}"
            )

    def _units(
        self, site: GrowthSite, weights: tuple[Tensor, Tensor], fan_out: Tensor, fan_in: Tensor, bias: str | None
    ) -> dict[SlicePlace, Tensor]:
        """Slices with the mean norms of the existing ones, of `fan_out` [O*V, K] and `fan_in` [C*U (+ 1), K]."""
        assert site.chain is not None
        (producer, consumer), count = weights, fan_out.shape[1]
        read = fan_out.reshape(consumer.shape[0], *consumer.shape[2:], count).movedim(-1, 1)
        size = producer[0].numel()
        made = fan_in[:size].T.reshape(count, *producer.shape[1:])
        factor = mean_norm(producer, 0) / fan_in.norm(dim=0).mean()
        values = {(site.chain.producer, 0): made * factor}
        if bias is not None:
            values[bias, 0] = fan_in[size] * factor
        length = read.transpose(0, 1).flatten(1).norm(dim=1).mean()
        values[site.chain.consumer, 1] = read * (mean_norm(consumer, 1) / length)
        return values

    def _search(
        self, site: GrowthSite, values: dict[SlicePlace, Tensor], measurement: Measurement
    ) -> tuple[dict[SlicePlace, Tensor], dict[str, Any]]:
        """The amplitude of the lowest loss."""
        assert site.chain is not None
        count = values[site.chain.producer, 0].shape[0]
        tried: dict[float, float] = {}
        with widened(measurement, site, count, {}) as copy, torch.no_grad():
            before = copy.loss().item()
            for amplitude in AMPLITUDES:
                copy.write({place: slices * amplitude**0.5 for place, slices in values.items()})
                tried[amplitude] = copy.loss_or_inf()
        best = min(tried, key=lambda amplitude: tried[amplitude])
        facts = {"amplitude": best, "loss_before": round(before, 9), "loss": round(tried[best], 9)}
        return {place: slices * best**0.5 for place, slices in values.items()}, facts

    def _filled(
        self,
        site: GrowthSite,
        values: dict[SlicePlace, Tensor],
        missing: int,
        measurement: Measurement,
        generator: torch.Generator,
    ) -> dict[SlicePlace, Tensor]:
        """More units behind those found: Gaussian fan-in, zero fan-out."""
        assert site.chain is not None
        drawn = random_slices(site, missing, "live", measurement, RandomSettings(scale=1.0), generator)
        filled = {}
        for place, slices in values.items():
            shape = [missing if dim == place[1] else extent for dim, extent in enumerate(slices.shape)]
            filled[place] = torch.cat([slices, drawn.get(place, slices.new_zeros(shape))], place[1])
        return filled


@torch.no_grad()
def expressivity_bottleneck(
    seen: ChainPass,
    producer: Tensor,
    consumer: Tensor,
    count: int,
    generator: torch.Generator,
    *,
    own_share: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The fan-outs and fan-ins of units that come nearest to what the consumer should, and cannot, give by itself.

    Args:
        seen: a pass through the chain.
        producer: weight [hidden, C, *kernel].
        consumer: weight [O, hidden, *kernel].
        count: how many units, fewer where the rank is lower.
        generator: of a randomised decomposition, if the matrix is large.
        own_share: leave what the consumer's own weights can give in what is asked for.

    Returns:
        fan_out [O*V, K], sigma [K] (largest first), fan_in [C*U (+ 1), K].
    """
    wanted = seen.consumer.output_gradient
    assert wanted is not None
    axis = 1 if seen.consumer.stride else -1
    flat = -wanted.movedim(axis, -1)
    target = flat.flatten(0, -2).double()
    own = patches(seen.consumer, consumer).double()
    change = torch.zeros_like(own.T @ target) if own_share else _pseudo_inverse(own.T @ own) @ (own.T @ target)
    residual = (target - own @ change).reshape(flat.shape).movedim(-1, axis).to(producer)
    # noise that rounding leaves of a gradient that own weights can answer wholly is no direction
    if float(residual.norm()) <= 1e-5 * float(wanted.norm()):
        residual = torch.zeros_like(residual)
    found = gradient_matrix(seen.producer, replace(seen.consumer, output_gradient=residual), producer, consumer)
    read = patches(seen.producer, producer).double()
    whitening = _pseudo_inverse(read.T @ read, power=-0.5)
    left, sigma, right = top_singular(found.matrix.double() @ whitening, count, generator)
    fan_in = whitening @ right * sigma.sqrt()
    return (left * sigma.sqrt()).to(producer), sigma.to(producer), fan_in.to(producer)


def _pseudo_inverse(moment: Tensor, power: float = -1.0) -> Tensor:
    """A symmetric positive matrix to a negative power, directions without weight left out."""
    values, vectors = torch.linalg.eigh(moment)
    kept = values > NEGLIGIBLE * values[-1].clamp_min(torch.finfo(values.dtype).tiny)
    scale = torch.where(kept, values.clamp_min(torch.finfo(values.dtype).tiny) ** power, torch.zeros_like(values))
    return (vectors * scale) @ vectors.T
