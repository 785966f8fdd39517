"""What a growth site says of itself: its members, the edit of each tensor, and why other widths are refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Chain", "LiteralChange", "Member", "Refusal", "TensorEdit"]


@dataclass(frozen=True)
class Member:
    """One dimension of one tensor that moves with a site.

    Attributes:
        names: all names of the tensor in the module's state (tied weights have several), the canonical one first.
        kind: "parameter" or "buffer".
        dim: the dimension.
        role: "producer" makes the units (fan-in side, with its bias), "consumer" is contracted against them (fan-out
            side), "pass_through" acts unit by unit (norms, depthwise kernels, gains).
    """

    names: tuple[str, ...]
    kind: str
    dim: int
    role: str


@dataclass(frozen=True)
class TensorEdit:
    """How one tensor changes when a site grows.

    Attributes:
        names: all names of the tensor, the canonical one first.
        kind: "parameter" or "buffer".
        index_maps: for each dimension the old index of every new position (-1: new), or None where it stays as it is.
        consumer_dims: the dimensions contracted against activations: zero there silences the new units.
        pass_through: True for vectors that act unit by unit, such as norm weights: new entries take `neutral`, no init.
        neutral: the fill of new entries of a pass-through tensor: 1 for scales and variances, 0 for shifts and means.
    """

    names: tuple[str, ...]
    kind: str
    index_maps: tuple[np.ndarray | None, ...]
    consumer_dims: tuple[int, ...]
    pass_through: bool
    neutral: float = 0.0


@dataclass(frozen=True)
class LiteralChange:
    """A number passed to an operation that would have to change with a site (groups, a view's size, a split's sizes).

    Attributes:
        op: the operation, e.g. "conv2d".
        old: the number now.
        new: the number after the edit.
        owners: names of the modules whose forward runs the operation, innermost first.
        location: the user's "file:line", if known.
    """

    op: str
    old: int
    new: int
    owners: tuple[str, ...]
    location: str | None


@dataclass(frozen=True)
class Chain:
    """One weight makes the units, one reads them; between stand only element-wise operations, dropout and batch norm.

    Attributes:
        producer: name of the weight `[units, fan-in, ...]`.
        consumer: name of the weight `[fan-out, units, ...]`.
        between: the operations between, in order, e.g. ("batch_norm", "relu").
    """

    producer: str
    consumer: str
    between: tuple[str, ...]


@dataclass(frozen=True)
class Refusal:
    """A width that may not grow.

    Attributes:
        name: the module that makes the width, or the tensor and its dimension.
        width: the size now.
        reason: completes the sentence "this width ...".
        location: the user's "file:line" that the reason points at, if known.
    """

    name: str
    width: int
    reason: str
    location: str | None
