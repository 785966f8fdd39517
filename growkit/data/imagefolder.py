"""Folders of images, a folder for each class: decoded once into uint8, kept in a cache that knows its files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from growkit.config.data import ImageFolderSettings
from growkit.data.packed import Packed, cache_file, read_packed, write_packed
from growkit.data.records import Source, Split
from growkit.errors import DataError

__all__ = ["Listing", "list_images", "read_imagefolder"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # those of torchvision
PARTS = {"train": "train", "val": "validate", "valid": "validate", "validate": "validate", "test": "test"}
MOST_SKIPPED = 5  # that are named


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


def read_imagefolder(settings: ImageFolderSettings) -> Source:
    """Images by class: PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val and test beside it.

    Raises:
        DataError: a folder is missing or empty, an image cannot be decoded, or sizes differ.
    """
    root = Path(settings.path)
    listings = _listings(root)
    cache = cache_file(settings, [(part, one.root, one.files) for part, one in listings.items()])
    packed, note = read_packed(cache)
    if packed is None:
        packed = {part: _pack(listing, settings) for part, listing in listings.items()}
        sizes = {part: tuple(one.images.shape[1:]) for part, one in packed.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"{root}: all images must have one size, got {sizes} (channels first); set data.size")
        write_packed(cache, packed)
    splits = {part: Split(one.images, one.labels) for part, one in packed.items()}
    _check_left(listings["train"], packed["train"])
    notes = [text for one in packed.values() for text in one.notes] + ([note] if note else [])
    return Source(root.name, splits.pop("train"), splits, notes=tuple(notes))


def _check_left(listing: Listing, packed: Packed) -> None:
    """Refuse a class of which every image was left out: numbers of classes would shift, or end early."""
    left = {*packed.labels.tolist()}
    lost = [name for number, name in enumerate(listing.classes) if number not in left]
    if lost:
        raise DataError(f"{listing.root / lost[0]}: a class must have an image that can be decoded, got none")


def _listings(root: Path) -> dict[str, Listing]:
    """By part of the data; all of them have the classes of train."""
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


def _pack(listing: Listing, settings: ImageFolderSettings) -> Packed:
    with ThreadPoolExecutor(settings.workers or os.cpu_count()) as threads:
        decoded = list(threads.map(partial(_decode, listing.root, settings), listing.files))
    skipped = [image for image in decoded if isinstance(image, str)]
    good = [
        (image, name, label)
        for image, name, label in zip(decoded, listing.files, listing.labels, strict=True)
        if not isinstance(image, str)
    ]
    if not good:
        raise DataError(f"{listing.root}: there must be an image that can be decoded, got none; first: {skipped[0]}")
    (first, first_name, _), *others = good
    for image, name, _ in others:
        if image.shape != first.shape:
            raise DataError(
                f"{listing.root}: all images must have one size, got {_size(first)} ({first_name}) and {_size(image)} "
                f"({name}); set data.size, which resizes and crops"
            )
    images = torch.from_numpy(np.stack([image for image, _, _ in good]))
    return Packed(images, torch.tensor([label for _, _, label in good]), _notes(listing, skipped))


def _notes(listing: Listing, skipped: list[str]) -> tuple[str, ...]:
    if not skipped:
        return ()
    more = f"; and {len(skipped) - MOST_SKIPPED} more" if len(skipped) > MOST_SKIPPED else ""
    listed = "; ".join(skipped[:MOST_SKIPPED])
    return (f"{listing.root}: {len(skipped)} of {len(listing.files)} images were left out: {listed}{more}",)


def _size(image: np.ndarray) -> str:
    return f"{image.shape[1]}x{image.shape[2]}"


def _decode(root: Path, settings: ImageFolderSettings, name: str) -> np.ndarray | str:
    """An image [C, H, W]; one that is broken and may be left out as a text that says why."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(root / name) as file:
            image = file.convert("RGB" if settings.mode == "rgb" else "L")
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if settings.skip_broken:
            return f"{name} ({type(error).__name__})"
        raise DataError(
            f"{root / name}: an image must be one that can be decoded, got {type(error).__name__}: {error}; remove it, "
            "or set data.skip_broken: true"
        ) from error
    if settings.size is not None:
        image = _resized(image, settings.size)
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _resized(image: Any, size: int) -> Any:
    """The shorter side becomes `size`, the middle is cut out: as torchvision's Resize and CenterCrop."""
    from PIL import Image

    width, height = image.size
    short, long = min(width, height), int(size * max(width, height) / min(width, height))
    if short != size:
        image = image.resize((size, long) if width <= height else (long, size), Image.Resampling.BILINEAR)
    width, height = image.size
    left, top = round((width - size) / 2.0), round((height - size) / 2.0)
    return image.crop((left, top, left + size, top + size))
