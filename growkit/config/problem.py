"""A problem with the settings: where it stands, which setting it is about, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Path", "Place", "Problem", "dotted"]

Path = tuple[str | int, ...]


def dotted(path: Path) -> str:
    """A path as users write it.

    Example:
        >>> dotted(("model", "hidden", 0))
        'model.hidden[0]'
    """
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


@dataclass(frozen=True)
class Place:
    """Where a setting was given: `label` as users read it; `order` sorts files before overrides, then by line."""

    label: str
    order: tuple[int, int, int] = (0, 0, 0)

    @classmethod
    def in_file(cls, file: str, line: int, column: int) -> Place:
        """A place in a file, both numbers from 1."""
        return cls(f"{file}:{line}:{column}", (0, line, column))


@dataclass(frozen=True)
class Problem:
    """One thing wrong with one setting."""

    place: Place
    path: Path
    message: str

    def __str__(self) -> str:
        parts = (self.place.label, dotted(self.path), self.message)
        return " ".join(": ".join(part for part in parts if part).split("\n"))
