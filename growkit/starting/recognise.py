"""What lies at a path: images by class, a table, a text, pairs of texts, or arrays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from growkit.data.listing import EXTENSIONS, PARTS
from growkit.errors import UserInputError

__all__ = ["Found", "Kind", "recognise"]

Kind = Literal["images", "table", "text", "pairs", "arrays"]

LOOKED_FOR = (
    "images in a folder for each class (PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val and test beside it), a "
    "table (.csv, .tsv), a text (.txt), pairs of texts (a tab in each line), or arrays (.npz)"
)
TABLES, TEXTS, ARRAYS = (".csv", ".tsv"), (".txt", ".text"), (".npz",)
ABOUT = ("readme", "license", "licence", "notice", "changelog", "requirements")  # files that are about the data
PARTS_OF_OTHERS = {"train", "training", "test", "testing", "val", "valid", "validate", "validation", "dev", "eval"}
LINES, MOST_NAMED = 200, 6


@dataclass(frozen=True)
class Found:
    """What was recognised.

    Attributes:
        kind: of the data.
        path: the folder or file that the settings will name.
        test: a second table to test on.
        notes: what was passed over.
    """

    kind: Kind
    path: Path
    test: Path | None = None
    notes: tuple[str, ...] = ()


def recognise(place: Path, kind: str | None = None) -> Found:
    """The data at a file or folder.

    Args:
        place: where to look.
        kind: what to take it for; None decides by what is there.

    Raises:
        UserInputError: there is nothing that can be used, or more than one thing.
    """
    if kind is not None and kind not in get_args(Kind):
        raise UserInputError(f"--kind must be one of {', '.join(get_args(Kind))}, got {kind!r}")
    if not place.exists():
        raise UserInputError(f"{place}: there is no such file or folder; it must hold {LOOKED_FOR}")
    try:
        if place.is_file():
            return _of_file(place, kind)
        found = [one for one in _in_folder(place) if kind in (None, one.kind)]
    except OSError as error:
        raise UserInputError(f"{error.filename or place}: cannot be read: {error.strerror}") from error
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserInputError(f"{place}: looked for {LOOKED_FOR}; found {_listed(place)}")
    listed = ", ".join(f"{one.kind} ({one.path})" for one in found[:MOST_NAMED])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    choice = "" if len({one.kind for one in found}) == 1 else ", or choose with --kind"
    raise UserInputError(
        f"{place}: looked for one of these: {LOOKED_FOR}; found {len(found)}: {listed}{more}; name one file{choice}"
    )


# --- files


def _of_file(file: Path, kind: str | None) -> Found:
    by_content = _kind_of(file)
    if kind == "images" or (by_content is None and kind is None):
        more = "; an image alone is no data, give the folder above its class" if _is_image(file.name) else ""
        raise UserInputError(f"{file}: not a file that can be used{more}; looked for {LOOKED_FOR}")
    return Found(kind or by_content, file)  # type: ignore[arg-type]


def _kind_of(file: Path) -> Kind | None:
    """By its extension, and where that leaves it open by its first lines."""
    extension = file.suffix.lower()
    if extension in ARRAYS:
        return "arrays"
    if extension == ".csv":
        return "table"
    if _is_image(file.name):
        return None
    with file.open("rb") as opened:
        lines = [line.rstrip(b"\r\n") for line in islice(opened, LINES)]
    if lines and all(line.count(b"\t") == 1 for line in lines) and not _has_numbers(lines):
        return "pairs"
    if extension == ".tsv":
        return "table"
    return "text" if extension in TEXTS or _is_text(lines) else None


def _has_numbers(lines: list[bytes]) -> bool:
    """Whether the second of two columns holds numbers below its first line: then it is a table."""
    try:
        [float(line.split(b"\t")[1]) for line in lines[1:]]
    except ValueError:
        return False
    return len(lines) > 1


def _is_text(lines: list[bytes]) -> bool:
    try:
        return b"\0" not in b"".join(lines) and bool(b"\n".join(lines).decode().strip())
    except UnicodeDecodeError:
        return False


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


# --- folders


def _in_folder(folder: Path) -> Iterator[Found]:
    images = _images(folder)
    if images is not None:
        yield images
    files = [one for one in sorted(folder.iterdir()) if one.is_file() and _may_be_data(one)]
    tables = [one for one in files if one.suffix.lower() in TABLES]
    test = next((one for one in tables if one.stem.lower() == "test"), None)
    train = next((one for one in tables if one.stem.lower() == "train"), None)
    if len(tables) == 2 and train and test and _kind_of(train) == "table":
        yield Found("table", train, test)
        files = [one for one in files if one not in tables]
    for file in files:
        kind = _kind_of(file)
        if kind is not None:
            yield Found(kind, file)


def _may_be_data(file: Path) -> bool:
    known = file.suffix.lower() in (*TABLES, *TEXTS, *ARRAYS)
    return known and not file.name.startswith(".") and not file.stem.lower().startswith(ABOUT)


def _images(folder: Path) -> Found | None:
    """The folder, or the only one in it, if classes with images lie there."""
    holding = [one for one in _folders(folder) if _holds_image(one)]
    names = {one.name for one in holding}
    if not holding:
        return None
    if "train" in names and names & PARTS.keys():
        return Found("images", folder)
    _check_parts(folder, names)
    if len(holding) > 1:
        return Found("images", folder)
    inner = _images(holding[0])
    if inner is None:
        return Found("images", folder)
    return Found("images", inner.path, notes=(f"the only folder in {folder} is taken: {inner.path}", *inner.notes[1:]))


def _check_parts(folder: Path, names: set[str]) -> None:
    """Refuse folders named like parts of the data that would be taken for classes."""
    parts = sorted(name for name in names if name.lower() in PARTS_OF_OTHERS)
    if parts and len(parts) == len(names):
        raise UserInputError(
            f"{folder}: the folders {', '.join(parts)} look like parts of the data, not classes; name them train, val "
            "and test, of which train must be there"
        )


def _folders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if one.is_dir() and not one.name.startswith((".", "__MACOSX")))


def _holds_image(folder: Path) -> bool:
    return any(_is_image(name) for _, _, names in os.walk(folder) for name in names)


def _listed(folder: Path) -> str:
    """What lies in a folder, in words."""
    entries = sorted(folder.iterdir())
    loose = sum(_is_image(one.name) for one in entries if one.is_file())
    if loose:
        return f"{loose} image{'s' if loose > 1 else ''} without folders of classes, in {_names(entries)}"
    return _names(entries) if entries else "an empty folder"


def _names(entries: list[Path]) -> str:
    more = f" and {len(entries) - MOST_NAMED} more" if len(entries) > MOST_NAMED else ""
    return ", ".join(f"{one.name}/" if one.is_dir() else one.name for one in entries[:MOST_NAMED]) + more
