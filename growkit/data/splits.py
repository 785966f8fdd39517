"""The five splits: stratified, fixed by their seed, independent of everything else that is random in a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from growkit.config.data import AugmentSettings, LabelNoiseSettings, SplitSettings
from growkit.data.ahead import read_ahead
from growkit.data.checks import augment_notes, check_augment
from growkit.data.files import ImageFiles, num_workers
from growkit.data.label_noise import noisy_splits, wrong_labels
from growkit.data.records import CLASSIFICATION, SPLITS, Data, Source, Split
from growkit.errors import DataError

__all__ = ["assemble", "nested_share", "stratified"]

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


def nested_share(strata: Tensor, share: float) -> Tensor:
    """A share of samples: of every class its share, rounded, and inside every larger share.

    The samples of a class stand evenly spaced between 0 and 1, in the order in which they come; those up to `share` are
    taken.

    Args:
        strata: [N] the class of each sample; the order is random.
        share: in 0..1.

    Returns:
        The places of the samples that are kept, ascending.
    """
    sizes = torch.unique(strata, return_counts=True)[1].tolist()
    spaced = [(torch.arange(size, dtype=torch.float64) + 0.5) / size for size in sizes]
    place = torch.empty(len(strata), dtype=torch.float64)
    place[torch.argsort(strata, stable=True)] = torch.cat(spaced)
    return (place <= share).nonzero()[:, 0]


def assemble(
    source: Source,
    split: SplitSettings,
    split_seed: int,
    augment: AugmentSettings,
    limit: int | None = None,
    train_share: float = 1.0,
    label_noise: LabelNoiseSettings | None = None,
) -> Data:
    """Split a source.

    The test set comes first. A source without one gives up the share `split.test` (20 % if that is null) of its pool;
    of a test set of its own `split.test` keeps a stratified share, so that training samples never enter it. Then the
    pool is thinned to `limit`, and the other shares are taken of it. A split the source brings itself stays as it is.
    Last, train is thinned to `train_share`, and labels are made wrong.

    Args:
        source: the samples.
        split: the shares.
        split_seed: fixes every choice.
        augment: passed on to the data.
        limit: how many samples of the pool to keep.
        train_share: how much of the train split to keep.
        label_noise: None for none.

    Raises:
        DataError: too few samples are left to train on, a class is missing from training, or augmentation or noise is
            asked for where it cannot be.
    """
    _check_shares(source, split)
    generator = torch.Generator().manual_seed(split_seed)
    indices, notes = _indices(source, split, generator, limit, train_share)
    splits = truth = {name: source.own.get(name, source.pool).take(indices[name]) for name in SPLITS}
    _check(source, splits)
    check_augment(source.name, source.task, splits["train"].inputs, augment)
    if label_noise is not None:
        splits = noisy_splits(source, truth, indices, label_noise)
    moments_from = min(source.moments_from or len(splits["train"]), len(splits["train"]))
    mean, std = _moments(splits["train"].inputs, source.scaled, moments_from)
    splits, target_mean, target_std = _scaled(source, splits)
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
        notes=(*source.notes, *augment_notes(source, augment), *notes),
        wrong_labels=None if label_noise is None else wrong_labels(truth, splits),
        reading=source.reading,
        moments_from=moments_from,
        target_mean=target_mean,
        target_std=target_std,
    )


def _check_shares(source: Source, split: SplitSettings) -> None:
    """Refuse the share of a split that is not split off; the usual one stands in every recorded configuration."""
    usual = SplitSettings().validate_
    if "validate" in source.own and split.validate_ not in (0.0, usual):
        raise DataError(
            f"split.validate must be left out where validate data are given, got {split.validate_:g} for the data "
            f"{source.name!r}, which bring theirs"
        )


def _indices(
    source: Source, split: SplitSettings, generator: torch.Generator, limit: int | None, train_share: float
) -> tuple[dict[str, Tensor], list[str]]:
    """Which samples each split holds, and what the user should know of that."""
    strata = source.pool.targets if source.task == CLASSIFICATION else torch.zeros(len(source.pool.targets))
    pool, indices = _test_split(source, strata, split, generator)
    notes = _limit_notes(limit, len(pool))
    if limit is not None and limit < len(pool):
        kept = limit / len(pool)
        pool = pool[stratified(strata[pool], (kept, 1.0 - kept), generator)[0]]
    wanted = {"validate": split.validate_, "diagnose": split.diagnose, "accept": split.accept}
    shares = {name: share for name, share in wanted.items() if name not in source.own}
    parts = stratified(strata[pool], (1.0 - sum(shares.values()), *shares.values()), generator)
    indices |= {name: pool[part] for name, part in zip(("train", *shares), parts, strict=True)}
    indices |= {name: torch.arange(len(own)) for name, own in source.own.items() if name not in indices}
    if train_share < 1.0:
        indices["train"] = _thinned(source, strata, indices["train"], train_share)
    return indices, notes


def _scaled(source: Source, splits: dict[str, Split]) -> tuple[dict[str, Split], Tensor, Tensor]:
    """The splits, targets put to mean 0 and deviation 1 of train where the source wants that; mean and deviation."""
    if not source.scales_targets:
        return splits, torch.zeros(1), torch.ones(1)
    known = splits["train"].targets
    mean, std = _moments(known, torch.ones(known.shape[1], dtype=torch.bool), len(known))
    return {name: Split(one.inputs, (one.targets - mean) / std) for name, one in splits.items()}, mean, std


def _thinned(source: Source, strata: Tensor, train: Tensor, share: float) -> Tensor:
    kept = train[nested_share(strata[train], share)]
    lost = sorted(set(strata[train].tolist()) - set(strata[kept].tolist()))
    if lost or len(kept) < 2:
        what = f"none of {_listed(lost)}" if lost and source.task == CLASSIFICATION else "too few to train on"
        raise DataError(
            f"data {source.name!r}: data.train_share must leave every class a sample and 2 in all, but {share:g} keeps "
            f"{len(kept)} of {len(train)} and {what}; raise it"
        )
    return kept


def _limit_notes(limit: int | None, available: int) -> list[str]:
    if limit is None or limit <= available:
        return []
    return [f"data.limit {limit:,} is more than there is; all {available:,} samples are used"]


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


def _check(source: Source, splits: dict[str, Split]) -> None:
    train = splits["train"]
    if len(train) < 2:
        raise DataError(
            f"data {source.name!r}: the train split must hold at least 2 samples, got {len(train)} of "
            f"{len(source.pool)}; lower the shares in data.split or raise data.limit"
        )
    if source.task == CLASSIFICATION:
        if _num_outputs(source) < 2:
            raise DataError(f"data {source.name!r}: there must be at least two classes to tell apart, got one")
        missing = sorted(set(range(_num_outputs(source))) - set(train.targets.unique().tolist()))
        if missing:
            raise DataError(
                f"data {source.name!r}: every class needs a sample to train on, but {_listed(missing)} of "
                f"{_num_outputs(source)} have none; raise data.limit, lower the shares in data.split or drop the class"
            )
    if 0 in train.inputs.shape[1:]:
        raise DataError(f"data {source.name!r}: an input must not be empty, got shape {list(train.inputs.shape[1:])}")


def _listed(classes: list[int]) -> str:
    shown = ", ".join(map(str, classes[:5]))
    return f"class{'es' if len(classes) > 1 else ''} {shown}{', ...' if len(classes) > 5 else ''}"


def _moments(inputs: Tensor | ImageFiles, scaled: Tensor | None, first: int) -> tuple[Tensor, Tensor]:
    """Mean and deviation per channel, exact from the 256 counts, or per scaled feature; 1 for a constant one.

    They are of the `first` images, or of all features; (0, 1) for floats that are not scaled.
    """
    if scaled is not None and isinstance(inputs, Tensor):
        std, mean = torch.std_mean(inputs.double(), dim=0, correction=0)
        std = torch.where(scaled & (std > 1e-9), std, torch.ones_like(std))
        return torch.where(scaled, mean, torch.zeros_like(mean)).float(), std.float()
    if inputs.dtype != torch.uint8:
        return torch.zeros(1), torch.ones(1)
    chunks = [inputs[:first]] if isinstance(inputs, Tensor) else _decoded(inputs, first)
    counts = torch.stack([_counts(chunk) for chunk in chunks]).sum(dim=0).double()
    share = counts / counts.sum(dim=1, keepdim=True)
    values = torch.arange(256, dtype=torch.float64)
    mean = share @ values
    variance = share @ values.square() - mean.square()
    std = torch.where(variance > 1e-9, variance.clamp(min=0).sqrt(), torch.ones_like(variance))
    return mean.float(), std.float()


def _counts(images: Tensor) -> Tensor:
    return torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])


def _decoded(images: ImageFiles, first: int) -> Iterator[Tensor]:
    return read_ahead(images, torch.arange(first).split(256), workers=num_workers(images.settings.workers))
