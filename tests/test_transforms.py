"""Transforms of torchvision by name: what they give, by what they draw, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from data_cases import seeded, write_images
from torch import nn

import growkit
from growkit.config import config_from_overrides, dump_config, load_config
from growkit.config.data import AugmentSettings, DigitsSettings, ImageFolderSettings, NpzSettings
from growkit.data import Data, batches, load_data
from growkit.data.augment import crop, draw, normalise
from growkit.data.transforms import Transforms
from growkit.errors import DataError
from growkit.rng import global_state, isolated

v2 = pytest.importorskip("torchvision.transforms.v2")
pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create"),  # more workers than processors
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),  # it forks, from 3.12 on
]

IMAGE = torch.randint(0, 256, (3, 8, 8), dtype=torch.uint8, generator=seeded())
AFFINE = {"name": "RandomAffine", "degrees": 30, "translate": [0.2, 0.2]}
JITTER = {"name": "ColorJitter", "brightness": 0.4}


def digits(**more: Any) -> Data:
    return load_data(DigitsSettings(limit=200, **more))


def one_pass(data: Data, size: int = 32) -> list[torch.Tensor]:
    return [inputs for inputs, _ in batches(data, "train", size, order=seeded(1), augmentation=seeded(2))]


def test_each_image_is_what_torchvision_gives_for_its_seed():
    data = digits(transforms=(AFFINE, JITTER), workers=2, augment=AugmentSettings(crop=0))
    theirs = v2.Compose([v2.RandomAffine(30, translate=(0.2, 0.2)), v2.ColorJitter(brightness=0.4)])
    order = torch.randperm(len(data.train), generator=seeded(1))
    seeds = torch.randint(2**63 - 1, (len(data.train),), generator=seeded(2))
    wanted = []
    for row in order.tolist():
        with isolated(int(seeds[row])):
            wanted.append(theirs(data.train.inputs[row]))
    assert torch.equal(torch.cat(one_pass(data)), normalise(torch.stack(wanted), data.mean, data.std))


def test_what_is_drawn_depends_on_no_batch_and_no_process():
    passes = [
        torch.cat(one_pass(digits(transforms=(AFFINE,), workers=workers, augment=AugmentSettings(crop=0)), size))
        for workers, size in ((0, 32), (1, 32), (2, 20))
    ]
    assert torch.equal(passes[0], passes[1]) and torch.equal(passes[0], passes[2])


def test_they_come_before_the_augmentation_of_batches():
    data = digits(transforms=({"name": "RandomInvert", "p": 1.0},), workers=0, augment=AugmentSettings(crop=1))
    order, stream = torch.randperm(len(data.train), generator=seeded(1)), seeded(2)
    torch.randint(2**63 - 1, (len(data.train),), generator=stream)
    window = draw(data.augment, (32, 8, 8), stream).window
    assert window is not None
    inverted = 255 - data.train.inputs[order[:32]]  # the border that the crop pads with stays 0
    assert torch.equal(one_pass(data)[0], normalise(crop(inverted, 1, window), data.mean, data.std))


def test_evaluation_sees_images_as_they_are():
    plain, data = digits(), digits(transforms=(AFFINE,), workers=0)
    for split in ("validate", "test"):
        for (ours, _), (theirs, _) in zip(batches(data, split, 50), batches(plain, split, 50), strict=True):
            assert torch.equal(ours, theirs)
    assert torch.equal(data.example(4), plain.example(4))
    assert data.fingerprint() == plain.fingerprint()


def test_an_image_folder_transforms_what_its_size_cut(tmp_path: Path):
    folder = write_images(tmp_path / "animals", size=(12, 10))
    crop_it = {"name": "RandomResizedCrop", "size": 6}
    settings = ImageFolderSettings(path=str(folder), cache=False, size=6, transforms=(crop_it,), workers=0)
    assert {tuple(inputs.shape[1:]) for inputs in one_pass(load_data(settings))} == {(3, 6, 6)}


def test_a_transform_that_writes_to_its_image_leaves_the_data_alone():
    data = digits(transforms=({"name": "RandomErasing", "p": 1.0, "inplace": True},), workers=0)
    before = data.train.inputs.clone()
    one_pass(data)
    assert torch.equal(data.train.inputs, before)


def test_the_global_generators_are_as_before():
    before = global_state()
    one_pass(digits(transforms=(AFFINE,), workers=0))
    assert global_state() == before


def test_transforms_within_transforms_and_choices_by_value():
    nested = {"name": "RandomApply", "p": 1.0, "transforms": [{"name": "RandomInvert", "p": 1.0}]}
    policy = {"name": "AutoAugment", "policy": "cifar10"}
    with isolated(3):
        inverted = v2.RandomApply([v2.RandomInvert(p=1.0)], p=1.0)(IMAGE)
        wanted = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)(inverted)
        assert torch.equal(Transforms([nested, policy]).apply(IMAGE, 3), wanted)


def test_settings_come_back_from_their_record(tmp_path: Path):
    config = config_from_overrides({"data": {"name": "digits", "workers": 1, "transforms": ["RandomInvert", AFFINE]}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml").data == config.data


def test_live_data_have_them_too():
    inputs = torch.randint(0, 256, (40, 1, 4, 4), dtype=torch.uint8, generator=seeded())
    seed = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Tanh(), nn.Linear(3, 2))
    scores = []
    for transforms in ([], ["RandomVerticalFlip"]):
        torch.manual_seed(0)
        for module in seed.modules():
            if isinstance(module, nn.Linear):
                module.reset_parameters()
        config = {"train.epochs": 2, "growth.when": "never", "data.transforms": transforms}
        grown = growkit.grow(seed, (inputs, torch.arange(40) % 2), config=config, observers=())
        scores.append(grown.result["train"]["loss"])
    assert scores[0] != scores[1]


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (
            {"name": "RandomResizeCrop", "size": 8},
            r"\[0\]\.name: .* no transform 'RandomResizeCrop'; did you mean 'Ran",
        ),
        ({"name": "InterpolationMode"}, r"has no transform 'InterpolationMode'"),
        ({"name": "ColorJitter", "bright": 0.4}, r"\[0\] \(ColorJitter\): TypeError: .*'bright'"),
        ({"name": "ColorJitter", "brightness": -1}, r"\[0\] \(ColorJitter\): ValueError: .*non negative"),
        (
            {"name": "RandomResizedCrop", "size": 5},
            r"images like those for evaluation, torch.uint8 \[1, 8, 8\], got .*5",
        ),
        ({"name": "ToDtype", "dtype": "float32"}, r"\[0\] \(ToDtype\)"),
        ({"name": "Normalize", "mean": [0.0], "std": [1.0]}, r"\[0\] \(Normalize\) failed: TypeError: .*float"),
        ({"name": "FiveCrop", "size": 3}, r"images like those for evaluation, .* got tuple"),
        ({"name": "MixUp"}, r"\[0\] \(MixUp\) failed"),
        (
            {"name": "AutoAugment", "policy": "cifar"},
            r"\[0\]\.policy must be one of imagenet, cifar10, svhn, got 'cifar'",
        ),
        ({"name": "RandomApply", "transforms": [{"name": "Invert"}]}, r"transforms\[0\]\.name: .*did you mean"),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_with_its_place(transform: dict[str, Any], message: str):
    with pytest.raises(DataError, match=f"data.transforms.*{message}"):
        digits(transforms=(transform,))


def test_they_are_for_images(tmp_path: Path):
    labels = np.arange(40) % 4
    np.savez(tmp_path / "a.npz", train_images=np.zeros((40, 5), np.float32), train_labels=labels)
    with pytest.raises(DataError, match=r"data.transforms are for uint8 images .* got torch.float32 \[\d+, 5\]"):
        load_data(NpzSettings(path=str(tmp_path / "a.npz"), transforms=(JITTER,)))
