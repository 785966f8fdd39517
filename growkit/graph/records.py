"""What a growth site says of itself: its members, the edit of each tensor, and why other widths are refused."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = [
    "AttributeEdit",
    "Average",
    "Centre",
    "Chain",
    "Copy",
    "LiftGain",
    "LiteralChange",
    "Member",
    "Refusal",
    "Scale",
    "Share",
    "Silence",
    "TensorEdit",
    "ValueEdit",
]


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
        consumer_dims: the dimensions contracted against activations.
        silent_dims: the dimensions whose new entries must be zero at first, which keeps the function: the consumers',
            or, where a norm reads the units, the producers'.
        pass_through: True for vectors that act unit by unit, such as norm weights: new entries take `neutral`, no init.
        neutral: the fill of new entries of a pass-through tensor: 1 for scales and variances, 0 for shifts and means.
    """

    names: tuple[str, ...]
    kind: str
    index_maps: tuple[np.ndarray | None, ...]
    consumer_dims: tuple[int, ...]
    silent_dims: tuple[int, ...]
    pass_through: bool
    neutral: float = 0.0


@dataclass(frozen=True)
class Scale:
    """Before a tensor is resized, entries of it are multiplied.

    Attributes:
        name: the tensor.
        kind: "parameter" or "buffer".
        dim: the dimension that `rows` are positions of.
        rows: the old positions, None for all.
        factor: what they are multiplied by.
    """

    name: str
    kind: str
    dim: int
    rows: np.ndarray | None
    factor: float


@dataclass(frozen=True)
class Centre:
    """Before a weight is resized, its mean over `dim` is subtracted: a layer norm downstream subtracts it anyway.

    Attributes:
        name: the parameter.
        dim: the dimension of the units.
        gain: a parameter `[units]` that the units are multiplied with before they meet the others, or None; what is
            subtracted is then divided by it. Entries too close to zero for that are raised (`LiftGain`).
    """

    name: str
    dim: int
    gain: str | None


@dataclass(frozen=True)
class Silence:
    """After a tensor was resized and filled, the new positions `rows` along `dim` are set to zero.

    Attributes:
        name: the parameter.
        dim: the dimension.
        rows: positions under the new size.
    """

    name: str
    dim: int
    rows: np.ndarray


@dataclass(frozen=True)
class LiftGain:
    """After the weights in front of a gain were centred, its smallest entries are raised to what they were divided by.

    Attributes:
        name: the gain.
    """

    name: str


@dataclass(frozen=True)
class Average:
    """After a weight was resized and filled, its new positions along `dim` become the mean of the old ones.

    Attributes:
        name: the parameter.
        dim: the dimension of the units.
        rows: the new positions under the new size.
        gain: a parameter `[units]` that the units are multiplied with before they meet the others, or None: the mean is
            that of the products, and the new entries are divided by those of the gain.
    """

    name: str
    dim: int
    rows: np.ndarray
    gain: str | None


@dataclass(frozen=True)
class Copy:
    """After a tensor was resized and filled, every position along `dim` takes the slice at the position it copies.

    Attributes:
        name: the tensor.
        kind: "parameter" or "buffer".
        dim: the dimension of the units.
        origins: for every position under the new size, the position that it copies, perhaps itself.
    """

    name: str
    kind: str
    dim: int
    origins: np.ndarray


@dataclass(frozen=True)
class Share:
    """After a weight was resized and filled, the readers of several copies of one unit get shares of the old reader.

    The shares add up to nothing, so the function stays, but copies that are read differently learn differently.

    Attributes:
        name: the parameter.
        dim: the dimension that reads the units.
        origins: for every position under the new size, the position that it copies, perhaps itself.
        shares: for every position, which part of the reader of its origin is added; 0 for the origins.
    """

    name: str
    dim: int
    origins: np.ndarray
    shares: np.ndarray


ValueEdit = Scale | Centre | LiftGain | Silence | Average | Copy | Share
"""What else must happen to values, beyond zeros in the new places, for the function to stay."""


@dataclass(frozen=True)
class AttributeEdit:
    """A number beside the weights that changes with a site.

    Attributes:
        module: the module that keeps it ("" is the root).
        path: where in the module, e.g. "num_heads", "sizes[1]", "config.n_head".
        new: the number after the edit (`factor` is then 1).
        factor: where the number is not a size but scales with one (the eps of a norm): what it is multiplied by.
    """

    module: str
    path: str
    new: int | None
    factor: float = 1.0


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
