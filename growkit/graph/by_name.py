"""Looking up by number or by name, with an answer also for names that were refused and names that are near."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from growkit.errors import GrowthRefused, ModelError

__all__ = ["pick"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


class _Refused(_Named, Protocol):
    @property
    def reason(self) -> str: ...
    @property
    def location(self) -> str | None: ...


Found = TypeVar("Found", bound=_Named)
Left = TypeVar("Left", bound=_Refused)


def pick(
    found: Sequence[Found], refused: Sequence[Left], key: int | str, *, refusal: Callable[[Left], str], missing: str
) -> Found:
    """The entry of `found` with that number or name.

    Args:
        found: what there is.
        refused: what there is not, with the reason.
        key: a number or a name.
        refusal: the sentence about a refused one, to which the reason is added.
        missing: the sentence about a name that is neither, to which the name is added.

    Raises:
        GrowthRefused: the name is that of a refused one.
        ModelError: the name is unknown.
    """
    if isinstance(key, int):
        return found[key]
    for one in found:
        if one.name == key:
            return one
    for other in refused:
        if other.name == key:
            place = f" ({other.location})" if other.location else ""
            raise GrowthRefused(f"{refusal(other)}: it {other.reason}{place}")
    names = [one.name for one in found]
    near = difflib.get_close_matches(key, names, n=3)
    hint = (
        f"did you mean {' or '.join(map(repr, near))}?" if near else f"they are {names}" if names else "there are none"
    )
    raise ModelError(f"{missing} {key!r}; {hint}")
