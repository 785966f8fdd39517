"""What an edit is, on paper: enough to rebuild a grown architecture from its seed without the graph that grew it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from growkit.errors import UserInputError

__all__ = [
    "EDIT_VERSION",
    "AttributeChange",
    "DepthRecord",
    "EditRecord",
    "IndexMap",
    "NewTensor",
    "Record",
    "TensorChange",
    "edited_buffers",
    "record_from_json",
    "runs_of",
]

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
        _check_version(record)
        return cls(
            site=record["site"],
            old_width=record["old_width"],
            new_width=record["new_width"],
            tensors=tuple(TensorChange.from_json(change) for change in record["tensors"]),
            attributes=tuple(AttributeChange(**_tuples(change)) for change in record["attributes"]),
        )


@dataclass(frozen=True)
class NewTensor:
    """A parameter or buffer that an insertion brought.

    Attributes:
        name: its name after the insertion.
        kind: "parameter" or "buffer".
        shape: its shape then.
    """

    name: str
    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class DepthRecord:
    """One layer or residual block inserted once.

    Attributes:
        form: "residual block", a copy of `source`; or "layer", the identity of `source`'s form.
        container: name of the module whose children were joined.
        position: the place of the (first) new child among them, from 0; numbered children from there on moved up.
        children: the names of the new children: 2 where a layer brought its activation.
        source: the module it was built after, by its name before the insertion.
        activation: the activation module that was repeated, by its name before the insertion; None for none.
        norm: the normaliser that was not repeated; None for none.
        zeroed: parameters set to zero, by their name inside the new block.
        seed: of the new weights.
        tensors: every new parameter and buffer, in order.
    """

    form: str
    container: str
    position: int
    children: tuple[str, ...]
    source: str
    activation: str | None
    norm: str | None
    zeroed: tuple[str, ...]
    seed: int
    tensors: tuple[NewTensor, ...] = ()

    def renamed(self, name: str) -> str:
        """What a tensor or module of the model before the insertion is called after it.

        Example:
            >>> record = DepthRecord("layer", "body", 1, ("1",), "body.0", None, None, (), 0)
            >>> record.renamed("body.0.weight"), record.renamed("body.1.weight"), record.renamed("head.1")
            ('body.0.weight', 'body.2.weight', 'head.1')
        """
        return self._moved(name, self.position, len(self.children))

    def former(self, name: str) -> str:
        """What something of the model after the insertion, and not itself new, was called before it.

        Example:
            >>> record = DepthRecord("layer", "body", 1, ("1",), "body.0", None, None, (), 0)
            >>> record.former("body.0.weight"), record.former("body.2.weight"), record.former("head.1")
            ('body.0.weight', 'body.1.weight', 'head.1')
        """
        return self._moved(name, self.position + len(self.children), -len(self.children))

    def _moved(self, name: str, first: int, by: int) -> str:
        """The name with the number of a child of the container changed, from the first that moves on."""
        prefix = f"{self.container}." if self.container else ""
        number, dot, rest = name.removeprefix(prefix).partition(".")
        numbered = self.children[0] == str(self.position) and number.isdecimal()
        if not name.startswith(prefix) or not numbered or int(number) < first:
            return name
        return f"{prefix}{int(number) + by}{dot}{rest}"

    def to_json(self) -> dict[str, Any]:
        """The JSON form, with a version and a kind field (docs/formats.md)."""
        return {"version": EDIT_VERSION, "kind": "depth", **_lists(asdict(self))}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> DepthRecord:
        """Read what `to_json` wrote.

        Raises:
            UserInputError: the record has another version.
        """
        _check_version(record)
        given = {key: value for key, value in record.items() if key not in ("version", "kind", "tensors")}
        tensors = tuple(NewTensor(**_tuples(tensor)) for tensor in record["tensors"])
        return cls(**_tuples(given), tensors=tensors)


Record = EditRecord | DepthRecord
"""What an edit leaves on paper."""


def record_from_json(record: dict[str, Any]) -> Record:
    """Read a record of either kind; one without a kind is a widening.

    Raises:
        UserInputError: the record has another version or an unknown kind.
    """
    kind = record.get("kind")
    if kind == "depth":
        return DepthRecord.from_json(record)
    if kind is not None:
        raise UserInputError(
            f"an edit record must be of kind 'depth' or have no kind, got {kind!r}; "
            "it was written by another version of growkit"
        )
    return EditRecord.from_json(record)


def edited_buffers(records: Sequence[Record]) -> list[str]:
    """The buffers that the edits of a model changed or brought, by their names after the last edit."""
    names: list[str] = []
    for record in records:
        if isinstance(record, DepthRecord):
            names = [record.renamed(name) for name in names]
            names += [tensor.name for tensor in record.tensors if tensor.kind == "buffer"]
        else:
            names += [name for change in record.tensors if change.kind == "buffer" for name in change.names]
    return list(dict.fromkeys(names))


def _check_version(record: dict[str, Any]) -> None:
    if record.get("version") != EDIT_VERSION:
        raise UserInputError(
            f"an edit record must have version {EDIT_VERSION}, got {record.get('version')!r}; "
            "it was written by another version of growkit"
        )


def _lists(value: Any) -> Any:
    """Tuples as lists, the way JSON has them."""
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def _tuples(change: dict[str, Any]) -> dict[str, Any]:
    """JSON knows lists only; module attributes such as normalized_shape are tuples."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in change.items()}
