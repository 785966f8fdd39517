"""Data of a user's callable, named in the settings."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from growkit.callables import call
from growkit.config.data import CallableDataSettings
from growkit.data.records import Source
from growkit.data.user import source_from_user
from growkit.errors import DataError, GrowkitError
from growkit.rng import isolated

__all__ = ["read_called"]

PARTS = ("train", "validate", "test")


def read_called(settings: CallableDataSettings) -> Source:
    """Call it and read what it returns: a set as `growkit.data_from_user` takes them, or a mapping of PARTS to sets.

    The global random generators of torch, numpy and Python are seeded with `data.split_seed` for the call and the
    reading, and are as before afterwards.

    Raises:
        DataError: it cannot be imported, fails, or returns something else.
    """
    name = settings.name
    with isolated(settings.split_seed):
        returned = call("data", name, settings.arguments, DataError)
        sets = _parts(name, returned) if isinstance(returned, Mapping) else {"train": returned}
        try:
            return source_from_user(name, **sets, split=settings.split)
        except GrowkitError:
            raise
        except (Exception, SystemExit) as error:  # a Dataset is the user's code
            raise DataError(f"data {name!r} failed while it was read: {type(error).__name__}: {error}") from error


def _parts(name: str, returned: Mapping[Any, Any]) -> dict[str, Any]:
    for part in returned:
        if part not in PARTS:
            near = difflib.get_close_matches(str(part), PARTS, n=1, cutoff=0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(f"data {name!r} must return a mapping of {', '.join(PARTS)}, got the key {part!r}{hint}")
    if returned.get("train") is None:
        raise DataError(f"data {name!r} must return train data, got a mapping of {', '.join(returned) or 'nothing'}")
    return dict(returned)
