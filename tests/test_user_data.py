"""Data that the user hands over."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from data_cases import seeded
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from growkit.config.data import (
    SplitSettings,
)
from growkit.data import SPLITS, batches, data_from_user
from growkit.errors import DataError


class Pairs(Dataset):
    def __init__(self, inputs: torch.Tensor, targets: list[int]):
        self.inputs, self.targets = inputs, targets

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.inputs[index], self.targets[index]


class Stream(IterableDataset):
    def __iter__(self):
        return ((torch.full((3,), float(i)), i % 2) for i in range(30))


INPUTS, CLASSES = torch.randn(40, 3, generator=seeded()), torch.arange(40) % 4


@pytest.mark.parametrize(
    "train",
    [
        (INPUTS, CLASSES),
        [INPUTS.double().numpy(), CLASSES.numpy().astype(np.int16)],
        TensorDataset(INPUTS, CLASSES),
        Pairs(INPUTS, CLASSES.tolist()),
        Subset(TensorDataset(INPUTS, CLASSES), range(40)),
        DataLoader(Pairs(INPUTS, CLASSES.tolist()), batch_size=7, shuffle=True),
    ],
    ids=["tensors", "arrays", "TensorDataset", "Dataset", "Subset", "DataLoader"],
)
def test_one_data_set_in_every_form_is_the_same_data(train: object):
    data = data_from_user(train)
    assert data.fingerprint() == data_from_user((INPUTS, CLASSES)).fingerprint()
    assert (data.name, data.task, data.num_outputs, data.input_shape) == ("user", "classification", 4, (3,))


def test_a_stream_is_read_once():
    data = data_from_user(DataLoader(Stream(), batch_size=4))
    assert sum(map(len, data.splits.values())) == 30


def test_given_splits_are_used_as_they_are():
    data = data_from_user((INPUTS, CLASSES), (INPUTS[:8], CLASSES[:8]), (INPUTS[:5], CLASSES[:5]))
    assert torch.equal(data.validate.inputs, INPUTS[:8]) and torch.equal(data.test.inputs, INPUTS[:5])
    assert [len(data.splits[name]) for name in SPLITS] == [32, 8, 4, 4, 5]


def test_regression_targets_get_their_column():
    data = data_from_user((INPUTS, INPUTS.sum(1)))
    assert (data.task, data.num_outputs, data.train.targets.shape[1]) == ("regression", 1, 1)


def test_uint8_images_are_normalised_and_tokens_are_not():
    pictures = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=seeded())
    data = data_from_user((pictures, CLASSES))
    assert abs(torch.cat([x for x, _ in batches(data, "train", 64)]).mean().item()) < 1e-5
    tokens = torch.randint(0, 9, (40, 6), generator=seeded())
    assert data_from_user((tokens, CLASSES)).example(1).dtype == torch.int64


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (INPUTS, r"must be \(inputs, targets\), a Dataset .* got Tensor"),
        ((INPUTS, CLASSES, CLASSES), r"got tuple of 3"),
        ((INPUTS, CLASSES[:39]), r"40 inputs, 39 targets"),
        ((INPUTS[:, 0], CLASSES), r"inputs must be \[N, \.\.\.\]"),
        ((INPUTS, CLASSES + 1), r"must be 0 \.\. K-1"),
        ((INPUTS, CLASSES[:, None]), r"targets must be classes \[N\] or floats"),
        ((INPUTS / 0, CLASSES), r"inputs must be finite, got 120 of 120"),
        ((torch.zeros(40, 4, 4, dtype=torch.uint8), CLASSES), r"uint8 inputs must be images \[N, C, H, W\]"),
        ((torch.zeros(40, 8, 8, 3, dtype=torch.uint8), CLASSES), r"channels first.*inputs.permute\(0, 3, 1, 2\)"),
        (("ab", "cd"), r"must be tensors, arrays or numbers, got str.*PILToTensor"),
        (Pairs(INPUTS, []), r"the dataset is empty"),
        (
            DataLoader(Pairs(INPUTS, CLASSES.tolist()), sampler=SubsetRandomSampler([1, 2])),
            r"SubsetRandomSampler.*Subset",
        ),
        (DataLoader(Pairs(INPUTS, CLASSES.tolist()), batch_size=2, collate_fn=list), r"collate_fn of its own"),
    ],
)
def test_what_is_no_data_is_refused_with_a_remedy(train: object, message: str):
    with pytest.raises(DataError, match=message):
        data_from_user(train)


def test_samples_of_different_shapes_are_refused():
    ragged = [(torch.zeros(2), 0), (torch.zeros(3), 1)]

    class Ragged(Dataset):
        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
            return ragged[index]

    with pytest.raises(DataError, match="all samples must have one shape"):
        data_from_user(Ragged())


def test_given_splits_must_fit_the_training_data():
    with pytest.raises(DataError, match=r"validate inputs must be like train inputs"):
        data_from_user((INPUTS, CLASSES), (INPUTS[:, :2], CLASSES))
    with pytest.raises(DataError, match=r"test targets must be among the 4 classes"):
        data_from_user((INPUTS, CLASSES), test=(INPUTS, CLASSES + 1))
    with pytest.raises(DataError, match=r"split\.validate must be left out where validate data are given, got 0\.2"):
        data_from_user((INPUTS, CLASSES), (INPUTS, CLASSES), split=SplitSettings(validate=0.2))
