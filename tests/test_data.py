"""Splits and batches."""

from __future__ import annotations

import json

import pytest
import torch
from data_cases import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from growkit.config.data import (
    AugmentSettings,
    DigitsSettings,
    SplitSettings,
)
from growkit.data import SPLITS, Data, batches, data_from_user, load_data, num_batches
from growkit.data.splits import stratified
from growkit.errors import DataError


@pytest.fixture(scope="module")
def digits() -> Data:
    return load_data(DigitsSettings())


# --- splits


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=8),
    weights=st.lists(st.integers(0, 20), min_size=1, max_size=5).filter(any),
    seed=st.integers(0, 5),
)
def test_stratified_parts_are_disjoint_complete_and_fair(sizes: list[int], weights: list[int], seed: int):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    shares = [weight / sum(weights) for weight in weights]
    parts = stratified(labels, shares, seeded(seed))
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(labels)))
    for part, share in zip(parts, shares, strict=True):
        counts = torch.bincount(labels[part], minlength=len(sizes))
        assert ((counts - torch.tensor(sizes) * share).abs() < 1).all()
        assert share or not len(part)
    assert all(map(torch.equal, parts, stratified(labels, shares, seeded(seed))))


@settings(deadline=None, max_examples=60)
@given(sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12), data=st.data())
def test_two_parts_have_exactly_their_size(sizes: list[int], data: st.DataObject):
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    keep = data.draw(st.integers(0, len(labels)))
    assert len(stratified(labels, (keep / len(labels), 1 - keep / len(labels)), seeded())[0]) == keep


def test_small_equal_classes_do_not_starve_a_split():
    labels = torch.arange(10).repeat_interleave(7)
    parts = stratified(labels, (0.7, 0.1, 0.1, 0.1), seeded())
    assert [len(part) for part in parts[1:]] == [7, 7, 7]


def test_the_head_of_a_split_is_a_fair_sample(digits: Data):
    assert len(digits.train.targets[:100].unique()) == 10


def test_digits_have_five_splits_that_cover_them(digits: Data):
    assert [len(digits.splits[name]) for name in SPLITS] == [1006, 144, 144, 144, 359]
    assert torch.equal(torch.cat([digits.indices[name] for name in SPLITS]).sort().values, torch.arange(1797))
    assert (digits.task, digits.num_outputs, digits.input_shape) == ("classification", 10, (1, 8, 8))
    assert digits.train.inputs.dtype == torch.uint8 and int(digits.train.inputs.max()) == 16
    assert digits.train.targets.dtype == torch.int64


def test_splits_depend_on_their_seed_alone(digits: Data):
    torch.manual_seed(99)
    torch.rand(10)
    again = load_data(DigitsSettings(augment=AugmentSettings(cutout=2)))
    other = load_data(DigitsSettings(split_seed=1))
    assert again.fingerprint() == digits.fingerprint()
    assert other.fingerprint()["splits"]["test"] != digits.fingerprint()["splits"]["test"]


def test_the_fingerprint_is_json_and_sees_a_changed_pixel(digits: Data):
    fingerprint = digits.fingerprint()
    assert json.loads(json.dumps(fingerprint)) == fingerprint
    changed = load_data(DigitsSettings())
    changed.accept.inputs[0, 0, 0, 0] += 1
    assert changed.fingerprint()["inputs_sha256"] != fingerprint["inputs_sha256"]
    assert changed.fingerprint()["targets_sha256"] == fingerprint["targets_sha256"]


def test_a_share_of_0_is_an_empty_split():
    data = load_data(DigitsSettings(split=SplitSettings(test=0.0, validate=0.0, diagnose=0.0, accept=0.0)))
    assert [len(data.splits[name]) for name in SPLITS] == [1797, 0, 0, 0, 0]


def test_the_limit_thins_the_pool_and_spares_the_test_set(digits: Data):
    data = load_data(DigitsSettings(limit=500))
    assert sum(len(data.splits[name]) for name in SPLITS[:4]) == 500
    assert torch.equal(data.indices["test"], digits.indices["test"])
    assert data.train.targets.bincount().min() > 30


def test_a_class_that_training_never_sees_is_refused():
    with pytest.raises(DataError, match=r"every class needs a sample to train on.*raise data\.limit"):
        data_from_user((torch.randn(5, 2), torch.arange(5)), split=SplitSettings(test=0.5))


def test_too_little_to_train_on_is_refused():
    with pytest.raises(DataError, match="at least 2 samples, got 1 of 2"):
        data_from_user((torch.randn(2, 2), torch.randn(2)), split=SplitSettings(test=0.5))


def test_moments_come_from_the_train_split_alone(digits: Data):
    pixels = digits.train.inputs.double()
    assert digits.mean.item() == pytest.approx(pixels.mean().item(), rel=1e-6)
    assert digits.std.item() == pytest.approx(pixels.std(correction=0).item(), rel=1e-6)


def test_a_constant_channel_has_deviation_1():
    inputs = torch.full((20, 2, 3, 3), 255, dtype=torch.uint8)
    inputs[:, 1] = torch.arange(9, dtype=torch.uint8).view(3, 3)
    data = data_from_user((inputs, torch.arange(20) % 2))
    assert data.std[0] == 1 and data.mean[0] == 255
    assert torch.isfinite(data.example()).all()


# --- batches


def test_shuffled_batches_see_every_sample_once(digits: Data):
    targets = torch.cat([targets for _, targets in batches(digits, "train", 128, order=seeded())])
    assert torch.equal(targets.bincount(), digits.train.targets.bincount())
    assert not torch.equal(targets, digits.train.targets)


def test_unshuffled_batches_come_as_the_samples_lie(digits: Data):
    passed = list(batches(digits, "test", 100))
    assert [len(targets) for _, targets in passed] == [100, 100, 100, 59]
    expected = (digits.test.inputs.float() - digits.mean) / digits.std
    assert torch.allclose(torch.cat([inputs for inputs, _ in passed]), expected)


def test_a_last_training_batch_of_one_is_left_out(digits: Data):
    assert num_batches(digits, "train", 335, training=True) == 3
    assert num_batches(digits, "train", 335, training=False) == 4
    assert [len(x) for x, _ in batches(digits, "train", 335, order=seeded())] == [335, 335, 335]
    assert [len(x) for x, _ in batches(digits, "train", 335)] == [335, 335, 335, 1]
    assert num_batches(digits, "train", 1, training=True) == 1006


def test_a_pass_is_decided_by_its_two_streams(digits: Data):
    def passed(order: int, augmentation: int) -> torch.Tensor:
        return next(batches(digits, "train", 64, order=seeded(order), augmentation=seeded(augmentation)))[0]

    assert torch.equal(passed(1, 2), passed(1, 2))
    assert not torch.equal(passed(1, 2), passed(1, 3))
    assert not torch.equal(passed(1, 2), passed(2, 2))


def test_augmentation_keeps_the_statistics_of_a_batch(digits: Data):
    augmented = torch.cat([x for x, _ in batches(digits, "train", 512, augmentation=seeded())])
    plain = torch.cat([x for x, _ in batches(digits, "train", 512)])
    assert augmented.shape == plain.shape and not torch.equal(augmented, plain)
    assert abs(augmented.mean().item()) < 0.2


def test_float_images_are_augmented_but_not_normalised():
    inputs = torch.rand(40, 1, 4, 4) + 1
    data = data_from_user((inputs, torch.randn(40)), augment=AugmentSettings(crop=1, flip=True, cutout=1))
    before = data.train.inputs.clone()
    assert torch.equal(data.example(3), data.train.inputs[:3])
    batch, _ = next(batches(data, "train", 8, augmentation=seeded()))
    assert (batch == 0).any()
    assert torch.equal(data.train.inputs, before)


@pytest.mark.parametrize(
    ("split", "size", "message"),
    [("training", 8, "must be one of train"), ("train", 0, "batch_size must be >= 1, got 0")],
)
def test_wrong_batches_are_refused_at_once(digits: Data, split: str, size: int, message: str):
    with pytest.raises(DataError, match=message):
        batches(digits, split, size)


def test_an_empty_split_is_refused():
    data = load_data(DigitsSettings(split=SplitSettings(accept=0.0)))
    with pytest.raises(DataError, match=r"the split 'accept' is empty; give it a share in data\.split"):
        batches(data, "accept", 8)


@pytest.mark.gpu
def test_a_pass_on_the_gpu_never_waits_and_equals_the_cpu(digits: Data):
    there = digits.to("cuda")
    passes = [
        batches(data, "train", 128, order=seeded(), augmentation=seeded(1), channels_last=True)
        for data in (digits, there)
    ]
    torch.cuda.set_sync_debug_mode("error")
    try:
        on_gpu = list(passes[1])
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for (x, y), (x_gpu, y_gpu) in zip(passes[0], on_gpu, strict=True):
        assert torch.allclose(x, x_gpu.cpu(), atol=1e-6) and torch.equal(y, y_gpu.cpu())
    assert there.fingerprint() == digits.fingerprint()
