"""GradMax for units between any layers: several that make or read them, norms, gates, attention, flattened positions.

The map from a unit's fan-out to the gradient of its zero fan-in is linear whatever the graph, so that its singular
vectors answer the same question there as between two layers (Evci et al., ICLR 2022, equation 11). Where parts of a
fan-out depend on other parts of the fan-in than the rest, as the channels of an attention head do, every such
component has singular vectors of its own, and the components of one unit take different ones: alike they would stay
alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from growkit.config.growth import GradMaxSettings
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.growth.base import Extended, Later
from growkit.growth.initializers.norms import slice_norm
from growkit.growth.initializers.signs import SHARE, better_signs
from growkit.growth.initializers.singular import top_singular
from growkit.growth.statistics import Component, FanMap, Measurement, Part, UnitLayout, slices_of, unit_layout
from growkit.growth.statistics.fan_map import LARGEST_FAN_OUT

__all__ = ["extend_through_graph", "refuses_graph"]

SILENT = 1e-5  # largest relative change of outputs by a unit of zero fan-in that counts as rounding
SHIFT = 1.0  # of pre-activations, where activations have no slope at 0
CANDIDATES = 4  # times as many Gaussian fan-ins are tried where nothing is linear


def refuses_graph(site: GrowthSite) -> str | None:
    """Why GradMax cannot serve a site that is no chain; None where it can."""
    if site.by_copies:
        return f"gradmax makes new directions, and this width {site.copied_because}, so that it grows by copies only"
    if site.remedies and not all(one.silences_writers and not one.silenced_readers for one in site.remedies):
        return "gradmax cannot serve units that norms or attention products depend on and that other layers read"
    try:
        entries = sum(part.numel for part in unit_layout(site, 1).fan_out)
    except GrowthRefused as refused:
        return f"gradmax cannot tell new units apart, for {refused}"
    if entries > LARGEST_FAN_OUT:
        return f"gradmax measures units that at most {LARGEST_FAN_OUT:,} entries read, these are read by {entries:,}"
    return None


def extend_through_graph(
    site: GrowthSite, num_new: int, measurement: Measurement, settings: GradMaxSettings, generator: torch.Generator
) -> Extended:
    """The new slices of a site that is no chain.

    Zero fan-in where units are silent and learn at zero; else zero fan-out, with the right singular vectors, both
    signs, of which the ones with the largest measured gradient are taken. Fan-in that the gradient does not reach at
    zero (queries and keys of a head) is Gaussian. Where the map is zero, as with gates, whose factors are both zero,
    the best of four times as many Gaussian fan-ins are taken.

    Raises:
        GrowthRefused: the settings ask for zero fan-in, which cannot work here, or units cannot be probed.
    """
    draw = _Drawer(site, measurement, settings, generator)
    fan_map = measurement.fan_map(site)
    problem = _problem(site, fan_map, measurement, settings.form)
    if problem is None:
        return draw.fan_out(fan_map, num_new, _reason(site, settings.form))
    if settings.form == "zero_fan_in" or site.remedies:
        raise GrowthRefused(
            f"zero fan-in needs units that are silent and learn at zero; at {site.name} {problem}; "
            + ("name a growth.fallback" if site.remedies else "use form: auto or zero_fan_out")
        )
    if not fan_map.matrix.any():
        fan_map = measurement.fan_map(site, SHIFT)
    return draw.fan_in(fan_map, num_new, problem)


def _reason(site: GrowthSite, wanted: str) -> str:
    if wanted == "zero_fan_in":
        return "asked for"
    if site.remedies:
        return "norms depend on these units, which decides what is zero at first"
    return "f(0) = 0 and f'(0) != 0, through the graph"


def _problem(site: GrowthSite, fan_map: FanMap, measurement: Measurement, wanted: str) -> str | None:
    if wanted == "zero_fan_out" and not site.remedies:
        return "asked for"
    if (change := measurement.silence(site)) > SILENT:
        return f"units of zero fan-in change the outputs by {change:.3g} of their size"
    if not fan_map.matrix.any():
        return "units of zero fan-in have no gradient at first"
    has_norm = not site.remedies and any(
        member.role == "pass_through" and member.kind == "buffer" for member in site.members
    )
    if has_norm and wanted != "zero_fan_in":
        return "a BatchNorm stands in between, which blows up the first gradient of a zero fan-in"
    return None


class _Drawer:
    """Makes vectors of fan-ins and fan-outs out of a map."""

    def __init__(
        self, site: GrowthSite, measurement: Measurement, settings: GradMaxSettings, generator: torch.Generator
    ):
        self.site, self.measurement, self.settings, self.generator = site, measurement, settings, generator

    def fan_out(self, fan_map: FanMap, num_new: int, reason: str) -> Extended:
        """Zero fan-in, but for what the gradient does not reach; the fan-out by left singular vectors."""
        layout, components = fan_map.layout, fan_map.components()
        vectors, sigma, missing = self._vectors(components, num_new, lambda left, right: left)
        fan_out = fan_map.matrix.new_zeros(num_new, fan_map.matrix.shape[0])
        for component, chosen in zip(components, vectors, strict=True):
            fan_out[:, component.rows] = self._long(chosen, [layout.fan_out[number] for number in component.fan_out])
        fan_in = fan_map.matrix.new_zeros(num_new, fan_map.matrix.shape[1])
        self._wake(fan_in, fan_map, components)
        new = unit_layout(self.site, num_new)

        def signed(signs: Tensor) -> dict[tuple[str, int], Tensor]:
            read = slices_of(fan_out * signs[:, None], new.fan_out)
            return self._typed(slices_of(fan_in, new.fan_in) | read | _filters(new))

        values: Mapping[tuple[str, int], Tensor] = signed(fan_out.new_ones(num_new))
        if not self.site.remedies:  # where norms would mind the units that are tried
            gradients = self._moved(fan_map, fan_in, fan_out)
            values = Later(lambda: signed(better_signs(fan_out, gradients().to(fan_out))), values)
        return Extended(values, "zero_fan_in", reason, _facts(sigma, missing))

    def fan_in(self, fan_map: FanMap, num_new: int, reason: str) -> Extended:
        """Zero fan-out; the fan-in by right singular vectors and their opposites, as they do best."""
        layout, components = fan_map.layout, fan_map.components()
        count = 2 * num_new if components else CANDIDATES * num_new
        candidates = fan_map.matrix.new_zeros(count, fan_map.matrix.shape[1])
        sigma, missing = [], 0
        if components:
            vectors, sigma, missing = self._vectors(components, num_new, lambda left, right: right)
            for component, chosen in zip(components, vectors, strict=True):
                parts = [layout.fan_in[number] for number in component.fan_in]
                candidates[:, component.columns] = self._long(torch.cat([chosen, -chosen]), parts)
        self._wake(candidates, fan_map, components)
        many, new = unit_layout(self.site, count), unit_layout(self.site, num_new)
        tried = self._typed(slices_of(candidates, many.fan_in) | _filters(many))
        response = self.measurement.ask_response(self.site, tried, count)
        facts = _facts(sigma, missing) if components else {"best_of": count}

        def choose() -> dict[tuple[str, int], Tensor]:
            best = response().cpu().topk(num_new).indices
            return self._typed(slices_of(candidates[best], new.fan_in) | _filters(new))

        return Extended(Later(choose, tried), "zero_fan_out", reason, facts)

    def _moved(self, fan_map: FanMap, fan_in: Tensor, fan_out: Tensor) -> Callable[[], Tensor]:
        """The gradients that `better_signs` takes; the fan-in moves in what is zero of it."""
        along = fan_out @ fan_map.matrix
        parts = [part for part in fan_map.layout.fan_in if part.shape] or list(fan_map.layout.fan_in)
        along = self._long(along / along.norm(dim=1, keepdim=True).clamp_min(torch.finfo(along.dtype).tiny), parts)
        many = unit_layout(self.site, 2 * len(along))
        tried = slices_of(torch.cat([fan_in + along, fan_in - along]), many.fan_in) | _filters(many)
        return self.measurement.ask_gradients(self.site, self._typed(tried), many.units, SHARE)

    def _typed(self, values: Mapping[tuple[str, int], Tensor]) -> dict[tuple[str, int], Tensor]:
        return {key: slices.to(self.measurement.tensor(key[0])) for key, slices in values.items()}

    def _vectors(
        self, components: Sequence[Component], num_new: int, side: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[list[Tensor], list[float], int]:
        """For each component one unit vector for each new unit; components share out the singular vectors."""
        found, sigmas, missing = [], [], 0
        for place, component in enumerate(components):
            wanted = range(place, place + num_new * len(components), len(components))
            left, sigma, right = top_singular(component.matrix, wanted[-1] + 1, self.generator)
            vectors = side(left, right).T
            own = [number for number in wanted if number < len(sigma)]
            own += [number for number in range(len(sigma)) if number not in own][: num_new - len(own)]
            short = num_new - len(own)
            if short and self.settings.beyond_rank == "error":
                raise GrowthRefused(
                    f"gradmax can make at most as many units as the gradient matrix has rank, {len(sigma)} at "
                    f"{self.site.name}, got {num_new}; grow by fewer units, or set "
                    "growth.initializer.beyond_rank: random"
                )
            extra = torch.randn(short, vectors.shape[1], generator=self.generator).to(vectors)
            found.append(torch.cat([vectors[own], extra / extra.norm(dim=1, keepdim=True)]))
            sigmas += [float(sigma[number]) for number in own]
            missing += short
        return found, sorted(sigmas, reverse=True), missing

    def _long(self, vectors: Tensor, parts: Sequence[Part]) -> Tensor:
        """As long as the slices of these parts together shall be by the settings; biases follow their weights."""
        weights = [part for part in parts if part.shape] or list(parts)
        return vectors * math.sqrt(sum(self._norm(part) ** 2 for part in weights))

    def _norm(self, part: Part) -> float:
        return slice_norm(self.measurement.tensor(part.name), part.dim, self.settings)

    def _wake(self, fan_in: Tensor, fan_map: FanMap, components: Sequence[Component]) -> None:
        """Gaussian slices in the weights of the fan-in that belong to no component."""
        reached = {number for component in components for number in component.fan_in}
        start = 0
        for number, part in enumerate(fan_map.layout.fan_in):
            if number not in reached and part.shape:
                drawn = torch.randn(len(fan_in), part.numel, generator=self.generator).to(fan_in)
                fan_in[:, start : start + part.numel] = drawn * (self._norm(part) / drawn.norm(dim=1, keepdim=True))
            start += part.numel


def _filters(layout: UnitLayout) -> dict[tuple[str, int], Tensor]:
    """Depthwise filters that pass the new channels on as they are."""
    identities = [part.identity().expand(layout.units, -1) for part in layout.filters]
    return slices_of(torch.cat(identities, 1), layout.filters) if identities else {}


def _facts(sigma: Sequence[float], missing: int) -> dict[str, Any]:
    return {"sigma": [round(one, 9) for one in sigma], **({"random_beyond_rank": missing} if missing else {})}
