"""Folders of images: what is read, what is refused, what the cache knows."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import CLASSES, write_images
from PIL import Image

from growkit.assembly import assemble
from growkit.config import config_from_overrides
from growkit.config.data import ImageFolderSettings
from growkit.data import Data, imagefolder, load_data, packed
from growkit.errors import DataError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_images(tmp_path / "animals")


def settings(folder: Path, **more: object) -> ImageFolderSettings:
    return ImageFolderSettings(path=str(folder), **{"cache": str(folder.parent / "cache"), **more})  # type: ignore[arg-type]


def in_order(data: Data) -> tuple[torch.Tensor, torch.Tensor]:
    """All samples as they lie in the folder."""
    order = torch.cat(list(data.indices.values())).argsort()
    splits = [data.splits[name] for name in data.indices]
    return torch.cat([one.inputs for one in splits])[order], torch.cat([one.targets for one in splits])[order]


@pytest.mark.parametrize("size", [None, 6, 12])
def test_images_are_those_of_torchvision(folder: Path, size: int | None):
    datasets, transforms = pytest.importorskip("torchvision.datasets"), pytest.importorskip("torchvision.transforms")
    cut = [] if size is None else [transforms.Resize(size), transforms.CenterCrop(size)]
    theirs = datasets.ImageFolder(folder, transforms.Compose([*cut, transforms.PILToTensor()]))
    inputs, targets = in_order(load_data(settings(folder, size=size)))
    assert torch.equal(inputs, torch.stack([image for image, _ in theirs]))
    assert targets.tolist() == theirs.targets and theirs.classes == list(CLASSES)


def test_parts_of_their_own_are_taken_as_they_are(tmp_path: Path):
    for part, count in (("train", 10), ("val", 4), ("test", 5)):
        write_images(tmp_path / "animals" / part, count)
    data = load_data(settings(tmp_path / "animals"))
    assert [len(data.splits[name]) for name in ("validate", "test")] == [12, 15]
    assert len(data.train) + len(data.diagnose) + len(data.accept) == 30
    with pytest.raises(DataError, match=r"split\.validate must be left out where validate data are given, got 0\.3"):
        load_data(settings(tmp_path / "animals", split={"validate": 0.3}))


def test_a_single_class_is_refused(tmp_path: Path):
    write_images(tmp_path / "all" / "animals")  # a folder too high
    with pytest.raises(DataError, match="at least two classes to tell apart, got one"):
        load_data(settings(tmp_path / "all"))


def test_grey_has_one_channel(folder: Path):
    assert load_data(settings(folder, mode="grey")).input_shape == (1, 7, 9)


@pytest.mark.parametrize("mode", ["rgb", "grey"])
def test_of_16_bits_the_upper_8_are_read(folder: Path, mode: str):
    deep = np.arange(63, dtype=np.uint16).reshape(7, 9) * 1040
    Image.fromarray(deep).save(folder / "cat" / "000.png")
    inputs, _ = in_order(load_data(settings(folder, mode=mode)))
    assert (inputs[0].numpy() == deep >> 8).all()


def test_numbers_without_a_scale_are_refused(folder: Path):
    Image.fromarray(np.ones((7, 9), np.float32)).save(folder / "cat" / "x.tif")
    with pytest.raises(DataError, match=r"cat/x.tif: .*float32 pixels from 1.0 to 1.0, wanted 8 or 16 bits"):
        load_data(settings(folder))


def test_files_of_other_kinds_are_said(folder: Path):
    for name in ("moving.gif", "Thumbs.db", ".hidden"):
        (folder / "cat" / name).write_bytes(b"")
    (note,) = load_data(settings(folder)).notes
    assert note.endswith("animals: 1 files are not read, for their extensions: cat/moving.gif")


# --- the cache


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The images that were decoded since."""
    names: list[str] = []
    decode = imagefolder.decode_image

    def noted(root: Path, how: ImageFolderSettings, name: str) -> object:
        names.append(name)
        return decode(root, how, name)

    monkeypatch.setattr(imagefolder, "decode_image", noted)
    return names


def test_a_second_start_decodes_nothing_and_reads_the_same(folder: Path, decoded: list[str]):
    first = load_data(settings(folder))
    assert len(decoded) == 36
    again = load_data(settings(folder))
    assert len(decoded) == 36 and first.fingerprint() == again.fingerprint()


def test_a_changed_file_is_decoded_anew(folder: Path, decoded: list[str]):
    load_data(settings(folder))
    target = folder / "cat" / "000.png"
    Image.fromarray(np.zeros((7, 9, 3), np.uint8)).save(target)
    inputs, _ = in_order(load_data(settings(folder)))
    assert len(decoded) == 72 and not inputs[0].any()


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "dog" / "003.png").unlink(),
        lambda folder: shutil.copy(folder / "dog/003.png", folder / "dog/x.png"),
    ],
    ids=["removed", "added"],
)
def test_a_file_less_or_more_is_noticed(folder: Path, decoded: list[str], change):
    load_data(settings(folder))
    change(folder)
    load_data(settings(folder))
    assert len(decoded) in (36 + 35, 36 + 37)


def test_a_cache_of_what_the_folder_was_does_not_stay(folder: Path):
    for size in (None, 5):
        load_data(settings(folder, size=size))
    (folder / "dog" / "003.png").unlink()
    load_data(settings(folder))
    assert len(list((folder.parent / "cache").iterdir())) == 2


def test_other_settings_have_a_cache_of_their_own(folder: Path, decoded: list[str]):
    shapes = [load_data(settings(folder, size=size)).input_shape for size in (None, 5, None)]
    assert shapes == [(3, 7, 9), (3, 5, 5), (3, 7, 9)] and len(decoded) == 72


def test_a_damaged_cache_is_made_anew_and_said(folder: Path, decoded: list[str]):
    load_data(settings(folder))
    (kept,) = (folder.parent / "cache").iterdir()
    raw = bytearray(kept.read_bytes())
    raw[-1] ^= 1
    kept.write_bytes(raw)
    data = load_data(settings(folder))
    assert len(decoded) == 72 and "were damaged (its hash is another one), and are packed anew" in data.notes[0]
    assert load_data(settings(folder)).notes == () and len(decoded) == 72


def test_no_cache_is_kept_where_none_is_wanted(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder.parent / "home"))
    load_data(settings(folder, cache=False))
    assert not (folder.parent / "home").exists()
    load_data(settings(folder, cache=None))
    assert len(list((folder.parent / "home" / "growkit" / "imagefolder").iterdir())) == 1


def test_a_cache_that_cannot_be_written_is_named(folder: Path):
    (folder.parent / "file").write_text("")
    with pytest.raises(DataError, match=r"file: the folder for packed images must be writable.*data.cache"):
        load_data(settings(folder, cache=str(folder.parent / "file")))


# --- what is wrong


def test_a_broken_image_is_named(folder: Path):
    (folder / "dog" / "003.png").write_bytes(b"\x89PNG no more")
    with pytest.raises(DataError, match=r"dog/003.png: an image must be one that can be decoded.*skip_broken"):
        load_data(settings(folder))


def test_broken_images_are_left_out_if_so_wanted_and_listed_each_time(folder: Path):
    whole = (folder / "eel" / "001.png").read_bytes()
    (folder / "eel" / "001.png").write_bytes(whole[: len(whole) // 2])
    for _ in range(2):  # packed, then from the cache
        data = load_data(settings(folder, skip_broken=True))
        assert sum(map(len, data.splits.values())) == 35
        assert data.notes[0].endswith("animals: 1 of 36 images were left out: eel/001.png (OSError)")


def test_a_class_of_broken_images_alone_is_named(folder: Path):
    for file in (folder / "eel").iterdir():
        file.write_bytes(b"no image")
    for _ in range(2):  # packed, then from the cache
        with pytest.raises(DataError, match="eel: a class must have an image that can be decoded, got none"):
            load_data(settings(folder, skip_broken=True))


def test_what_was_left_out_is_a_warning_of_the_run(folder: Path, tmp_path: Path):
    (folder / "eel" / "001.png").write_bytes(b"no image")
    config = config_from_overrides(
        {
            "data": {"name": "imagefolder", "path": str(folder), "size": 8, "skip_broken": True, "cache": False},
            "model": {"name": "mlp", "hidden": [6]},
            "run": {"root": str(tmp_path / "runs")},
        }
    )
    assert any("1 of 36 images were left out" in warning for warning in assemble(config).warnings)


def test_images_of_two_sizes_are_named(folder: Path):
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(folder / "cat" / "zzz.png")
    message = r"one size, got 7x9 \(cat/000.png\) and 5x5 \(cat/zzz.png\); set data.size"
    with pytest.raises(DataError, match=message):
        load_data(settings(folder))
    assert load_data(settings(folder, size=5)).input_shape == (3, 5, 5)


def test_a_class_without_images_is_named(folder: Path):
    (folder / "fox").mkdir()
    with pytest.raises(DataError, match="fox: a class must have an image.*remove the folder"):
        load_data(settings(folder))


def test_a_class_that_training_never_saw_is_named(tmp_path: Path):
    for part in ("train", "test"):
        write_images(tmp_path / "animals" / part, 6)
    (tmp_path / "animals" / "test" / "fox").mkdir()
    with pytest.raises(DataError, match="fox: a class must be among those of train, 3 of them"):
        load_data(settings(tmp_path / "animals"))


def test_a_part_twice_is_named(tmp_path: Path):
    for part in ("train", "val", "valid"):
        write_images(tmp_path / "animals" / part, 6)
    with pytest.raises(DataError, match="'valid' is validate once more"):
        load_data(settings(tmp_path / "animals"))


@pytest.mark.parametrize(
    ("make", "message"), [(False, "there is none"), (True, "for each class must be there, got none")]
)
def test_a_missing_or_empty_folder_is_named(tmp_path: Path, make: bool, message: str):
    if make:
        (tmp_path / "animals").mkdir()
    with pytest.raises(DataError, match=message):
        load_data(settings(tmp_path / "animals"))


def test_the_name_of_a_cache_is_that_of_its_files(folder: Path):
    one = packed.cache_file(settings(folder), [("train", folder, ["cat/000.png"])])
    two = packed.cache_file(settings(folder), [("train", folder, ["cat/001.png"])])
    assert one is not None and two is not None and one != two
