"""RandAugment and AutoAugment on batches: what happens to each image is drawn first, then each operation applied once.

Operations, magnitudes and pairs of operations are torchvision's. Images are moved by an index of where each pixel comes
from, which torchvision works out once on the CPU: so they move alike on every device, and all at once.

Legend: B images, S steps, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import pad

from growkit.config.data import AnyPolicy, RandAugmentSettings
from growkit.data.augment import send
from growkit.device import exact_arithmetic
from growkit.errors import DataError

__all__ = ["OPERATIONS", "Steps", "apply_operation", "apply_steps", "check_torchvision", "draw_steps", "magnitude_of"]

MOVES = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
COLOURS = ("Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = ("Identity", *MOVES, *COLOURS, "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert")
LARGEST = {"ShearX": 0.3, "ShearY": 0.3, "Rotate": 30.0, **dict.fromkeys(COLOURS, 0.9)}
LARGEST_SHIFT = 150.0 / 331.0  # of the side
RANDOM = tuple(name for name in OPERATIONS if name != "Invert")  # those of RandAugment
RANDOM_LEVELS, LEARNED_LEVELS = 31, 10


@dataclass(frozen=True, eq=False)
class Steps:
    """The chance in one batch under a policy; it stays on the CPU, where operations are chosen.

    Attributes:
        operations: [B, S] places in OPERATIONS.
        magnitudes: [B, S] with their sign; 0 where an operation has none.
    """

    operations: Tensor
    magnitudes: Tensor


@dataclass(frozen=True, eq=False)
class _Rows:
    """What can be drawn: rows of operations, all of a row one after the other, each with its probability."""

    operations: Tensor
    probabilities: Tensor
    magnitudes: Tensor


def check_torchvision() -> None:
    """Refuse a policy where torchvision is absent.

    Raises:
        DataError: it cannot be imported.
    """
    try:
        import torchvision.transforms.v2  # noqa: F401
    except ImportError as error:
        raise DataError(f"data.augment.policy needs torchvision, run `pip install torchvision`: {error}") from error


def draw_steps(settings: AnyPolicy, shape: tuple[int, int, int], generator: torch.Generator) -> Steps:
    """Draw what one batch needs.

    Args:
        settings: the policy.
        shape: (B, H, W).
        generator: the CPU stream to draw from.
    """
    batch, height, width = shape
    rows = _rows(settings, height, width)
    draws = settings.operations if isinstance(settings, RandAugmentSettings) else 1
    chosen = torch.randint(0, len(rows.operations), (batch, draws), generator=generator)
    happens = torch.rand(rows.probabilities[chosen].shape, generator=generator) < rows.probabilities[chosen]
    operations = torch.where(happens, rows.operations[chosen], OPERATIONS.index("Identity"))
    signed = torch.tensor([name in MOVES + COLOURS for name in OPERATIONS])[operations]
    negative = torch.randint(0, 2, operations.shape, generator=generator).bool() & signed
    magnitudes = torch.where(happens, rows.magnitudes[chosen], 0.0)
    return Steps(operations.flatten(1), torch.where(negative, -magnitudes, magnitudes).flatten(1))


def _rows(settings: AnyPolicy, height: int, width: int) -> _Rows:
    if isinstance(settings, RandAugmentSettings):
        return _random_rows(settings.magnitude, height, width)
    return _learned_rows(settings.policy, height, width)


@lru_cache(maxsize=8)
def _random_rows(level: int, height: int, width: int) -> _Rows:
    return _as_rows([((name, 1.0, level),) for name in RANDOM], RANDOM_LEVELS, height, width)


@lru_cache(maxsize=8)
def _learned_rows(policy: str, height: int, width: int) -> _Rows:
    from torchvision.transforms import AutoAugment, AutoAugmentPolicy

    return _as_rows(AutoAugment(AutoAugmentPolicy(policy)).policies, LEARNED_LEVELS, height, width)


def _as_rows(rows: Sequence[Sequence[tuple[str, float, int | None]]], levels: int, height: int, width: int) -> _Rows:
    """Rows of operations, each with its probability and the level of its magnitude."""
    return _Rows(
        torch.tensor([[OPERATIONS.index(name) for name, _, _ in row] for row in rows]),
        torch.tensor([[probability for _, probability, _ in row] for row in rows]),
        torch.tensor(
            [[magnitude_of(name, level or 0, levels, height, width) for name, _, level in row] for row in rows],
            dtype=torch.float64,
        ),
    )


def magnitude_of(name: str, level: int, levels: int, height: int, width: int) -> float:
    """The magnitude of an operation, without sign: so much of a shear, degrees, pixels, bits, or share of 255.

    Args:
        name: one of OPERATIONS.
        level: 0 .. levels - 1.
        levels: how many there are.
        height: of the images; the shift of a translation is a share of their side.
        width: likewise.
    """
    if name == "Posterize":
        return float((8 - (torch.arange(levels) / ((levels - 1) / 4))).round()[level])
    if name == "Solarize":
        return float(torch.linspace(1.0, 0.0, levels)[level])
    shifts = {"TranslateX": LARGEST_SHIFT * width, "TranslateY": LARGEST_SHIFT * height}
    largest = {**LARGEST, **shifts}.get(name, 0.0)
    return float(torch.linspace(0.0, largest, levels)[level])


def apply_steps(images: Tensor, steps: Steps) -> Tensor:
    """The images after all steps.

    Args:
        images: uint8 [B, C, H, W] of 1 or 3 channels.
        steps: as drawn for them.
    """
    images = images.clone()
    with exact_arithmetic():
        for operations, magnitudes in zip(steps.operations.unbind(1), steps.magnitudes.unbind(1), strict=True):
            _step(images, operations.tolist(), magnitudes.tolist())
    return images


def _step(images: Tensor, operations: Sequence[int], magnitudes: Sequence[float]) -> None:
    """One operation on each image, in place."""
    groups: dict[tuple[str, float], list[int]] = {}
    for image, (operation, magnitude) in enumerate(zip(operations, magnitudes, strict=True)):
        groups.setdefault((OPERATIONS[operation], magnitude), []).append(image)
    moves = {group: groups.pop(group) for group in list(groups) if group[0] in MOVES}
    if moves:
        _move(images, moves)
    for (name, magnitude), members in groups.items():
        if name != "Identity":
            index = send(torch.tensor(members), images.device)
            images[index] = apply_operation(name, images[index], magnitude)


def _move(images: Tensor, groups: dict[tuple[str, float], list[int]]) -> None:
    """Every pixel of the groups' images from where it comes from, in place; black from outside."""
    device, (_, channels, height, width) = images.device, images.shape
    sources = torch.stack([_sources(name, magnitude, height, width) for name, magnitude in groups])
    group = torch.repeat_interleave(torch.arange(len(groups)), torch.tensor([len(one) for one in groups.values()]))
    index = send(torch.tensor([image for members in groups.values() for image in members]), device)
    taken = send(sources, device)[send(group, device)][:, None].expand(-1, channels, -1)
    moved = pad(images[index].flatten(2), (1, 0)).gather(2, taken)
    images[index] = moved.unflatten(2, (height, width))


@lru_cache(maxsize=64)
def _sources(name: str, magnitude: float, height: int, width: int) -> Tensor:
    """[H * W] which pixel comes to each place, counted from 1; 0 for one from outside."""
    numbers = torch.arange(1.0, height * width + 1).view(1, height, width)
    return apply_operation(name, numbers, magnitude).flatten().long()


def apply_operation(name: str, images: Tensor, magnitude: float) -> Tensor:
    """One operation on images [..., C, H, W], as torchvision's AutoAugment has it: nearest pixels, black from outside.

    Args:
        name: one of OPERATIONS.
        images: uint8; an operation of MOVES takes any numbers.
        magnitude: with its sign; unused by an operation that has none.
    """
    from torchvision.transforms.v2 import functional as F

    match name:
        case "Identity":
            return images
        case "ShearX" | "ShearY":
            angle = math.degrees(math.atan(magnitude))
            shear = [angle, 0.0] if name == "ShearX" else [0.0, angle]
            return F.affine(images, angle=0.0, translate=[0, 0], scale=1.0, shear=shear, center=[0, 0])
        case "TranslateX" | "TranslateY":
            pixels = float(int(magnitude))
            shift = [pixels, 0.0] if name == "TranslateX" else [0.0, pixels]
            return F.affine(images, angle=0.0, translate=shift, scale=1.0, shear=[0.0, 0.0])
        case "Rotate":
            return F.rotate(images, angle=magnitude)
        case "Brightness":
            return F.adjust_brightness(images, brightness_factor=1.0 + magnitude)
        case "Color":
            return F.adjust_saturation(images, saturation_factor=1.0 + magnitude)
        case "Contrast":
            return F.adjust_contrast(images, contrast_factor=1.0 + magnitude)
        case "Sharpness":
            return F.adjust_sharpness(images, sharpness_factor=1.0 + magnitude)
        case "Posterize":
            return F.posterize(images, bits=int(magnitude))
        case "Solarize":
            return F.solarize(images, threshold=255.0 * magnitude)
        case "AutoContrast":
            return F.autocontrast(images)
        case "Equalize":
            return F.equalize(images)
        case "Invert":
            return F.invert(images)
    raise ValueError(f"an operation must be one of {', '.join(OPERATIONS)}, got {name!r}")
