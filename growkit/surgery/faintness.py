"""Streams made faint for a look: only where activations are as small as the eps of the norms does that eps matter."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn

from growkit.graph import GrowthSite
from growkit.surgery.values import lookup

__all__ = ["Faintness", "faintness_of"]

USUAL_EPS = 1e-5


@dataclass(frozen=True)
class Faintness:
    """By which power of two the weights that write to a stream are made smaller; multiplying by it is exact."""

    factors: tuple[tuple[str, float], ...] = ()

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Make the streams of `model` faint, for a block."""
        saved = []
        with torch.no_grad():
            for name, factor in self.factors:
                tensor = lookup(model, name, "parameter")
                saved.append((tensor, tensor.data))
                tensor.data = tensor.data * factor
        try:
            yield
        finally:
            for tensor, values in saved:
                tensor.data = values


def faintness_of(model: nn.Module, sites: Sequence[GrowthSite]) -> Faintness:
    """For all sites that norms read: what they write becomes as small as the root of the smallest eps, if it was 1.

    Widening commutes with it: new entries of the writers are zero, and subtracting a mean is linear.
    """
    factors: dict[str, float] = {}
    for site in sites:
        eps = [norm.eps for remedy in site.remedies for norm in getattr(remedy, "norms", ())]
        if not eps:
            continue
        smallest = min((one for one in eps if isinstance(one, float) and one > 0.0), default=USUAL_EPS)
        for member in site.producers:
            if member.kind == "parameter":
                dtype = lookup(model, member.names[0], "parameter").dtype
                least = max(smallest, torch.finfo(dtype).tiny)
                factors[member.names[0]] = 2.0 ** round(math.log2(math.sqrt(least)))
    return Faintness(tuple(factors.items()))
