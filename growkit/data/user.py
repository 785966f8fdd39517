"""A user's own tensors, arrays, Dataset or DataLoader as Data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)

from growkit.config.data import AugmentSettings, LabelNoiseSettings, SplitSettings
from growkit.data.checks import check_classes, check_finite
from growkit.data.records import CLASSIFICATION, IGNORED, Data, Source, Split
from growkit.data.splits import assemble
from growkit.errors import DataError

__all__ = ["data_from_user", "source_from_user"]


def data_from_user(
    train: Any,
    validate: Any = None,
    test: Any = None,
    *,
    split: SplitSettings = SplitSettings(),  # noqa: B008 - frozen
    split_seed: int = 0,
    augment: AugmentSettings = AugmentSettings(),  # noqa: B008 - frozen
    limit: int | None = None,
    train_share: float = 1.0,
    label_noise: LabelNoiseSettings | None = None,
    name: str = "user",
) -> Data:
    """Data from what a user holds in memory.

    A set is a pair (inputs, targets) of tensors or arrays, a Dataset of (input, target) pairs, or a DataLoader of one.
    A Dataset is read once into memory, a DataLoader's dataset likewise, so random transforms freeze at what they gave
    that once: use `augment` instead. uint8 inputs must be images [N, C, H, W] and are normalised per channel; floats
    and token numbers are left untouched. Whole-number targets [N] are classes 0 .. K-1; floats [N] or [N, K] are
    regression targets; whole numbers [N, T] are tokens to predict, one for each token number of inputs [N, T], or from
    pairs [N, 2, T] of a source and the target so far; targets of -100 pad and do not count.

    Args:
        train: the pool that is split into train and whatever is not given.
        validate: used as it is; None splits it off the pool.
        test: likewise.
        split: shares of what is split off; the share of a set that is given must not be set too.
        split_seed: fixes the splits.
        augment: augmentation of training images.
        limit: samples kept before splitting, stratified; None keeps all.
        train_share: share of the train split that is kept.
        label_noise: wrong labels; None for none.
        name: for messages and records.

    Raises:
        DataError: something is not of the kinds above, or shapes, lengths or labels do not fit.
    """
    source = source_from_user(name, train, validate, test, split=split)
    return assemble(source, split, split_seed, augment, limit, train_share, label_noise)


def source_from_user(name: str, train: Any, validate: Any = None, test: Any = None, *, split: SplitSettings) -> Source:
    """What a user gives, as a source; see `data_from_user`.

    Raises:
        DataError: likewise.
    """
    pool = _read(name, "train", train)
    own = {
        part: _read(name, part, given) for part, given in (("validate", validate), ("test", test)) if given is not None
    }
    for part, read in own.items():
        _check_alike(name, pool, part, read)
    if test is not None and split.test:
        raise DataError(f"split.test must be left out where test data are given, got {split.test:g}")
    source = Source(name, pool, own, _vocabulary(name, pool, own))
    if source.task == CLASSIFICATION:
        check_classes(f"data {name!r}", "train targets", pool.targets, {f"{k} targets": own[k].targets for k in own})
    return source


def _read(name: str, part: str, given: Any) -> Split:
    where = f"data {name!r}, {part}"
    if isinstance(given, DataLoader):
        _refuse_changed_loader(where, given)
        given = given.dataset
    if isinstance(given, TensorDataset):
        given = given.tensors
    elif isinstance(given, Dataset):
        given = _collect(where, given)
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise DataError(
            f"{where} must be (inputs, targets), a Dataset of (input, target) pairs or a DataLoader of one, got "
            f"{type(given).__name__}{f' of {len(given)}' if isinstance(given, (tuple, list)) else ''}"
        )
    inputs, targets = _inputs(where, _tensor(where, given[0])), _targets(where, _tensor(where, given[1]))
    if len(inputs) != len(targets) or len(inputs) == 0:
        raise DataError(f"{where} must have a target for each input, got {len(inputs)} inputs, {len(targets)} targets")
    return Split(inputs, targets)


def _refuse_changed_loader(where: str, loader: DataLoader[Any]) -> None:
    """Only the dataset is read, so a loader that selects or transforms by itself would be misread without a word."""
    sampler, collate = type(loader.sampler), loader.collate_fn
    plain = sampler in (SequentialSampler, RandomSampler) or isinstance(loader.dataset, IterableDataset)
    if not plain or type(loader.batch_sampler) not in (BatchSampler, type(None)):
        raise DataError(
            f"{where}: a DataLoader with a sampler of its own ({sampler.__name__}) may leave samples out; give "
            "torch.utils.data.Subset(dataset, indices) instead"
        )
    if loader.batch_size is not None and collate is not default_collate:
        raise DataError(
            f"{where}: a DataLoader with a collate_fn of its own is not read; give (inputs, targets) instead"
        )


def _collect(where: str, dataset: Dataset[Any]) -> tuple[Any, Any]:
    pairs: Iterable[Any]
    if hasattr(dataset, "__len__"):
        pairs = (dataset[index] for index in range(len(dataset)))  # type: ignore[arg-type]
    else:
        pairs = dataset  # type: ignore[assignment]
    inputs, targets = [], []
    for sample in pairs:
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise DataError(f"{where}: a sample must be a pair (input, target), got {type(sample).__name__}")
        inputs.append(_tensor(where, sample[0]))
        targets.append(_tensor(where, sample[1]))
    if not inputs:
        raise DataError(f"{where}: the dataset is empty")
    try:
        return torch.stack(inputs), torch.stack(targets)
    except RuntimeError as error:
        raise DataError(f"{where}: all samples must have one shape, {error}") from error


def _tensor(where: str, value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    if isinstance(value, (np.ndarray, np.generic, int, float, list, tuple)):
        try:
            return torch.as_tensor(np.asarray(value))
        except (TypeError, ValueError) as error:
            raise DataError(f"{where}: an array must hold numbers of one shape, {error}") from error
    raise DataError(
        f"{where}: inputs and targets must be tensors, arrays or numbers, got {type(value).__name__}; images become "
        "tensors with the transform torchvision.transforms.PILToTensor()"
    )


CHANNELS = (1, 3, 4)  # of images as most files hold them


def _inputs(where: str, inputs: Tensor) -> Tensor:
    if inputs.dim() < 2 or inputs.is_complex():
        raise DataError(f"{where}: inputs must be [N, ...], got {inputs.dtype} {list(inputs.shape)}")
    if inputs.dtype == torch.uint8 and inputs.dim() != 4:
        raise DataError(
            f"{where}: uint8 inputs must be images [N, C, H, W], got {list(inputs.shape)}; add the channel with "
            "inputs[:, None], or convert what is no image to float32"
        )
    if inputs.dtype == torch.uint8 and inputs.shape[1] > CHANNELS[-1] and inputs.shape[3] in CHANNELS:
        raise DataError(
            f"{where}: images must have their channels first, [N, C, H, W], got {list(inputs.shape)}; "
            "inputs.permute(0, 3, 1, 2) puts them there"
        )
    if not inputs.is_floating_point():
        return inputs if inputs.dtype == torch.uint8 else inputs.long()
    check_finite(f"{where}: inputs", inputs)
    return inputs.float()


def _targets(where: str, targets: Tensor) -> Tensor:
    if targets.is_floating_point() and targets.dim() in (1, 2):
        check_finite(f"{where}: targets", targets)
        return targets.float() if targets.dim() == 2 else targets.float()[:, None]
    if not targets.is_floating_point() and not targets.is_complex() and targets.dim() in (1, 2):
        return targets.long()
    raise DataError(
        f"{where}: targets must be classes [N], tokens [N, T] or floats [N] or [N, K], got {targets.dtype} "
        f"{list(targets.shape)}"
    )


def _vocabulary(name: str, pool: Split, own: dict[str, Split]) -> int | None:
    """The number of tokens, where there is one to predict for each one given."""
    if pool.targets.is_floating_point() or pool.targets.dim() == 1:
        return None
    count, length = pool.targets.shape
    if pool.inputs.is_floating_point() or pool.inputs.shape not in ((count, length), (count, 2, length)):
        raise DataError(
            f"data {name!r}: targets must be classes [N] or floats [N] or [N, K], or tokens [N, T] where inputs are "
            f"token numbers [N, T] or [N, 2, T]; got {pool.targets.dtype} {list(pool.targets.shape)} for inputs "
            f"{pool.inputs.dtype} {list(pool.inputs.shape)}"
        )
    splits = (pool, *own.values())
    tokens = [one for split in splits for one in (split.inputs, split.targets[split.targets != IGNORED])]
    if min(int(one.min()) for one in tokens) < 0:
        raise DataError(f"data {name!r}: token numbers must be >= 0, got {min(int(one.min()) for one in tokens)}")
    return 1 + max(int(one.max()) for one in tokens)


def _check_alike(name: str, pool: Split, part: str, read: Split) -> None:
    for noun, ours, theirs in (("inputs", pool.inputs, read.inputs), ("targets", pool.targets, read.targets)):
        if ours.dtype != theirs.dtype or ours.shape[1:] != theirs.shape[1:]:
            raise DataError(
                f"data {name!r}: {part} {noun} must be like train {noun}, {ours.dtype} {list(ours.shape[1:])} each, "
                f"got {theirs.dtype} {list(theirs.shape[1:])}"
            )
