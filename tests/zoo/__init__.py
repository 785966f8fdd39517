"""Modules as users and well-known code bases write them, each with what a perfect tool would do."""

from __future__ import annotations

from . import (
    attention,
    convolution,
    decoders,
    encoders,
    generative,
    hybrids,
    idioms,
    layers,
    llama,
    sequence,
    sets,
    sizes,
    topology,
)
from .entry import Entry

__all__ = ["ZOO", "Entry"]

_FAMILIES = (
    decoders, llama, encoders, attention, convolution, topology, sequence, generative, sets, layers, sizes, idioms,
    hybrids,
)  # fmt: skip

ZOO: dict[str, Entry] = {entry.name: entry for family in _FAMILIES for entry in family.ENTRIES}
