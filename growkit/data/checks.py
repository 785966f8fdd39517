"""What every source must fulfil, whoever wrote it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from growkit.config.data import AugmentSettings
from growkit.data.policies import check_torchvision
from growkit.data.records import LANGUAGE, PAIRS, Source
from growkit.errors import DataError

__all__ = ["augment_notes", "check_augment", "check_classes", "check_finite"]

HALF_WHITE = 127  # images that are nowhere brighter are taken to have another scale than 0 .. 255


def check_classes(where: str, name: str, labels: Tensor, others: Mapping[str, Tensor]) -> None:
    """Refuse labels that are not 0 .. K-1, each present, and labels of other splits that training never saw.

    Args:
        where: the file or source, for the message.
        name: what the training labels are called there.
        labels: [N] int64.
        others: labels of splits that the source brings itself.

    Raises:
        DataError: naming the labels that are wrong.
    """
    found = labels.unique()
    if not torch.equal(found, torch.arange(len(found))):
        raise DataError(
            f"{where}: {name} must be 0 .. K-1 with every class present, got {len(found)} classes between "
            f"{int(found[0])} and {int(found[-1])}; `numpy.unique(labels, return_inverse=True)[1]` renumbers them"
        )
    for other, theirs in others.items():
        if len(theirs) and not 0 <= int(theirs.min()) <= int(theirs.max()) < len(found):
            raise DataError(
                f"{where}: {other} must be among the {len(found)} classes of {name}, got labels between "
                f"{int(theirs.min())} and {int(theirs.max())}"
            )


def check_finite(where: str, values: Tensor) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: saying how many there are.
    """
    wrong = int((~torch.isfinite(values)).sum())
    if wrong:
        raise DataError(f"{where} must be finite, got {wrong} of {values.numel()} NaN or infinite; fill or drop them")


def check_augment(name: str, task: str, inputs: Tensor, augment: AugmentSettings) -> None:
    """Refuse an augmentation that these inputs cannot have.

    Args:
        name: of the data, for the message.
        task: of the data.
        inputs: of the train split, as they are stored.
        augment: what is asked for.

    Raises:
        DataError: naming the setting.
    """
    where, found = f"data {name!r}", f"got {inputs.dtype} inputs of shape {list(inputs.shape)}"
    if (augment.crop or augment.flip or augment.policy or augment.cutout) and inputs.dim() != 4:
        raise DataError(
            f"{where}: data.augment needs images [N, C, H, W], {found}; set crop and cutout to 0, flip to false and "
            "policy to null"
        )
    side = max(inputs.shape[2:], default=0)
    for setting, pixels in (("crop", augment.crop), ("cutout", augment.cutout)):
        if pixels > side:
            raise DataError(
                f"{where}: data.augment.{setting} must be at most the side of the images, {side} pixels, got {pixels}"
            )
    if augment.policy is not None:
        if inputs.dtype != torch.uint8 or inputs.shape[1] not in (1, 3):
            raise DataError(
                f"{where}: data.augment.policy needs uint8 images of 1 or 3 channels, {found}; set it to null"
            )
        check_torchvision()
    if augment.mixup and (
        task in (LANGUAGE, PAIRS) or not (inputs.dtype.is_floating_point or inputs.dtype == torch.uint8)
    ):
        raise DataError(f"{where}: data.augment.mixup needs images or floats, which have means, {found}; set it to 0")


def augment_notes(source: Source, augment: AugmentSettings) -> list[str]:
    """What the user should know of an augmentation that these data can have."""
    images = source.pool.inputs
    if (
        augment.policy is None
        or not isinstance(images, Tensor)
        or images.dtype != torch.uint8
        or (brightest := int(images.max())) > HALF_WHITE
    ):
        return []
    return [
        f"data.augment.policy is made for images from 0 to 255, those of {source.name!r} end at {brightest}: "
        "AutoContrast and Invert will make them many times brighter, Equalize, Solarize and Posterize do little"
    ]
