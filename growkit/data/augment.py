"""Augmentation of image batches: chance is drawn first, on the CPU, then applied to the whole batch at once.

Crop and flip move bytes, so they run on the stored numbers (uint8) before the one conversion to floats; a policy
(`policies`) follows on the same; cutout comes after normalisation, where the mean is 0, and `mixup` last. Drawing apart
from applying is what lets a test compare with a slow loop.

Legend: B batch, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from growkit.config.data import AugmentSettings

__all__ = ["Draws", "crop", "cutout", "draw", "flip", "normalise", "send"]


@dataclass(frozen=True, eq=False)
class Draws:
    """The chance in one augmented batch; None where an operation is off.

    Attributes:
        window: [B, 2] top and left corner of the crop in the padded image, each in 0..2 * crop.
        mirrored: [B] whether the image is mirrored.
        centre: [B, 2] row and column of the middle of the cut-out square, anywhere in the image.
    """

    window: Tensor | None = None
    mirrored: Tensor | None = None
    centre: Tensor | None = None

    def to(self, device: torch.device) -> Draws:
        """These draws on `device`, without waiting for it."""
        return Draws(*(None if t is None else send(t, device) for t in (self.window, self.mirrored, self.centre)))


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """A small CPU tensor on `device`; from pinned memory, since a copy from ordinary memory makes the host wait."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def draw(settings: AugmentSettings, shape: tuple[int, int, int], generator: torch.Generator) -> Draws:
    """Draw what one batch needs.

    Args:
        settings: which operations, and how strong.
        shape: (B, H, W).
        generator: the CPU stream to draw from; an operation that is off draws nothing.
    """
    batch, height, width = shape
    window = mirrored = centre = None
    if settings.crop:
        window = torch.randint(0, 2 * settings.crop + 1, (batch, 2), generator=generator)
    if settings.flip:
        mirrored = torch.randint(0, 2, (batch,), generator=generator).bool()
    if settings.cutout:
        rows = torch.randint(0, height, (batch,), generator=generator)
        centre = torch.stack([rows, torch.randint(0, width, (batch,), generator=generator)], dim=1)
    return Draws(window, mirrored, centre)


def crop(images: Tensor, padding: int, window: Tensor) -> Tensor:
    """Pad with zeros and cut each image's window of the original size [B, C, H, W] -> [B, C, H, W].

    Args:
        images: of any dtype.
        padding: pixels on each side.
        window: [B, 2] top-left corners in the padded images.
    """
    height, width = images.shape[-2:]
    # [B, C, 2p+1, 2p+1, H, W], a view: every possible window without copying one
    windows = pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, window[:, 0], window[:, 1]]


def flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left-right the images [B, C, H, W] marked in `mirrored` [B]."""
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, side: int, centre: Tensor) -> Tensor:
    """Set a square to 0, the mean of normalised images (DeVries and Taylor, 2017).

    Args:
        images: normalised, [B, C, H, W].
        side: of the square, which is clipped at the borders.
        centre: [B, 2] its middle; of an even side, the pixel below and right of the middle.
    """
    cut = [
        (along >= middle) & (along < middle + side)
        for along, middle in (
            (torch.arange(size, device=images.device), centre[:, axis, None] - side // 2)
            for axis, size in enumerate(images.shape[-2:])
        )
    ]
    return images.masked_fill((cut[0][:, :, None] & cut[1][:, None, :])[:, None], 0.0)


def normalise(inputs: Tensor, mean: Tensor, std: Tensor, *, channels_last: bool = False) -> Tensor:
    """Stored numbers as a model sees them: (x - mean) / std per channel of uint8 images and per feature of tables.

    Anything else is untouched.

    Args:
        inputs: [B, C, H, W] uint8, or [B, ...] of another dtype.
        mean: [C], [F] of a table, or one number.
        std: likewise.
        channels_last: the memory layout of images.
    """
    layout = torch.channels_last if channels_last and inputs.dim() == 4 else torch.contiguous_format
    if inputs.is_floating_point() and inputs.dim() == 2 and len(mean) == inputs.shape[1] > 1:
        return (inputs - mean) / std
    if inputs.dtype != torch.uint8:
        return inputs.contiguous(memory_format=layout)
    floats = inputs.to(torch.float32, memory_format=layout)
    return floats.sub_(mean[:, None, None]).div_(std[:, None, None])
