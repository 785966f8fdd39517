from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, SubsetRandomSampler, TensorDataset

from growkit.config.data import (
    AugmentSettings,
    Cifar10Settings,
    Cifar100Settings,
    DigitsSettings,
    NpzSettings,
    SplitSettings,
    TeacherSettings,
)
from growkit.data import SPLITS, Data, batches, data_from_user, load_data, num_batches
from growkit.data.splits import stratified
from growkit.errors import DataError


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


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
    data = data_from_user((inputs, torch.zeros(20, dtype=torch.int64)))
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


# --- teacher


def test_the_teacher_is_a_network_of_its_seed():
    data = load_data(TeacherSettings(widths=(4, 3, 2), samples=50))
    again = load_data(TeacherSettings(widths=(4, 3, 2), samples=50, split_seed=3))
    other = load_data(TeacherSettings(widths=(4, 3, 2), samples=50, teacher_seed=1))
    assert (data.task, data.num_outputs, data.input_shape) == ("regression", 2, (4,))
    assert [len(data.splits[name]) for name in SPLITS] == [28, 4, 4, 4, 10]

    def in_order(data: Data) -> torch.Tensor:
        order = torch.cat([data.indices[name] for name in SPLITS]).argsort()
        return torch.cat([data.splits[name].targets for name in SPLITS])[order]

    assert torch.equal(in_order(data), in_order(again))
    assert not torch.equal(in_order(data), in_order(other))


def test_the_teacher_has_no_biases():
    # without biases a ReLU network of one input is a straight line from the origin to either side
    data = load_data(TeacherSettings(widths=(1, 5, 1), samples=100))
    x, y = data.train.inputs[:, 0], data.train.targets[:, 0]
    for side in (x > 0, x < 0):
        slope = y[side] / x[side]
        assert torch.allclose(slope, slope[:1].expand_as(slope), rtol=1e-4)


# --- npz


def save(path: Path, **arrays: np.ndarray) -> NpzSettings:
    np.savez(path, **arrays)  # type: ignore[arg-type]
    return NpzSettings(path=str(path))


def labels(count: int = 40, classes: int = 4) -> np.ndarray:
    return np.arange(count) % classes


def test_npz_images_become_channels_first(tmp_path: Path):
    pictures = np.random.default_rng(0).integers(0, 256, (40, 5, 6, 3), dtype=np.uint8)
    data = load_data(save(tmp_path / "a.npz", train_images=pictures, train_labels=labels()))
    assert data.input_shape == (3, 5, 6)
    sample = data.indices["train"][0].item()
    assert np.array_equal(data.train.inputs[0].numpy(), pictures[sample].transpose(2, 0, 1))
    assert len(data.test) == 8


def test_npz_features_and_own_test_set(tmp_path: Path):
    settings = save(
        tmp_path / "a.npz",
        train_images=np.random.default_rng(0).normal(size=(40, 7)),
        train_labels=labels().astype(np.uint8),
        test_images=np.zeros((12, 7)),
        test_labels=labels(12),
    )
    data = load_data(settings)
    assert data.input_shape == (7,) and data.train.inputs.dtype == torch.float32
    assert data.mean.tolist() == [0.0] and data.std.tolist() == [1.0]
    assert torch.equal(data.indices["test"], torch.arange(12))
    assert sum(len(data.splits[name]) for name in SPLITS[:4]) == 40
    thinned = load_data(settings.model_copy(update={"split": SplitSettings(test=0.5)}))
    assert len(thinned.test) == 6 and sum(len(thinned.splits[name]) for name in SPLITS[:4]) == 40


GREY = np.zeros((40, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"train_images": GREY}, r"'train_labels' is missing; the archive holds train_images"),
        ({"images": GREY}, r"'train_images' is missing; the archive holds neither"),
        ({"train_images": GREY, "train_labels": labels(), "test_images": GREY}, r"'test_labels' is missing"),
        ({"train_images": GREY, "train_labels": labels(39)}, r"differ in length"),
        ({"train_images": GREY[:0], "train_labels": labels(0)}, r"train_images is empty"),
        ({"train_images": GREY, "train_labels": labels() * 1.0}, r"train_labels must be integers \[N\], got float64"),
        ({"train_images": GREY, "train_labels": labels()[:, None]}, r"train_labels must be integers \[N\]"),
        ({"train_images": GREY, "train_labels": labels() - 1}, r"between -1 and 2"),
        ({"train_images": GREY, "train_labels": labels() + 1}, r"must be 0 .. K-1.*renumbers"),
        ({"train_images": GREY, "train_labels": labels() * 2}, r"got 4 classes between 0 and 6"),
        (
            {"train_images": GREY, "train_labels": labels(), "test_images": GREY, "test_labels": labels(40, 5)},
            r"test_labels must be among the 4 classes of train_labels",
        ),
        (
            {"train_images": GREY, "train_labels": labels(), "test_images": GREY[:, :3], "test_labels": labels()},
            r"test_images must have the shape of train_images",
        ),
        ({"train_images": GREY.astype(np.int32), "train_labels": labels()}, r"must be uint8 images.*got int32"),
        ({"train_images": GREY[:, 0], "train_labels": labels()}, r"must be uint8 images"),
        (
            {"train_images": GREY.astype(np.float32), "train_labels": labels()},
            r"or float features \[N, D\], got float32",
        ),
        ({"train_images": np.zeros((40, 3, 8, 8), np.uint8), "train_labels": labels()}, r"looks like \[N, C, H, W\]"),
        ({"train_images": np.full((40, 2), np.nan), "train_labels": labels()}, r"must be finite, got 80 of 80"),
    ],
)
def test_a_wrong_npz_is_named_with_its_key(tmp_path: Path, arrays: dict[str, np.ndarray], message: str):
    with pytest.raises(DataError, match=message) as caught:
        load_data(save(tmp_path / "wrong.npz", **arrays))
    assert "wrong.npz" in str(caught.value)


def test_a_truncated_npz_is_refused_at_every_length(tmp_path: Path):
    save(tmp_path / "whole.npz", train_images=GREY, train_labels=labels())
    whole = (tmp_path / "whole.npz").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.npz").write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.npz: not a readable \.npz archive"):
            load_data(NpzSettings(path=str(tmp_path / "cut.npz")))


def test_a_flipped_bit_in_an_npz_is_refused(tmp_path: Path):
    np.savez_compressed(tmp_path / "a.npz", train_images=GREY, train_labels=labels())
    stored = bytearray((tmp_path / "a.npz").read_bytes())
    stored[80] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(stored)
    with pytest.raises(DataError, match=r"not a readable \.npz archive"):
        load_data(NpzSettings(path=str(tmp_path / "a.npz")))


def test_npz_never_unpickles(tmp_path: Path):
    settings = save(tmp_path / "a.npz", train_images=np.array([{}] * 4, dtype=object), train_labels=labels(4))
    with pytest.raises(DataError, match="holding pickled objects"):
        load_data(settings)


def test_a_single_array_or_no_file_is_no_archive(tmp_path: Path):
    np.save(tmp_path / "a.npy", GREY)
    with pytest.raises(DataError, match="this is a single array"):
        load_data(NpzSettings(path=str(tmp_path / "a.npy")))
    with pytest.raises(DataError, match=r"there is no such file; data\.path"):
        load_data(NpzSettings(path=str(tmp_path / "b.npz")))


def test_features_cannot_be_augmented(tmp_path: Path):
    settings = save(tmp_path / "a.npz", train_images=np.zeros((40, 2)), train_labels=labels())
    with pytest.raises(DataError, match=r"data\.augment needs images"):
        load_data(settings.model_copy(update={"augment": AugmentSettings(flip=True)}))


# --- cifar


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Both CIFARs in torchvision's layout with a few random images, and their sums in place of the published ones."""
    from torchvision.datasets import CIFAR10, CIFAR100

    rng = np.random.default_rng(0)

    def write(cls: type[CIFAR10], name: str, content: dict[str, object]) -> str:
        path = tmp_path / cls.base_folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(pickle.dumps(content))
        return hashlib.md5(path.read_bytes()).hexdigest()

    for cls, key, classes in ((CIFAR10, "labels", 10), (CIFAR100, "fine_labels", 100)):
        for listed in ("train_list", "test_list"):
            files = []
            for name, _ in getattr(cls, listed):
                count = 2 * classes if listed == "test_list" else 40 if classes == 10 else 500
                pictures = rng.integers(0, 256, (count, 3072), dtype=np.uint8)
                content = {"data": pictures, key: [i % classes for i in range(count)]}
                files.append([name, write(cls, name, content)])
            monkeypatch.setattr(cls, listed, files)
        names = {cls.meta["key"]: [str(i) for i in range(classes)]}
        monkeypatch.setattr(cls, "meta", {**cls.meta, "md5": write(cls, cls.meta["filename"], names)})
    monkeypatch.delenv("GROWKIT_DATA", raising=False)
    return tmp_path


def test_cifar_is_read_with_its_own_test_set(cifar: Path, monkeypatch: pytest.MonkeyPatch):
    data = load_data(Cifar10Settings(root=str(cifar)))
    assert data.input_shape == (3, 32, 32) and data.mean.shape == (3,)
    assert [len(data.splits[name]) for name in SPLITS] == [140, 20, 20, 20, 20]
    with (cifar / "cifar-10-batches-py" / "test_batch").open("rb") as stored:
        first = pickle.load(stored)["data"][0].reshape(3, 32, 32)
    assert np.array_equal(data.test.inputs[0].numpy(), first)
    monkeypatch.setenv("GROWKIT_DATA", str(cifar))
    hundred = load_data(Cifar100Settings(limit=400))
    assert hundred.num_outputs == 100 and len(hundred.test) == 200


def test_a_truncated_cifar_names_its_folder(cifar: Path):
    batch = cifar / "cifar-10-batches-py" / "data_batch_3"
    batch.write_bytes(batch.read_bytes()[:1000])
    with pytest.raises(DataError, match=r"missing or corrupt under .*data\.download=true") as caught:
        load_data(Cifar10Settings(root=str(cifar)))
    assert str(cifar) in str(caught.value)


def test_a_cifar_without_a_folder_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("GROWKIT_DATA", raising=False)
    with pytest.raises(DataError, match="export GROWKIT_DATA=FOLDER"):
        load_data(Cifar10Settings())


# --- the user's own


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
