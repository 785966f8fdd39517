"""Sources of data: the teacher, npz archives, cifar."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from growkit.config.data import (
    AugmentSettings,
    Cifar10Settings,
    Cifar100Settings,
    NpzSettings,
    SplitSettings,
    TeacherSettings,
)
from growkit.data import SPLITS, Data, load_data
from growkit.errors import DataError

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
