"""Which images a folder of classes holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growkit.errors import DataError

__all__ = ["EXTENSIONS", "PARTS", "Listing", "left_out", "list_images", "list_parts"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
MOST_LEFT_OUT = 5  # that are named
PARTS = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate", "test": "test"}


@dataclass(frozen=True)
class Listing:
    """The images of one folder of classes.

    Attributes:
        root: the folder.
        classes: their names, sorted; the number of a class is its place.
        files: paths below the root.
        labels: the class of each file.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]


def list_parts(root: Path) -> dict[str, Listing]:
    """The images of train, and of validate and test where they have folders; all have the classes of train.

    Raises:
        DataError: a folder is missing or empty, or holds a class that train does not have.
    """
    if not root.is_dir():
        raise DataError(f"{root}: data.path must be a folder with a folder of images for each class, there is none")
    if not (root / "train").is_dir():
        return {"train": list_images(root)}
    train = list_images(root / "train")
    found = {"train": train}
    for folder in sorted(one for one in root.iterdir() if one.is_dir() and one.name in PARTS and one.name != "train"):
        part = PARTS[folder.name]
        if part in found:
            raise DataError(f"{root}: a part must lie in one folder, but {folder.name!r} is {part} once more")
        found[part] = list_images(folder, train.classes)
    return found


def list_images(root: Path, classes: Sequence[str] | None = None) -> Listing:
    """The images below a folder, in the order of their names.

    Args:
        root: it holds a folder for each class.
        classes: those that may be there; None takes what is there.

    Raises:
        DataError: there is no class, one without an image, or one that is not among `classes`.
    """
    folders = sorted(one.name for one in root.iterdir() if one.is_dir() and not one.name.startswith("."))
    if not folders:
        raise DataError(f"{root}: a folder of images for each class must be there, got none")
    names = tuple(folders if classes is None else classes)
    unknown = sorted({*folders} - {*names})
    if unknown:
        raise DataError(f"{root / unknown[0]}: a class must be among those of train, {len(names)} of them; it is not")
    files: list[str] = []
    labels: list[int] = []
    for folder in folders:
        images = _files_in(root, folder)
        if not images:
            raise DataError(
                f"{root / folder}: a class must have an image ({', '.join(EXTENSIONS)}), got none; remove the folder"
            )
        files += images
        labels += [names.index(folder)] * len(images)
    return Listing(root, names, tuple(files), tuple(labels))


def _files_in(root: Path, folder: str) -> list[str]:
    found = []
    for place, folders, files in os.walk(root / folder):
        folders.sort()
        inside = Path(place).relative_to(root)
        found += [str(inside / one) for one in sorted(files) if one.lower().endswith(EXTENSIONS)]
    return found


def left_out(listing: Listing, broken: Sequence[str]) -> tuple[str, ...]:
    """What the user should know of images that were left out.

    Args:
        listing: all of them.
        broken: of each that was left out, its name and why.
    """
    if not broken:
        return ()
    more = f"; and {len(broken) - MOST_LEFT_OUT} more" if len(broken) > MOST_LEFT_OUT else ""
    listed = "; ".join(broken[:MOST_LEFT_OUT])
    return (f"{listing.root}: {len(broken)} of {len(listing.files)} images were left out: {listed}{more}",)
