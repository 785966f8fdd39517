"""What an edit is, on paper: enough to rebuild a grown architecture from its seed without the graph that grew it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growkit.errors import UserInputError

__all__ = ["EDIT_VERSION", "AttributeChange", "EditRecord", "IndexMap", "TensorChange", "runs_of"]

EDIT_VERSION = 1

IndexMap = NDArray[np.int64]  # old index for every new position, -1 where the position is new


def runs_of(index_map: Sequence[int] | IndexMap) -> list[list[int]]:
    """Write an index map as runs `[first old index or -1, length]`.

    Example:
        >>> runs_of([0, 1, 2, -1, -1, 3])
        [[0, 3], [-1, 2], [3, 1]]
    """
    # Old positions keep index - position constant within a run; new positions are told apart by None.
    keyed = [(None if old < 0 else old - new, int(old)) for new, old in enumerate(index_map)]
    return [[(run := [old for _, old in group])[0], len(run)] for _, group in groupby(keyed, key=lambda pair: pair[0])]


def _map_of(runs: Sequence[Sequence[int]]) -> IndexMap:
    parts = [np.full(length, -1) if start < 0 else np.arange(start, start + length) for start, length in runs]
    return np.concatenate(parts).astype(np.int64) if parts else np.empty(0, dtype=np.int64)


@dataclass(frozen=True)
class TensorChange:
    """How one parameter or buffer changed.

    Attributes:
        names: its names in the state dict; tied tensors have several.
        kind: "parameter" or "buffer".
        old_shape: shape before.
        index_maps: per dimension, old index for every new position (-1 is new), None where the dimension stays.
        fill: where the new entries came from: "extension" (an initializer), "zero", "one" or "mean" (of the old).
    """

    names: tuple[str, ...]
    kind: str
    old_shape: tuple[int, ...]
    index_maps: tuple[IndexMap | None, ...]
    fill: str

    @property
    def new_shape(self) -> tuple[int, ...]:
        """Shape after."""
        return tuple(
            old if index is None else len(index) for old, index in zip(self.old_shape, self.index_maps, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """The JSON form: index maps as runs."""
        return {
            "names": list(self.names),
            "kind": self.kind,
            "old_shape": list(self.old_shape),
            "index_maps": [None if index is None else runs_of(index) for index in self.index_maps],
            "fill": self.fill,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> TensorChange:
        """Read what `to_json` wrote."""
        return cls(
            names=tuple(record["names"]),
            kind=record["kind"],
            old_shape=tuple(record["old_shape"]),
            index_maps=tuple(None if runs is None else _map_of(runs) for runs in record["index_maps"]),
            fill=record["fill"],
        )


@dataclass(frozen=True)
class AttributeChange:
    """An integer (or tuple of integers) a module keeps beside its weights, such as `out_channels`."""

    module: str
    name: str
    old: Any
    new: Any


@dataclass(frozen=True)
class EditRecord:
    """One site widened once.

    Attributes:
        site: the site's name.
        old_width: units before.
        new_width: units after.
        tensors: every tensor that changed.
        attributes: every module attribute that changed.
    """

    site: str
    old_width: int
    new_width: int
    tensors: tuple[TensorChange, ...]
    attributes: tuple[AttributeChange, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, with a version field (docs/formats.md)."""
        return {
            "version": EDIT_VERSION,
            "site": self.site,
            "old_width": self.old_width,
            "new_width": self.new_width,
            "tensors": [change.to_json() for change in self.tensors],
            "attributes": [asdict(change) for change in self.attributes],
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> EditRecord:
        """Read what `to_json` wrote.

        Raises:
            UserInputError: the record has another version.
        """
        if record.get("version") != EDIT_VERSION:
            raise UserInputError(
                f"an edit record must have version {EDIT_VERSION}, got {record.get('version')!r}; "
                "it was written by another version of growkit"
            )
        return cls(
            site=record["site"],
            old_width=record["old_width"],
            new_width=record["new_width"],
            tensors=tuple(TensorChange.from_json(change) for change in record["tensors"]),
            attributes=tuple(AttributeChange(**_tuples(change)) for change in record["attributes"]),
        )


def _tuples(change: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; module attributes such as normalized_shape are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in change.items()}
