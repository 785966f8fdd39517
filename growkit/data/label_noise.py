"""Symmetric label noise: fixed by a seed of its own for every sample of a source, whatever split it comes to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from growkit.config.data import LabelNoiseSettings
from growkit.data.records import CLASSIFICATION, SPLITS, Source, Split
from growkit.errors import DataError

__all__ = ["noisy_labels", "noisy_splits", "wrong_labels"]


def noisy_splits(
    source: Source, splits: Mapping[str, Split], indices: Mapping[str, Tensor], settings: LabelNoiseSettings
) -> dict[str, Split]:
    """The splits, with noise on the labels of those that `settings.splits` names.

    Args:
        source: where the labels come from.
        splits: as they were taken from it.
        indices: of the samples of each split, in the part of the source that it was taken from.
        settings: how much noise, and where.

    Raises:
        DataError: targets are no classes, or a named split is empty.
    """
    classes = _check(source, splits, settings)
    generator = torch.Generator().manual_seed(settings.seed)
    parts = {"pool": source.pool, **{name: source.own[name] for name in SPLITS if name in source.own}}
    noisy = {part: noisy_labels(one.targets, classes, settings, generator) for part, one in parts.items()}
    changed = {
        name: Split(splits[name].inputs, noisy[name if name in source.own else "pool"][indices[name]])
        for name in settings.splits
    }
    return {**splits, **changed}


def _check(source: Source, splits: Mapping[str, Split], settings: LabelNoiseSettings) -> int:
    """The number of classes."""
    if source.task != CLASSIFICATION:
        raise DataError(f"data.label_noise is for classes, got the {source.task} data {source.name!r}; remove it")
    empty = [name for name in settings.splits if len(splits[name]) == 0]
    if empty:
        raise DataError(f"data.label_noise.splits must name splits with samples, got {empty[0]!r}, which is empty")
    return int(source.pool.targets.max()) + 1


def noisy_labels(labels: Tensor, classes: int, settings: LabelNoiseSettings, generator: torch.Generator) -> Tensor:
    """Labels, each replaced with probability `settings.rate`, independently of the others.

    Args:
        labels: [N] int64.
        classes: K.
        settings: whether a new class is drawn from all K, or from the others.
        generator: the CPU stream to draw from; it moves on by as much at every rate.
    """
    replaced = torch.rand(len(labels), generator=generator, dtype=torch.float64) < settings.rate
    if settings.among == "any":
        drawn = torch.randint(0, classes, labels.shape, generator=generator)
    else:
        drawn = (labels + torch.randint(1, classes, labels.shape, generator=generator)) % classes
    return torch.where(replaced, drawn, labels)


def wrong_labels(truth: Mapping[str, Split], splits: Mapping[str, Split]) -> dict[str, int]:
    """How many labels of each split differ from the truth."""
    return {name: int((splits[name].targets != truth[name].targets).sum()) for name in splits}
