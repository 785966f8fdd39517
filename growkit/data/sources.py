"""The data sources by name: each is one function from its settings to a Source."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from growkit.config.data import (
    AugmentSettings,
    CallableDataSettings,
    Cifar10Settings,
    Cifar100Settings,
    DataSettings,
    DigitsSettings,
    ImageFolderSettings,
    ImageSettings,
    MemorySettings,
    NpzSettings,
    TabularSettings,
    TeacherSettings,
    TextPairSettings,
    TextSettings,
)
from growkit.data.called import read_called
from growkit.data.checks import check_classes, check_finite
from growkit.data.imagefolder import read_imagefolder
from growkit.data.records import Data, Source, Split
from growkit.data.splits import assemble
from growkit.data.tabular import read_tabular
from growkit.data.text import read_pairs, read_text
from growkit.data.transforms import with_transforms
from growkit.errors import DataError
from growkit.folders import DATA_VARIABLE

__all__ = ["load_data", "read_source"]


def load_data(settings: DataSettings) -> Data:
    """Read and split the data set that `settings` describe.

    Raises:
        DataError: the data are missing, unreadable, corrupt or of the wrong shape, or leave nothing to train on.
    """
    augment = getattr(settings, "augment", AugmentSettings())
    data = assemble(
        read_source(settings),
        settings.split,
        settings.split_seed,
        augment,
        settings.limit,
        settings.train_share,
        settings.label_noise,
    )
    return with_transforms(data, settings) if isinstance(settings, ImageSettings) else data


def read_source(settings: DataSettings) -> Source:
    """Read a data set without splitting it.

    Raises:
        DataError: as `load_data`.
    """
    match settings:
        case DigitsSettings():
            return _digits()
        case Cifar10Settings() | Cifar100Settings():
            return _cifar(settings)
        case NpzSettings():
            return _npz(Path(settings.path))
        case ImageFolderSettings():
            return read_imagefolder(settings)
        case TabularSettings():
            return read_tabular(settings)
        case TeacherSettings():
            return _teacher(settings)
        case TextSettings():
            return read_text(settings)
        case TextPairSettings():
            return read_pairs(settings)
        case CallableDataSettings():
            return read_called(settings)
        case MemorySettings():
            raise DataError(
                "data 'memory' are handed over in Python, as growkit.grow(model, train); a file must name a source"
            )
    raise TypeError(f"no data source is made from {type(settings).__name__}")


def _digits() -> Source:
    from sklearn.datasets import load_digits

    pixels, classes = load_digits(return_X_y=True)  # [N, 64] of 0..16
    images = np.asarray(pixels, dtype=np.uint8).reshape(-1, 1, 8, 8)
    return Source("digits", Split(torch.from_numpy(images), torch.from_numpy(np.asarray(classes, dtype=np.int64))), {})


def _cifar(settings: Cifar10Settings | Cifar100Settings) -> Source:
    root = settings.root or os.environ.get(DATA_VARIABLE)
    if not root:
        raise DataError(
            f"data {settings.name!r} needs a folder: set data.root, or run `export {DATA_VARIABLE}=FOLDER`; "
            "with data.download=true the files are fetched into it"
        )
    try:
        train, test = (_read_cifar(settings, root, train=train) for train in (True, False))
    except ImportError as error:
        raise DataError(f"data {settings.name!r} needs torchvision, run `pip install torchvision`: {error}") from error
    except (RuntimeError, OSError) as error:
        # torchvision compares every file's MD5 with the published one before it unpickles anything
        raise DataError(
            f"data {settings.name!r}: files are missing or corrupt under {root!r} ({error}); point data.root or "
            f"{DATA_VARIABLE} at the folder that holds them, or remove them and set data.download=true"
        ) from error
    return Source(settings.name, train, {"test": test})


def _read_cifar(settings: Cifar10Settings | Cifar100Settings, root: str, *, train: bool) -> Split:
    from torchvision.datasets import CIFAR10, CIFAR100

    dataset = CIFAR10 if isinstance(settings, Cifar10Settings) else CIFAR100
    read = dataset(root, train=train, download=settings.download)
    return Split(_channels_first(read.data), torch.tensor(read.targets, dtype=torch.int64))


def _channels_first(images: np.ndarray) -> Tensor:
    """Images [N, H, W] or [N, H, W, C] as [N, C, H, W]."""
    if images.ndim == 3:
        images = images[..., None]
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _npz(path: Path) -> Source:
    try:
        with path.open("rb") as file:  # opened here: numpy leaves a broken file open
            arrays = _read_arrays(path, file)
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such file; data.path names the .npz archive") from error
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, OSError) as error:
        raise DataError(
            f"{path}: not a readable .npz archive, truncated or holding pickled objects: {error}"
        ) from error
    pool = _npz_split(path, arrays, "train")
    own = {"test": _npz_split(path, arrays, "test")} if {"test_images", "test_labels"} & arrays.keys() else {}
    check_classes(str(path), "train_labels", pool.targets, {"test_labels": own["test"].targets} if own else {})
    if own and own["test"].inputs.shape[1:] != pool.inputs.shape[1:]:
        raise DataError(
            f"{path}: test_images must have the shape of train_images, {list(pool.inputs.shape[1:])} each, got "
            f"{list(own['test'].inputs.shape[1:])} (channels first)"
        )
    return Source(path.name, pool, own)


def _read_arrays(path: Path, file: BinaryIO) -> dict[str, np.ndarray]:
    archive = np.load(file, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise DataError(f"{path}: an .npz archive is expected, this is a single array; write one with numpy.savez")
    return {key: archive[key] for key in archive.files if key.startswith(("train_", "test_"))}


def _npz_split(path: Path, arrays: dict[str, np.ndarray], part: str) -> Split:
    names = f"{part}_images", f"{part}_labels"
    for name in names:
        if name not in arrays:
            found = ", ".join(sorted(arrays)) or "neither train_* nor test_* arrays"
            raise DataError(f"{path}: the array {name!r} is missing; the archive holds {found}")
    images, labels = (arrays[name] for name in names)
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise DataError(f"{path}: {names[1]} must be integers [N], got {labels.dtype} {list(labels.shape)}")
    if len(images.shape) == 0 or len(images) != len(labels):
        raise DataError(f"{path}: {names[0]} {list(images.shape)} and {names[1]} {list(labels.shape)} differ in length")
    if len(images) == 0:
        raise DataError(f"{path}: {names[0]} is empty")
    return Split(_npz_inputs(path, names[0], images), torch.from_numpy(labels.astype(np.int64)))


def _npz_inputs(path: Path, name: str, images: np.ndarray) -> Tensor:
    if images.dtype == np.uint8 and images.ndim in (3, 4):
        if images.ndim == 4 and images.shape[3] > 4 >= images.shape[1]:
            raise DataError(f"{path}: {name} must be [N, H, W, C], but {list(images.shape)} looks like [N, C, H, W]")
        return _channels_first(images)
    if images.dtype.kind == "f" and images.ndim == 2:
        features = torch.from_numpy(images.astype(np.float32))
        check_finite(f"{path}: {name}", features)
        return features
    raise DataError(
        f"{path}: {name} must be uint8 images [N, H, W] or [N, H, W, C], or float features [N, D], got {images.dtype} "
        f"{list(images.shape)}"
    )


def _teacher(settings: TeacherSettings) -> Source:
    """Targets of a random network without biases: weights U(-1, 1), ReLU between them, inputs N(0, 1)."""
    generator = torch.Generator().manual_seed(settings.teacher_seed)
    inputs = hidden = torch.randn(settings.samples, settings.widths[0], generator=generator)
    for layer, shape in enumerate(zip(settings.widths[1:], settings.widths[:-1], strict=True)):
        weight = torch.rand(shape, generator=generator) * 2 - 1
        hidden = (hidden.relu() if layer else hidden) @ weight.T
    return Source("teacher", Split(inputs, hidden), {})
