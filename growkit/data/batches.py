"""Batches of a data set that lies whole on its device: no workers, no copies per sample, no waiting for the device.

Images that stay in their files, and images with transforms of their own, are read ahead by other processes instead.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import torch
from torch import Tensor

from growkit.data.ahead import read_ahead
from growkit.data.augment import crop, cutout, draw, flip, normalise, send
from growkit.data.mixup import class_shares, draw_mixture
from growkit.data.policies import apply_steps, draw_steps
from growkit.data.records import CLASSIFICATION, Data, Split
from growkit.errors import DataError

__all__ = ["batches", "num_batches"]


def batches(
    data: Data,
    split: str,
    batch_size: int,
    *,
    order: torch.Generator | None = None,
    augmentation: torch.Generator | None = None,
    channels_last: bool = False,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """The batches of one pass over a split.

    Without `order` the samples come as they lie and every one of them comes. With it they are shuffled, for training,
    and a last batch of a single sample is left out: BatchNorm cannot train on one. Both generators live on the CPU, so
    that a run sees the same samples on any device.

    Args:
        data: the data, on the device where batches are wanted.
        split: "train", "validate", "diagnose", "accept" or "test".
        batch_size: samples per batch, >= 1.
        order: the stream that shuffles.
        augmentation: the stream that augments, by `data.augment`; None leaves images as they are.
        channels_last: the memory layout of images.

    Returns:
        A generator of (inputs, targets): normalised floats [B, ...] and classes [B] or values [B, K]. Where the
        augmentation mixes samples, classes are shares of them, float32 [B, K]. Closing it ends the processes that read
        ahead.

    Raises:
        DataError: no such split, an empty one, or a batch size below 1, raised at once, not at the first batch; or an
            image that cannot be read, when it is met.
        TrainingError: a process that reads ahead ended.
    """
    chosen = data.split(split)
    count = num_batches(data, split, batch_size, training=order is not None)
    if len(chosen) == 0:
        raise DataError(f"data {data.name!r}: the split {split!r} is empty; give it a share in data.split")
    return _batches(data, chosen, batch_size, count, order, augmentation, channels_last)


def num_batches(data: Data, split: str, batch_size: int, training: bool) -> int:
    """How many batches one pass over a split gives; `training` is whether they are shuffled.

    Raises:
        DataError: no such split, or a batch size below 1.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be >= 1, got {batch_size}")
    whole, rest = divmod(len(data.split(split)), batch_size)
    return whole + (rest > 1 if training else rest > 0)


def _batches(
    data: Data,
    split: Split,
    batch_size: int,
    count: int,
    order: torch.Generator | None,
    augmentation: torch.Generator | None,
    channels_last: bool,
) -> Generator[tuple[Tensor, Tensor], None, None]:
    shuffled = None if order is None else torch.randperm(len(split), generator=order)
    spans = [slice(start, start + batch_size) for start in range(0, count * batch_size, batch_size)]
    placed = None if shuffled is None else send(shuffled, split.inputs.device)
    with closing(_stored(data, split, shuffled, placed, spans, augmentation)) as stored:
        for span, images in zip(spans, stored, strict=True):
            targets = split.targets[span if placed is None else placed[span]]
            inputs = _inputs(data, images, augmentation, channels_last)
            yield (inputs, targets) if augmentation is None else _mixed(data, inputs, targets, augmentation)


def _stored(
    data: Data,
    split: Split,
    shuffled: Tensor | None,
    placed: Tensor | None,
    spans: Sequence[slice],
    augmentation: torch.Generator | None,
) -> Generator[Tensor, None, None]:
    """The stored inputs of each batch, transformed where each image has transforms of its own.

    What those draw by, a number for each sample of the split, is drawn here at once: batches do not matter to them.
    `placed` is `shuffled` on the device; both are None where samples come as they lie.
    """
    transform = None if augmentation is None else data.transforms
    if transform is None and isinstance(split.inputs, Tensor):
        for span in spans:
            yield split.inputs[span if placed is None else placed[span]]
        return
    drawn = None if transform is None else torch.randint(2**63 - 1, (len(split),), generator=augmentation)
    rows = torch.arange(len(split)) if shuffled is None else shuffled
    ahead = read_ahead(
        split.inputs, [rows[span] for span in spans], workers=data.workers, transform=transform, seeds=drawn
    )
    with closing(ahead):
        for images in ahead:
            yield send(images, split.inputs.device)


def _inputs(data: Data, stored: Tensor, augmentation: torch.Generator | None, channels_last: bool) -> Tensor:
    if augmentation is None or stored.dim() != 4:
        return normalise(stored, data.mean, data.std, channels_last=channels_last)
    settings, (batch, _, height, width) = data.augment, stored.shape
    draws = draw(settings, (batch, height, width), augmentation).to(stored.device)
    if draws.window is not None:
        stored = crop(stored, settings.crop, draws.window)
    if draws.mirrored is not None:
        stored = flip(stored, draws.mirrored)
    if settings.policy is not None:
        stored = apply_steps(stored, draw_steps(settings.policy, (batch, height, width), augmentation))
    inputs = normalise(stored, data.mean, data.std, channels_last=channels_last)
    return inputs if draws.centre is None else cutout(inputs, settings.cutout, draws.centre)


def _mixed(data: Data, inputs: Tensor, targets: Tensor, augmentation: torch.Generator) -> tuple[Tensor, Tensor]:
    if not data.augment.mixup:
        return inputs, targets
    mixture = draw_mixture(data.augment.mixup, len(targets), augmentation).to(inputs.device)
    shares = class_shares(targets, data.num_outputs) if data.task == CLASSIFICATION else targets
    return mixture.of(inputs), mixture.of(shares)
