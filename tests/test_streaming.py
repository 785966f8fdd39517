"""Image folders that are streamed: they are what the images in memory are, bit for bit, whoever reads them."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from data_cases import seeded, write_images
from PIL import Image
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import growkit
from growkit.cli import app
from growkit.config import config_from_overrides
from growkit.config.data import AugmentSettings, ImageFolderSettings, NpzSettings
from growkit.data import SPLITS, Data, batches, imagefolder, load_data, streaming
from growkit.data.ahead import ahead, read_ahead
from growkit.data.files import ImageFiles
from growkit.errors import DataError, TrainingError, UserInputError
from growkit.pipeline import run
from growkit.report import Observer

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than processors
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # it forks, from 3.12 on
]

ALL = AugmentSettings(crop=2, flip=True, cutout=3)
CROP = {"name": "RandomResizedCrop", "size": [7, 9], "scale": [0.3, 1.0]}
CHANCE = (CROP, {"name": "ColorJitter", "brightness": 0.4, "contrast": 0.4})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("data") / "animals", 30)


def load(folder: Path, stream: Any, **more: Any) -> Data:
    return load_data(ImageFolderSettings(path=str(folder), cache=False, stream=stream, **more))


def one_pass(data: Data, size: int = 16, split: str = "train") -> list[tuple[torch.Tensor, torch.Tensor]]:
    return list(batches(data, split, size, order=seeded(1), augmentation=seeded(2)))


def same(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    pairs = zip(one, other, strict=True)
    return all(torch.equal(a, b) for ours, theirs in pairs for a, b in zip(ours, theirs, strict=True))


# --- the same as in memory


@pytest.mark.parametrize("transforms", [(), CHANCE], ids=["batched", "per sample"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_batches_are_those_of_images_in_memory(folder: Path, workers: int, transforms: Any):
    more = {"augment": ALL, "transforms": transforms}
    whole, streamed = load(folder, False, workers=0, **more), load(folder, True, workers=workers, **more)
    assert isinstance(streamed.train.inputs, ImageFiles) and not isinstance(whole.train.inputs, ImageFiles)
    assert torch.equal(streamed.mean, whole.mean) and torch.equal(streamed.std, whole.std)
    assert same(one_pass(whole), one_pass(streamed))
    for name in SPLITS:
        assert torch.equal(streamed.indices[name], whole.indices[name])
        assert same(list(batches(whole, name, 16)), list(batches(streamed, name, 16)))
    assert torch.equal(streamed.example(5), whole.example(5))


def test_images_are_those_of_a_dataloader_of_torchvision(folder: Path):
    datasets, transforms = pytest.importorskip("torchvision.datasets"), pytest.importorskip("torchvision.transforms")
    cut = transforms.Compose([transforms.Resize(6), transforms.CenterCrop(6), transforms.PILToTensor()])
    data = load(folder, True, workers=2, size=6)
    for name in SPLITS:
        theirs = DataLoader(datasets.ImageFolder(folder, cut), batch_size=16, sampler=data.indices[name].tolist())
        for (inputs, targets), (images, classes) in zip(batches(data, name, 16), theirs, strict=True):
            assert torch.equal(inputs, (images.float() - data.mean[:, None, None]) / data.std[:, None, None])
            assert torch.equal(targets, classes)


def test_parts_of_their_own_are_streamed_too(tmp_path: Path):
    for part, count in (("train", 10), ("val", 4), ("test", 5)):
        write_images(tmp_path / "animals" / part, count)
    whole, streamed = (load(tmp_path / "animals", stream, workers=0) for stream in (False, True))
    assert torch.equal(streamed.test.inputs[:], whole.test.inputs) and len(streamed.validate) == 12


def test_the_moments_are_of_the_same_first_images(folder: Path, monkeypatch: pytest.MonkeyPatch):
    everything = load(folder, False)
    monkeypatch.setattr(imagefolder, "MOMENTS_FROM", 7)
    whole, streamed = (load(folder, stream, workers=0) for stream in (False, True))
    first = whole.train.inputs[:7].double()
    assert torch.allclose(whole.mean.double(), first.mean(dim=(0, 2, 3)), atol=1e-4)
    assert torch.equal(whole.mean, streamed.mean) and torch.equal(whole.std, streamed.std)
    assert not torch.equal(whole.mean, everything.mean)
    assert (whole.moments_from, everything.moments_from) == (7, len(everything.train))


def settings_of_a_run(folder: Path, root: Path, **data: Any) -> dict[str, Any]:
    return {
        "data": {
            "name": "imagefolder",
            "path": str(folder),
            "cache": False,
            "augment": {"crop": 1, "flip": True},
            "transforms": [{"name": "RandomRotation", "degrees": 20}],
            **data,
        },
        "model": {"name": "mlp", "hidden": [6]},
        "train": {"epochs": 3, "batch_size": 16},
        "growth": {"when": {"name": "periodic", "start": 1, "every": 1}},
        "run": {"root": str(root), "tensorboard": False},
    }


def test_a_streamed_run_is_the_run_in_memory_and_reloads(folder: Path, tmp_path: Path):
    whole, streamed = (
        run(config_from_overrides(settings_of_a_run(folder, tmp_path, stream=stream, workers=workers)), observers=[])
        for stream, workers in ((False, 0), (True, 2))
    )
    assert len(streamed.events) == 2 and max(streamed.result["widths"].values()) > 6
    spent = {"cpu_seconds", "process_cpu_seconds", "wall_seconds", "folder"}
    ours, theirs = ({key: value for key, value in one.result.items() if key not in spent} for one in (streamed, whole))
    assert ours == theirs
    images = torch.randn(4, 3, 7, 9, generator=seeded())
    assert streamed.folder is not None
    assert torch.equal(growkit.load(streamed.folder)(images), streamed.model(images))
    assert torch.equal(whole.model(images), streamed.model(images))
    record = json.loads((streamed.folder / "env.json").read_text())["data"]
    assert record["reading"] == "streamed from their files, as data.stream says"
    assert "files_sha256" in record["fingerprint"] and "inputs_sha256" not in record["fingerprint"]
    assert multiprocessing.active_children() == []


# --- whether to stream


@pytest.mark.parametrize(("memory", "streams"), [(68_000, True), (69_000, False), (None, False)])
def test_auto_streams_what_takes_more_than_a_quarter_of_the_memory(
    folder: Path, memory: int | None, streams: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(streaming, "total_memory", lambda: memory)  # decoded, the folder takes 90 * 3 * 7 * 9 bytes
    data = load(folder, "auto")
    assert isinstance(data.train.inputs, ImageFiles) == streams
    assert ("decoded once into memory", "streamed from their files")[streams] in data.reading


def test_the_choice_is_printed(folder: Path, tmp_path: Path):
    (tmp_path / "c.yaml").write_text(
        f"data: {{name: imagefolder, path: {folder}, cache: false, stream: true, workers: 0}}\n"
        "model: {name: mlp, hidden: [3]}\ntrain: {epochs: 1}\ngrowth: {when: never}\n"
    )
    run_it = ["run", str(tmp_path / "c.yaml"), f"run.root={tmp_path}", "run.tensorboard=false"]
    for command in (run_it, [*run_it, "--dry-run"]):
        assert "reading   streamed from their files, as data.stream says" in CliRunner().invoke(app, command).stdout


def test_a_fingerprint_knows_its_files(tmp_path: Path):
    folder = write_images(tmp_path / "animals", 8)
    first, again = (load(folder, True, workers=0).fingerprint() for _ in range(2))
    (folder / "cat" / "000.png").touch()
    assert first == again != load(folder, True, workers=0).fingerprint()


# --- what is wrong


def broken(folder: Path) -> Path:
    """A folder of which every image of the class `dog` ends early."""
    for file in (folder / "dog").iterdir():
        file.write_bytes(file.read_bytes()[:60])
    return folder


def test_a_file_that_is_gone_is_named(tmp_path: Path):
    data = load(write_images(tmp_path / "animals"), True, workers=0)
    (tmp_path / "animals" / "cat" / "004.png").unlink()
    with pytest.raises(DataError, match=r"cat/004.png: an image must stay there, but No such file"):
        data.fingerprint()
    with pytest.raises(DataError, match=r"cat/004.png: an image must be one that can be decoded.*FileNotFoundError"):
        (
            data.train.inputs[:],
            data.validate.inputs[:],
            data.diagnose.inputs[:],
            data.accept.inputs[:],
            data.test.inputs[:],
        )


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_is_named_when_it_is_met(tmp_path: Path, workers: int):
    data = load(write_images(tmp_path / "animals"), True, workers=workers)
    broken(tmp_path / "animals")
    with pytest.raises(DataError, match=r"dog/0\d\d.png: an image must be one that can be decoded.*skip_broken"):
        one_pass(data)
    assert multiprocessing.active_children() == []


def test_a_run_that_meets_a_broken_image_ends_with_one_message(tmp_path: Path):
    folder = write_images(tmp_path / "animals", 30)

    class Spoil(Observer):
        def started(self, facts: Any) -> None:
            broken(folder)

    config = config_from_overrides(settings_of_a_run(folder, tmp_path, stream=True, workers=1))
    with pytest.raises(DataError, match=r"dog/0\d\d.png: an image must be one that can be decoded"):
        run(config, observers=[Spoil()])
    assert multiprocessing.active_children() == []
    logged = [json.loads(line) for line in next(tmp_path.glob("run/*/events.jsonl")).read_text().splitlines()]
    assert logged[-1]["event"] == "failed" and "dog/" in logged[-1]["message"]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_images_are_found_beforehand_if_they_may_be_left_out(tmp_path: Path, workers: int):
    folder = write_images(tmp_path / "animals")
    (folder / "eel" / "001.png").write_bytes(b"no image")
    whole, streamed = (load(folder, stream, workers=workers, skip_broken=True) for stream in (False, True))
    assert same(one_pass(whole), one_pass(streamed))
    assert "animals: 36 images were decoded in" in streamed.notes[0]
    assert streamed.notes[1:] == whole.notes and "1 of 36 images were left out: eel/001.png" in whole.notes[0]


def test_a_class_of_broken_images_alone_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="dog: a class must have an image that can be decoded, got none"):
        load(broken(write_images(tmp_path / "animals")), True, workers=0, skip_broken=True)


def test_an_image_of_another_size_is_named_when_it_is_met(tmp_path: Path):
    folder = write_images(tmp_path / "animals")
    Image.new("RGB", (5, 4)).save(folder / "eel" / "zzz.png")
    with pytest.raises(DataError, match=r"eel/zzz.png: all images must have one size, 7x9, got 4x5; set data.size"):
        one_pass(load(folder, True, workers=0))
    assert load(folder, True, workers=0, size=4).input_shape == (3, 4, 4)


def test_parts_of_two_sizes_are_refused(tmp_path: Path):
    write_images(tmp_path / "animals" / "train")
    write_images(tmp_path / "animals" / "test", size=(5, 5))
    with pytest.raises(DataError, match="all images must have one size, got .*set data.size"):
        load(tmp_path / "animals", True)


def test_a_cache_of_what_is_streamed_is_refused():
    with pytest.raises(UserInputError, match="cache is for images that are not streamed, got 'x' with stream: true"):
        config_from_overrides({"data": {"name": "imagefolder", "path": "p", "stream": True, "cache": "x"}})


# --- the processes


class Hold(Observer):
    def step(self, step: int) -> None:
        if step == 4:
            assert multiprocessing.active_children() != []
            raise KeyboardInterrupt


def test_an_interrupt_ends_the_processes(folder: Path, tmp_path: Path):
    config = config_from_overrides(settings_of_a_run(folder, tmp_path, stream=True, workers=2))
    with pytest.raises(KeyboardInterrupt):
        run(config, observers=[Hold()])
    assert multiprocessing.active_children() == []


def test_reading_ahead_leaves_the_global_generators_alone(folder: Path):
    data = load(folder, True, workers=1, transforms=CHANCE)
    before = torch.get_rng_state()
    one_pass(data)
    assert torch.equal(torch.get_rng_state(), before)


def _dies(chunk: Any) -> Any:
    import os

    os._exit(1)


def test_a_process_that_ends_is_a_failure_of_the_run():
    with pytest.raises(TrainingError, match="a process that reads data ended: .*lower data.workers"):
        list(ahead(_dies, [1, 2], workers=1, depth=2))


def test_a_batch_larger_than_what_a_process_reads_is_put_together():
    images = torch.arange(100, dtype=torch.uint8)[:, None, None, None]
    rows = [torch.arange(70), torch.arange(99, 69, -1)]
    read = list(read_ahead(images, rows, workers=2))
    assert all(torch.equal(one.flatten(), which.to(torch.uint8)) for one, which in zip(read, rows, strict=True))


def test_workers_without_work_are_refused():
    with pytest.raises(ValueError, match="workers are for transforms, of which there are none, got 2; remove it"):
        NpzSettings(path="p", workers=2)
