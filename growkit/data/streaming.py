"""Folders of images that are too large for memory: which are, and their splits without a decoded image."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, cast

import torch

from growkit.config.data import ImageFolderSettings
from growkit.data.ahead import CHUNK, ahead
from growkit.data.decoding import decode_image, shape_of
from growkit.data.files import ImageFiles, num_workers
from growkit.data.listing import Listing, left_out
from growkit.data.records import Split
from growkit.environment import total_memory
from growkit.errors import DataError

__all__ = ["HowToRead", "how_to_read", "stream_parts"]

SHARE = 0.25  # of the memory that decoded images may take: splitting copies them once, and the model needs some too
GIB = 2**30


@dataclass(frozen=True)
class HowToRead:
    """Whether images are streamed, and why, for the user."""

    streams: bool
    reason: str


def how_to_read(settings: ImageFolderSettings, listings: Mapping[str, Listing]) -> HowToRead:
    """What `data.stream` says, or follows from the size of the images and of the memory."""
    kinds = {True: "streamed from their files", False: "decoded once into memory"}
    if settings.stream != "auto":
        return HowToRead(settings.stream, f"{kinds[settings.stream]}, as data.stream says")
    shape = next((shape for one in listings.values() if (shape := _shape(settings, one)) is not None), (0,))
    size, memory = prod(shape) * sum(len(one.files) for one in listings.values()), total_memory()
    streams = memory is not None and size > SHARE * memory
    known = "an unknown size" if memory is None else f"{memory / GIB:.3g} GiB"
    more = "more" if streams else "not more"
    return HowToRead(
        streams,
        f"{kinds[streams]}: decoded they take {size / GIB:.3g} GiB, {more} than {SHARE:.0%} of the memory, {known}",
    )


def stream_parts(
    settings: ImageFolderSettings, listings: Mapping[str, Listing]
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """The splits of images that stay in their files, and what the user should know.

    Raises:
        DataError: no image of a part can be opened, or parts differ in size.
    """
    splits, notes = {}, []
    for part, listing in listings.items():
        kept, said = _without_broken(settings, listing) if settings.skip_broken else (range(len(listing.files)), ())
        names = [listing.files[row] for row in kept]
        shape = _shape(settings, Listing(listing.root, listing.classes, tuple(names), ()))
        if shape is None:
            raise DataError(f"{listing.root}: there must be an image that can be decoded, got none")
        images = ImageFiles.of(listing.root, names, shape, settings)
        # it stands where a tensor of images does, for all that is done to the inputs of a split
        splits[part] = Split(cast(Any, images), torch.tensor([listing.labels[row] for row in kept]))
        notes += said
    sizes = {part: tuple(one.inputs.shape[1:]) for part, one in splits.items()}
    if len(set(sizes.values())) > 1:
        raise DataError(f"{settings.path}: all images must have one size, got {sizes} (channels first); set data.size")
    return splits, tuple(notes)


def _shape(settings: ImageFolderSettings, listing: Listing) -> tuple[int, int, int] | None:
    shapes = (shape_of(listing.root, settings, name) for name in listing.files)
    return next((shape for shape in shapes if shape is not None), None)


def _without_broken(settings: ImageFolderSettings, listing: Listing) -> tuple[list[int], tuple[str, ...]]:
    """The rows of images that can be decoded, by decoding each of them once."""
    started = time.perf_counter()
    everything = list(range(len(listing.files)))
    chunks = [everything[start : start + CHUNK] for start in range(0, len(everything), CHUNK)]
    workers = min(num_workers(settings.workers), len(chunks))
    results = ahead(_Trial(settings, listing), chunks, workers, depth=2 * workers)
    broken: dict[int, str] = {row: why for result in results for row, why in result}
    seconds = time.perf_counter() - started
    cost = (
        f"{listing.root}: {len(everything):,} images were decoded in {seconds:.0f} s to find broken ones, which "
        "data.skip_broken asks for"
    )
    return [row for row in everything if row not in broken], (cost, *left_out(listing, list(broken.values())))


@dataclass(frozen=True)
class _Trial:
    settings: ImageFolderSettings
    listing: Listing

    def __call__(self, rows: Sequence[int]) -> list[tuple[int, str]]:
        decoded = ((row, decode_image(self.listing.root, self.settings, self.listing.files[row])) for row in rows)
        return [(row, image) for row, image in decoded if isinstance(image, str)]
