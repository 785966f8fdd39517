"""One thing looked at: how it stands, and what would mend it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Check", "State"]

State = Literal["ok", "missing", "problem"]


@dataclass(frozen=True)
class Check:
    """The finding of one check.

    Attributes:
        group: what it belongs to: versions, compute, places, data or extras.
        name: what was looked at.
        state: "missing" is not there and may be wanted; "problem" is there and does not work.
        found: what was seen, in words.
        remedy: what to do about it; None where all is well.
        essential: no run can work while this is not ok.
    """

    group: str
    name: str
    state: State
    found: str
    remedy: str | None = None
    essential: bool = False

    @property
    def stops_runs(self) -> bool:
        """Whether no run can work because of this."""
        return self.essential and self.state != "ok"

    def to_json(self) -> dict[str, Any]:
        """As the JSON of docs/formats.md has it."""
        return asdict(self)
