"""Symmetric label noise, and a share of the train split."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import seeded

from growkit.config.data import (
    DigitsSettings,
    LabelNoiseSettings,
    NpzSettings,
    SplitSettings,
    TeacherSettings,
    TextSettings,
)
from growkit.data import SPLITS, Data, load_data
from growkit.data.label_noise import noisy_labels
from growkit.data.splits import nested_share
from growkit.errors import DataError

DIGITS = DigitsSettings()


@pytest.fixture(scope="module")
def clean() -> Data:
    return load_data(DIGITS)


def noisy(rate: float = 0.4, **noise: Any) -> Data:
    data = noise.pop("data", {})
    return load_data(DigitsSettings(label_noise=LabelNoiseSettings(rate=rate, **noise), **data))


# --- the labels


@pytest.mark.parametrize(("among", "wrong"), [("any", 0.36), ("others", 0.4)])
def test_labels_are_replaced_at_their_rate_by_classes_drawn_alike(among: Any, wrong: float):
    count = 100_000
    labels = torch.arange(count) % 10
    found = noisy_labels(labels, 10, LabelNoiseSettings(rate=0.4, among=among), seeded())
    confusion = torch.bincount(labels * 10 + found, minlength=100).view(10, 10) / (count / 10)
    expected = torch.full((10, 10), wrong / 9).fill_diagonal_(1 - wrong)
    deviation = (expected * (1 - expected) / (count / 10)).sqrt()
    assert ((confusion - expected).abs() < 5 * deviation).all()


@pytest.mark.parametrize(("rate", "among", "right"), [(0.0, "any", 1.0), (0.0, "others", 1.0), (1.0, "others", 0.0)])
def test_the_ends_are_exact(rate: float, among: Any, right: float):
    labels = torch.arange(1000) % 3
    found = noisy_labels(labels, 3, LabelNoiseSettings(rate=rate, among=among), seeded())
    assert float((found == labels).double().mean()) == right


@pytest.mark.parametrize("among", ["any", "others"])
def test_what_is_wrong_at_one_rate_is_as_wrong_at_every_higher_one(clean: Data, among: Any):
    truth, few, many = (data.train.targets for data in (clean, noisy(0.2, among=among), noisy(0.6, among=among)))
    wrong = few != truth
    assert 0 < int(wrong.sum()) < int((many != truth).sum())
    assert torch.equal(many[wrong], few[wrong])


# --- the splits


def test_train_alone_is_noisy_unless_others_are_named(clean: Data):
    data = noisy()
    assert torch.equal(data.train.inputs, clean.train.inputs)
    assert not torch.equal(data.train.targets, clean.train.targets)
    assert all(torch.equal(data.splits[name].targets, clean.splits[name].targets) for name in SPLITS[1:])
    named = noisy(splits=("validate", "test"))
    assert [torch.equal(named.splits[name].targets, clean.splits[name].targets) for name in SPLITS] == [
        True,
        False,
        True,
        True,
        False,
    ]


def test_wrong_labels_are_counted_and_the_fingerprint_sees_them(clean: Data):
    data = noisy(splits=("train", "test"))
    assert clean.wrong_labels is None
    assert data.wrong_labels == {
        name: int((data.splits[name].targets != clean.splits[name].targets).sum()) for name in SPLITS
    }
    ours, theirs = data.fingerprint(), clean.fingerprint()
    assert {key for key in ours if ours[key] != theirs[key]} == {"targets_sha256"}
    other = noisy(splits=("train", "test"), seed=1).fingerprint()
    assert other["targets_sha256"] not in (ours["targets_sha256"], theirs["targets_sha256"])


def test_noise_is_of_the_sample_whatever_else_is_drawn():
    """Another split seed, a smaller share or another split: a sample that comes to a noisy split has the same label."""
    torch.manual_seed(99)
    labels = torch.full((1797,), -1)
    everywhere = noisy(splits=SPLITS)
    for name in SPLITS:
        labels[everywhere.indices[name]] = everywhere.splits[name].targets
    for other in (
        noisy(data={"split_seed": 3}),
        noisy(data={"train_share": 0.3}),
        noisy(data={"limit": 500}),
        noisy(splits=("train", "accept")),
    ):
        assert torch.equal(other.train.targets, labels[other.indices["train"]])


def test_a_test_set_of_its_own_has_noise_of_its_own(tmp_path):
    rng, labels = np.random.default_rng(0), np.arange(400) % 4
    np.savez(
        tmp_path / "a.npz",
        train_images=rng.normal(size=(400, 3)),
        train_labels=labels,
        test_images=rng.normal(size=(400, 3)),
        test_labels=labels,
    )
    settings = NpzSettings(path=str(tmp_path / "a.npz"), split=SplitSettings(validate=0.0, diagnose=0.0, accept=0.0))

    def wrong(*splits: Any) -> tuple[torch.Tensor, torch.Tensor]:
        noise = LabelNoiseSettings(rate=0.5, splits=splits)
        data = load_data(settings.model_copy(update={"label_noise": noise}))
        return data.train.targets[data.indices["train"].argsort()] != torch.from_numpy(labels), data.test.targets

    both, test_alone = wrong("train", "test"), wrong("test")
    assert not test_alone[0].any() and torch.equal(test_alone[1], both[1])
    assert not torch.equal(both[0], both[1] != torch.from_numpy(labels))


# --- what cannot be noisy


@pytest.mark.parametrize(("settings", "task"), [(TeacherSettings(), "regression"), (TextSettings(), "language")])
def test_noise_is_for_classes(settings: Any, task: str):
    noise = {"label_noise": LabelNoiseSettings(rate=0.2)}
    with pytest.raises(DataError, match=rf"data\.label_noise is for classes, got the {task} data .*; remove it"):
        load_data(settings.model_copy(update=noise))


def test_an_empty_split_cannot_be_noisy():
    with pytest.raises(
        DataError, match=r"label_noise\.splits must name splits with samples, got 'accept', which is empty"
    ):
        noisy(splits=("train", "accept"), data={"split": SplitSettings(accept=0.0)})


# --- a share of train


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.999])
def test_a_share_keeps_every_class_in_its_share_and_the_other_splits(clean: Data, share: float):
    data = load_data(DigitsSettings(train_share=share))
    counts, whole = data.train.targets.bincount(), clean.train.targets.bincount()
    assert counts.tolist() == [math.floor(share * size + 0.5) for size in whole.tolist()]
    assert all(torch.equal(data.indices[name], clean.indices[name]) for name in SPLITS[1:])
    assert all(torch.equal(data.splits[name].inputs, clean.splits[name].inputs) for name in SPLITS[1:])


def test_smaller_shares_lie_inside_larger_ones():
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([3, 50, 11, 200]))
    labels = labels[torch.randperm(len(labels), generator=seeded())]
    shares = [step / 40 for step in range(1, 41)]
    kept = [set(nested_share(labels, share).tolist()) for share in shares]
    assert all(small < large for small, large in itertools.pairwise(kept))
    assert kept[-1] == set(range(len(labels)))


def test_a_share_is_fixed_by_the_split_seed(clean: Data):
    one, again, other = (
        load_data(DigitsSettings(train_share=0.2, split_seed=seed)).indices["train"] for seed in (0, 0, 1)
    )
    assert torch.equal(one, again) and not torch.equal(one, other)
    assert set(one.tolist()) < set(clean.indices["train"].tolist())


def test_a_share_moves_the_moments_to_what_is_left(clean: Data):
    data = load_data(DigitsSettings(train_share=0.1))
    assert data.mean.item() == pytest.approx(data.train.inputs.double().mean().item(), rel=1e-6)
    assert data.mean.item() != clean.mean.item()


def test_values_and_tokens_have_shares():
    data, whole = (load_data(TeacherSettings(train_share=share)) for share in (0.3, 1.0))
    assert len(data.train) == round(0.3 * len(whole.train))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (DigitsSettings(train_share=0.004), r"0.004 keeps 0 of 1006 and none of classes \d, .*; raise it"),
        (TeacherSettings(train_share=0.001), r"0.001 keeps 1 of 560 and too few to train on; raise it"),
    ],
    ids=["classes", "values"],
)
def test_a_share_too_small_is_refused(settings: Any, message: str):
    with pytest.raises(
        DataError, match=r"data\.train_share must leave every class a sample and 2 in all, but " + message
    ):
        load_data(settings)
