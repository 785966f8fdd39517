"""What an entry of the zoo says of itself: a module, a batch, and what a perfect tool would do with its widths."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Entry", "image", "tokens", "vector"]


@dataclass(frozen=True)
class Entry:
    """One module as users write them, judged by mathematics and not by what any tool does.

    Attributes:
        name: unique in the zoo.
        build: makes the module.
        example: makes a batch: a tensor, a tuple of arguments or a dictionary of keyword arguments.
        grows: widths that can grow exactly, as (glob of module or parameter names, width): for every name that fits
            there must be a verified site, single or joint, of that width (None: any) that makes units there.
        refused: widths that must be refused, as glob of refusal names -> part of the right reason.
        notes: why, where it is not obvious.
        slow: whether its checks take seconds.
    """

    name: str
    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    grows: tuple[tuple[str, int | None], ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    notes: str = ""
    slow: bool = False


def tokens(batch: int = 2, length: int = 7, vocabulary: int = 61) -> Tensor:
    return torch.randint(0, vocabulary, (batch, length))


def image(size: int = 16, batch: int = 2, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size)


def vector(width: int = 10, batch: int = 4) -> Tensor:
    return torch.randn(batch, width)
