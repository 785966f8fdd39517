"""One image of a folder: from its file to numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from growkit.config.data import ImageFolderSettings
from growkit.errors import DataError

__all__ = ["decode_image", "shape_of", "size_of"]


def size_of(image: np.ndarray) -> str:
    """Height and width of an image [C, H, W], for messages."""
    return f"{image.shape[1]}x{image.shape[2]}"


def decode_image(root: Path, settings: ImageFolderSettings, name: str) -> np.ndarray | str:
    """An image, uint8 [C, H, W]; one that is broken and may be left out as a text that says why.

    As torchvision reads it, but of 16 bits the upper 8 are kept, where Pillow would make all above 255 white.

    Raises:
        DataError: it is broken and may not be left out.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(root / name) as file:
            image = _of_8_bits(file).convert("RGB" if settings.mode == "rgb" else "L")
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


def _of_8_bits(image: Any) -> Any:
    """The same image where it has 8 bits.

    Raises:
        ValueError: its numbers have no scale.
    """
    from PIL import Image

    if not image.mode.startswith(("I", "F")):
        return image
    values = np.asarray(image)
    if image.mode == "F" or values.min() < 0 or values.max() >= 2**16:
        raise ValueError(f"{values.dtype} pixels from {values.min()} to {values.max()}, wanted 8 or 16 bits")
    return Image.fromarray((values // 256).astype(np.uint8))


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


def shape_of(root: Path, settings: ImageFolderSettings, name: str) -> tuple[int, int, int] | None:
    """(C, H, W) of an image once it is decoded, by the head of its file; None where that cannot be read."""
    from PIL import Image, UnidentifiedImageError

    channels = 3 if settings.mode == "rgb" else 1
    if settings.size is not None:
        return channels, settings.size, settings.size
    try:
        with Image.open(root / name) as file:
            width, height = file.size
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    return channels, height, width
