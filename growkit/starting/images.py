"""How images are read: one size for all, grey or colour."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from growkit.data.listing import EXTENSIONS
from growkit.starting.page import Section
from growkit.starting.recognise import Found

__all__ = ["class_names", "image_section"]

SIDES = (32, 48, 64, 96, 128, 160, 192, 224)
MOST_BYTES = 2 * 2**30  # of decoded images, so that they can lie in memory and need not be streamed
GREY = ("1", "L", "LA", "I", "I;16", "I;16B", "F")

Header = tuple[tuple[int, int], str]  # width and height, and Pillow's mode


def image_section(found: Found) -> tuple[Section, list[str]]:
    """The settings that read a folder of images, and what the user should know."""
    headers = list(_headers(found.path))
    shapes = Counter(shape for shape, _ in headers)
    grey = bool(headers) and all(mode in GREY for _, mode in headers)
    section = Section()
    section.put("name", "imagefolder", "PATH/CLASS/FILE, or PATH/train/CLASS/FILE with val and test beside it")
    section.put("path", str(found.path), "as seen from where growkit runs")
    size, why = _size(shapes, 1 if grey else 3)
    section.put("size", size, why)
    section.put("mode", "grey" if grey else "rgb", "or rgb" if grey else "or grey: a third of the memory")
    section.put("skip_broken", False, "true leaves out what cannot be decoded, and lists it")
    deep = sum(mode.startswith("I") for _, mode in headers)
    notes = [f"{deep} images have 16 bits, of which the upper 8 are read"] if deep else []
    return section, [*found.notes, *notes]


def _headers(root: Path) -> Iterator[Header]:
    """Of the images that have one that can be read; the others are named when they are decoded."""
    files = (one for one in root.rglob("*") if one.name.lower().endswith(EXTENSIONS) and one.is_file())
    with ThreadPoolExecutor() as threads:
        yield from (header for header in threads.map(_header, files) if header is not None)


def _header(file: Path) -> Header | None:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return image.size, image.mode
    except Exception:  # a broken file can make a decoder raise anything
        return None


def _size(shapes: Counter[tuple[int, int]], channels: int) -> tuple[int | None, str]:
    """The side of the square that images are cut to, None for as they are; and why."""
    if not shapes:
        return None, "null: as they are; a number: resized and cut to a square of that side"
    shorter = median(min(shape) for shape in shapes.elements())
    room = MOST_BYTES / (channels * sum(shapes.values()))
    if len(shapes) == 1 and max(next(iter(shapes))) <= SIDES[-1]:
        width, height = next(iter(shapes))
        if width * height <= room:
            return None, f"null: as they are, {height}x{width}; a number: resized and cut to a square of that side"
    fitting = [side for side in SIDES if side <= shorter and side**2 <= room]
    side = fitting[-1] if fitting else min(SIDES[0], int(shorter))
    least, most = min(map(min, shapes)), max(map(max, shapes))
    return side, f"all are resized and cut to this side; theirs go from {least} to {most} pixels"


def class_names(root: Path) -> list[str]:
    """The folders of classes, in the order of their numbers."""
    within = root / "train" if (root / "train").is_dir() else root
    return sorted(one.name for one in within.iterdir() if one.is_dir() and not one.name.startswith("."))
