"""JSON that every reader takes: RFC 8259 knows no NaN and no Infinity, which Python writes unless told not to."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

__all__ = ["to_json"]


def to_json(value: Any, indent: int | None = None) -> str:
    """`value` as strict JSON text.

    Args:
        value: mappings, sequences, numbers, arrays and tensors, nested. A number that is not finite becomes null;
            whatever JSON has no word for, such as a path, becomes its `str`.
        indent: spaces per level; None writes one line.

    Example:
        >>> to_json({"loss": float("nan"), "widths": (3, 4)})
        '{"loss": null, "widths": [3, 4]}'
    """
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence | Set) and not isinstance(value, bytes):
        return [_plain(inner) for inner in value]
    listed = getattr(value, "tolist", None)  # of NumPy's numbers and arrays, and of tensors
    return str(value) if listed is None else _plain(listed())
