"""Folders of images, a folder for each class: decoded once into a cache that knows its files, or streamed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from growkit.config.data import ImageFolderSettings
from growkit.data.decoding import decode_image, size_of
from growkit.data.files import num_workers
from growkit.data.listing import Listing, left_out, list_parts, not_read
from growkit.data.packed import Packed, cache_file, read_packed, write_packed
from growkit.data.records import Source, Split
from growkit.data.streaming import how_to_read, stream_parts
from growkit.errors import DataError

__all__ = ["MOMENTS_FROM", "read_imagefolder"]

MOMENTS_FROM = 10_000  # training images, also of a folder that is not streamed: results do not tell which it was


def read_imagefolder(settings: ImageFolderSettings) -> Source:
    """Images by class: PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val and test beside it.

    Raises:
        DataError: a folder is missing or empty, an image cannot be decoded, or sizes differ. Of images that are
            streamed this is found when they are met, but with `skip_broken` beforehand.
    """
    root = Path(settings.path)
    listings = list_parts(root)
    how = how_to_read(settings, listings)
    splits, notes = stream_parts(settings, listings) if how.streams else _packed_parts(settings, root, listings)
    _check_left(listings["train"], splits["train"].targets)
    notes = (*(note for one in listings.values() for note in not_read(one)), *notes)
    pool = splits.pop("train")
    return Source(root.name, pool, splits, notes=notes, reading=how.reason, moments_from=MOMENTS_FROM)


def _packed_parts(
    settings: ImageFolderSettings, root: Path, listings: dict[str, Listing]
) -> tuple[dict[str, Split], tuple[str, ...]]:
    cache = cache_file(settings, [(part, one.root, one.files) for part, one in listings.items()])
    packed, note = read_packed(cache)
    if packed is None:
        packed = {part: _pack(listing, settings) for part, listing in listings.items()}
        sizes = {part: tuple(one.images.shape[1:]) for part, one in packed.items()}
        if len(set(sizes.values())) > 1:
            raise DataError(f"{root}: all images must have one size, got {sizes} (channels first); set data.size")
        write_packed(cache, packed)
    notes = [text for one in packed.values() for text in one.notes] + ([note] if note else [])
    return {part: Split(one.images, one.labels) for part, one in packed.items()}, tuple(notes)


def _check_left(listing: Listing, labels: Tensor) -> None:
    """Refuse a class of which every image was left out: numbers of classes would shift, or end early."""
    left = {*labels.tolist()}
    lost = [name for number, name in enumerate(listing.classes) if number not in left]
    if lost:
        raise DataError(f"{listing.root / lost[0]}: a class must have an image that can be decoded, got none")


def _pack(listing: Listing, settings: ImageFolderSettings) -> Packed:
    with ThreadPoolExecutor(num_workers(settings.workers) or 1) as threads:
        decoded = list(threads.map(partial(decode_image, listing.root, settings), listing.files))
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
                f"{listing.root}: all images must have one size, got {size_of(first)} ({first_name}) and "
                f"{size_of(image)} ({name}); set data.size, which resizes and crops"
            )
    images = torch.from_numpy(np.stack([image for image, _, _ in good]))
    return Packed(images, torch.tensor([label for _, _, label in good]), left_out(listing, skipped))
