"""The five splits: stratified, fixed by their seed, independent of everything else that is random in a run."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from growkit.config.data import AugmentSettings, SplitSettings
from growkit.data.records import CLASSIFICATION, SPLITS, Data, Source, Split
from growkit.errors import DataError

__all__ = ["assemble", "stratified"]

DEFAULT_TEST = 0.2  # where a source has no test set of its own


def stratified(labels: Tensor, shares: Sequence[float], generator: torch.Generator) -> list[Tensor]:
    """Part samples at random so that every part holds every class in its share.

    A class's quotas are rounded to their floor or ceiling, so each count is less than one sample off. Which parts get
    the ceiling is decided by the largest remainder plus what earlier classes left the part short of (error diffusion):
    without it, equal classes would all round the same way and a small part could stay empty.

    Args:
        labels: [N] the class of each sample.
        shares: of the parts, summing to 1.
        generator: the CPU stream to draw from.

    Returns:
        For each part the indices of its samples, in random order: the head of a part is a fair sample of it.
    """
    if abs(sum(shares) - 1.0) > 1e-6:
        raise ValueError(f"shares must sum to 1, got {sum(shares):g}")
    shuffled = torch.randperm(len(labels), generator=generator)
    by_class = shuffled[torch.argsort(labels[shuffled], stable=True)]
    sizes = torch.unique(labels, return_counts=True)[1].tolist()
    parts: list[list[Tensor]] = [[] for _ in shares]
    owed = [0.0 for _ in shares]
    for members in by_class.split(sizes):
        for part, chunk in zip(parts, members.split(_round(len(members), shares, owed)), strict=True):
            part.append(chunk)
    return [_shuffle(torch.cat([by_class[:0], *part]), generator) for part in parts]


def _round(size: int, shares: Sequence[float], owed: list[float]) -> list[int]:
    """Whole counts summing to `size`; adds to `owed` in place what each part got too little."""
    quotas = [round(size * share, 9) for share in shares]  # 9 digits: 0.1 * 30 is 3, not 3.0000000000000004
    counts = [math.floor(quota) for quota in quotas]
    open_to_more = [part for part, quota in enumerate(quotas) if quota > counts[part]]
    open_to_more.sort(key=lambda part: counts[part] - quotas[part] - owed[part])
    for part in open_to_more[: size - sum(counts)]:
        counts[part] += 1
    for part, quota in enumerate(quotas):
        owed[part] += quota - counts[part]
    return counts


def _shuffle(indices: Tensor, generator: torch.Generator) -> Tensor:
    return indices[torch.randperm(len(indices), generator=generator)]


def assemble(
    source: Source, split: SplitSettings, split_seed: int, augment: AugmentSettings, limit: int | None = None
) -> Data:
    """Split a source.

    The test set comes first. A source without one gives up the share `split.test` (20 % if that is null) of its pool;
    of a test set of its own `split.test` keeps a stratified share, so that training samples never enter it. Then the
    pool is thinned to `limit`, and the other shares are taken of it. A split the source brings itself stays as it is.

    Args:
        source: the samples.
        split: the shares.
        split_seed: fixes every choice.
        augment: passed on to the data.
        limit: how many samples of the pool to keep.

    Raises:
        DataError: too few samples are left to train on, a class is missing from training, or augmentation is asked
            for where inputs are no images.
    """
    generator = torch.Generator().manual_seed(split_seed)
    strata = source.pool.targets if source.task == CLASSIFICATION else torch.zeros(len(source.pool.targets))
    pool, indices = _test_split(source, strata, split, generator)
    if limit is not None and limit < len(pool):
        kept = limit / len(pool)
        pool = pool[stratified(strata[pool], (kept, 1.0 - kept), generator)[0]]
    wanted = {"validate": split.validate_, "diagnose": split.diagnose, "accept": split.accept}
    shares = {name: share for name, share in wanted.items() if name not in source.own}
    parts = stratified(strata[pool], (1.0 - sum(shares.values()), *shares.values()), generator)
    indices |= {name: pool[part] for name, part in zip(("train", *shares), parts, strict=True)}
    indices |= {name: torch.arange(len(own)) for name, own in source.own.items() if name not in indices}
    splits = {name: source.own.get(name, source.pool).take(indices[name]) for name in SPLITS}
    _check(source, splits, augment)
    mean, std = _moments(splits["train"].inputs, source.scaled)
    target_mean, target_std = torch.zeros(1), torch.ones(1)
    if source.scales_targets:
        train = splits["train"].targets
        target_mean, target_std = _moments(train, torch.ones(train.shape[1], dtype=torch.bool))
        splits = {name: Split(one.inputs, (one.targets - target_mean) / target_std) for name, one in splits.items()}
    return Data(
        name=source.name,
        task=source.task,
        splits=splits,
        indices={name: indices[name] for name in SPLITS},
        input_shape=tuple(source.pool.inputs.shape[1:]),
        num_outputs=_num_outputs(source),
        mean=mean,
        std=std,
        augment=augment,
        notes=source.notes,
        target_mean=target_mean,
        target_std=target_std,
    )


def _test_split(
    source: Source, strata: Tensor, split: SplitSettings, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The indices of the pool without its test samples, and those of the test split."""
    if "test" not in source.own:
        share = DEFAULT_TEST if split.test is None else split.test
        pool, test = stratified(strata, (1.0 - share, share), generator)
        return pool, {"test": test}
    own = source.own["test"]
    everything = torch.arange(len(source.pool))
    if split.test is None:
        return everything, {"test": torch.arange(len(own))}
    of_own = own.targets if source.task == CLASSIFICATION else torch.zeros(len(own))
    return everything, {"test": stratified(of_own, (split.test, 1.0 - split.test), generator)[0]}


def _num_outputs(source: Source) -> int:
    if source.vocabulary is not None:
        return source.vocabulary
    if source.task == CLASSIFICATION:
        return int(source.pool.targets.max()) + 1
    return source.pool.targets.shape[1]


def _check(source: Source, splits: dict[str, Split], augment: AugmentSettings) -> None:
    train = splits["train"]
    if len(train) < 2:
        raise DataError(
            f"data {source.name!r}: the train split must hold at least 2 samples, got {len(train)} of "
            f"{len(source.pool)}; lower the shares in data.split or raise data.limit"
        )
    if source.task == CLASSIFICATION:
        missing = sorted(set(range(_num_outputs(source))) - set(train.targets.unique().tolist()))
        if missing:
            raise DataError(
                f"data {source.name!r}: every class needs a sample to train on, but {_listed(missing)} of "
                f"{_num_outputs(source)} have none; raise data.limit, lower the shares in data.split or drop the class"
            )
    if 0 in train.inputs.shape[1:]:
        raise DataError(f"data {source.name!r}: an input must not be empty, got shape {list(train.inputs.shape[1:])}")
    if (augment.crop or augment.flip or augment.cutout) and train.inputs.dim() != 4:
        raise DataError(
            f"data {source.name!r}: data.augment needs images [N, C, H, W], got inputs of shape "
            f"{list(train.inputs.shape)}; set crop and cutout to 0 and flip to false"
        )
    side = max(train.inputs.shape[2:], default=0)
    for name, pixels in (("crop", augment.crop), ("cutout", augment.cutout)):
        if pixels > side:
            raise DataError(
                f"data {source.name!r}: data.augment.{name} must be at most the side of the images, {side} pixels, "
                f"got {pixels}"
            )


def _listed(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:5]))
    return f"class{'es' if len(classes) > 1 else ''} {shown}{', ...' if len(classes) > 5 else ''}"


def _moments(inputs: Tensor, scaled: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, exact from the 256 counts, or per scaled feature; 1 for a constant one.

    (0, 1) for floats that are not scaled.
    """
    if scaled is not None:
        std, mean = torch.std_mean(inputs.double(), dim=0, correction=0)
        std = torch.where(scaled & (std > 1e-9), std, torch.ones_like(std))
        return torch.where(scaled, mean, torch.zeros_like(mean)).float(), std.float()
    if inputs.dtype != torch.uint8:
        return torch.zeros(1), torch.ones(1)
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in inputs.unbind(1)]).double()
    share = counts / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64)
    mean = share @ values
    variance = share @ values.square() - mean.square()
    std = torch.where(variance > 1e-9, variance.clamp(min=0).sqrt(), torch.ones_like(variance))
    return mean.float(), std.float()
