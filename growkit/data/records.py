"""What data are: a source as it was read, a split, and the splits of one data set together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from growkit.config.data import AugmentSettings
from growkit.data.ahead import PerSample
from growkit.data.augment import normalise
from growkit.data.files import ImageFiles, files_sha256
from growkit.errors import DataError

__all__ = ["CLASSIFICATION", "IGNORED", "LANGUAGE", "PAIRS", "REGRESSION", "SPLITS", "Data", "Source", "Split"]

SPLITS = ("train", "validate", "diagnose", "accept", "test")
CLASSIFICATION, REGRESSION, LANGUAGE, PAIRS = "classification", "regression", "language", "pairs"
IGNORED = -100  # a target that is none: what pads a sequence (torch's default in cross_entropy)


@dataclass(frozen=True, eq=False)
class Split:
    """Samples and their targets.

    Attributes:
        inputs: uint8 images [N, C, H, W], normalised when a batch is made; or floats [N, ...], used as they are. Images
            that stay in their files are ImageFiles, which stand for a tensor.
        targets: int64 classes [N], float32 [N, K] for regression, or int64 tokens [N, T] for language and pairs.
    """

    inputs: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.inputs)

    def take(self, indices: Tensor) -> Split:
        """A copy of the samples `indices`, in that order; images in files stay there."""
        return Split(self.inputs.index_select(0, indices), self.targets[indices])

    def to(self, device: torch.device | str) -> Split:
        """This split on `device`."""
        return Split(self.inputs.to(device), self.targets.to(device))


@dataclass(frozen=True, eq=False)
class Source:
    """Samples before they are split.

    Attributes:
        name: what error messages and records call it.
        pool: the samples to split.
        own: splits the source brings itself, such as an official test set.
        vocabulary: how many tokens there are, where samples are sequences of them.
        notes: what the user should know, such as samples that were left out.
        scaled: which features [F] are numbers to put to mean 0 and deviation 1; None for none.
        reading: whether images are streamed, and why; empty where there is no choice.
        moments_from: how many training images the mean and deviation are of, at most; None for all.
        scales_targets: whether the targets of regression are put to mean 0 and deviation 1, too.
    """

    name: str
    pool: Split
    own: dict[str, Split]
    vocabulary: int | None = None
    notes: tuple[str, ...] = ()
    scaled: Tensor | None = None
    reading: str = ""
    moments_from: int | None = None
    scales_targets: bool = False

    @property
    def task(self) -> str:
        """The task, by the targets: whole numbers are classes, or tokens where there is one for each position."""
        if self.pool.targets.is_floating_point():
            return REGRESSION
        if self.vocabulary is None:
            return CLASSIFICATION
        return LANGUAGE if self.pool.inputs.dim() == 2 else PAIRS


@dataclass(frozen=True, eq=False)
class Data:
    """A data set in its five splits.

    Attributes:
        name: the source's name.
        task: "classification", "regression", "language" or "pairs".
        splits: the splits train, validate, diagnose, accept and test; any but train may be empty.
        indices: which samples of the source each split holds; of a test set in a file of its own: of that file.
        input_shape: shape of one input.
        num_outputs: classes, regression targets per sample, or tokens of the vocabulary.
        mean: of the train split, [C] per channel, in the units of the stored numbers; [F] for a table; [0] for other
            floats (left untouched).
        std: likewise; [1] for floats.
        augment: augmentation of training batches.
        notes: what the user should know of the source.
        wrong_labels: how many labels of each split are noise and differ from the truth; None without label noise.
        reading: whether images are streamed, and why; empty where there is no choice.
        moments_from: how many training samples mean and std are of: the first ones.
        transforms: of each training image by itself, before `augment`.
        workers: processes that read and transform single images.
        target_mean: of the targets as they were before they were scaled, [K]; 0 [1] where they were not.
        target_std: likewise; 1 [1].
    """

    name: str
    task: str
    splits: dict[str, Split]
    indices: dict[str, Tensor]
    input_shape: tuple[int, ...]
    num_outputs: int
    mean: Tensor
    std: Tensor
    augment: AugmentSettings
    notes: tuple[str, ...] = ()
    wrong_labels: dict[str, int] | None = None
    reading: str = ""
    moments_from: int = 0
    transforms: PerSample | None = None
    workers: int = 0
    target_mean: Tensor = torch.zeros(1)
    target_std: Tensor = torch.ones(1)

    @property
    def train(self) -> Split:
        """The samples weights are fitted to."""
        return self.splits["train"]

    @property
    def validate(self) -> Split:
        """The samples that steer growth, stages, early stopping and tuning."""
        return self.splits["validate"]

    @property
    def diagnose(self) -> Split:
        """The samples only diagnosis and held-out fits see."""
        return self.splits["diagnose"]

    @property
    def accept(self) -> Split:
        """The samples the refinement gate reads once."""
        return self.splits["accept"]

    @property
    def test(self) -> Split:
        """The samples that steer nothing and are read at the end."""
        return self.splits["test"]

    def split(self, name: str) -> Split:
        """The split `name`.

        Raises:
            DataError: there is no such split.
        """
        if name not in self.splits:
            raise DataError(f"a split must be one of {', '.join(SPLITS)}, got {name!r}")
        return self.splits[name]

    def to(self, device: torch.device | str) -> Data:
        """These data on `device`; indices stay on the CPU."""
        return replace(
            self,
            splits={name: split.to(device) for name, split in self.splits.items()},
            mean=self.mean.to(device),
            std=self.std.to(device),
            target_mean=self.target_mean.to(device),
            target_std=self.target_std.to(device),
        )

    def example(self, n: int = 2) -> Tensor:
        """The inputs of the first `n` training samples as a model sees them: normalised, not augmented."""
        return normalise(self.train.inputs[:n], self.mean, self.std)

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, as JSON: SHA-256 of inputs and targets (all splits), and of each split.

        Of images that stay in their files, `files_sha256` is over names, sizes and times in place of `inputs_sha256`.
        """
        ordered = [self.splits[name] for name in SPLITS]
        files = [split.inputs for split in ordered if isinstance(split.inputs, ImageFiles)]
        inputs = (
            {"files_sha256": files_sha256(files)}
            if files
            else {"inputs_sha256": _sha256(*(split.inputs for split in ordered))}
        )
        return {
            "format": 1,
            **inputs,
            "targets_sha256": _sha256(*(split.targets for split in ordered)),
            "splits": {
                name: {"size": len(self.splits[name]), "indices_sha256": _sha256(self.indices[name])} for name in SPLITS
            },
        }


def _sha256(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
