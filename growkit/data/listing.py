"""Which images a folder of classes holds."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from growkit.errors import DataError

__all__ = ["EXTENSIONS", "PARTS", "Listing", "left_out", "list_images", "list_parts", "not_read"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
OF_DESKTOPS = ("thumbs.db", "desktop.ini")  # which nobody put there
MOST_NAMED = 5
PARTS = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate", "test": "test"}


@dataclass(frozen=True)
class Listing:
    """The images of one folder of classes.

    Attributes:
        root: the folder.
        classes: their names, sorted; the number of a class is its place.
        files: paths below the root.
        labels: the class of each file.
        unread: other files in the folders of classes, which are not read.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: tuple[int, ...]
    unread: tuple[str, ...] = ()


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
    unread: list[str] = []
    for folder in folders:
        images, others = _files_in(root, folder)
        if not images:
            raise DataError(
                f"{root / folder}: a class must have an image ({', '.join(EXTENSIONS)}), got none; remove the folder"
            )
        files += images
        unread += others
        labels += [names.index(folder)] * len(images)
    return Listing(root, names, tuple(files), tuple(labels), tuple(unread))


def _files_in(root: Path, folder: str) -> tuple[list[str], list[str]]:
    """Images and other files below a folder; neither hidden ones nor those of a desktop."""
    images: list[str] = []
    others: list[str] = []
    for place, folders, files in os.walk(root / folder):
        folders.sort()
        inside = os.path.relpath(place, root)
        for name in sorted(files):
            if name.lower().endswith(EXTENSIONS):
                images.append(os.path.join(inside, name))
            elif not name.startswith(".") and name.lower() not in OF_DESKTOPS:
                others.append(os.path.join(inside, name))
    return images, others


def not_read(listing: Listing) -> tuple[str, ...]:
    """What the user should know of files that are no images by their extensions."""
    if not listing.unread:
        return ()
    listed = _first(listing.unread, ", ")
    return (f"{listing.root}: {len(listing.unread)} files are not read, for their extensions: {listed}",)


def left_out(listing: Listing, broken: Sequence[str]) -> tuple[str, ...]:
    """What the user should know of images that were left out, each by its name.

    Args:
        listing: all of them.
        broken: of each that was left out, its name and why.
    """
    if not broken:
        return ()
    return (f"{listing.root}: {len(broken)} of {len(listing.files)} images were left out: {'; '.join(broken)}",)


def _first(names: Sequence[str], between: str) -> str:
    more = f"{between}and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return between.join(names[:MOST_NAMED]) + more
