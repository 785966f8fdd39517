from __future__ import annotations

import pytest
import torch
from torch import Tensor

from growkit.config.data import AugmentSettings
from growkit.data.augment import crop, cutout, draw, flip, normalise


def images(batch: int = 5, channels: int = 3, height: int = 6, width: int = 7) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 256, (batch, channels, height, width), generator=generator, dtype=torch.uint8)


def slow_crop(image: Tensor, padding: int, top: int, left: int) -> Tensor:
    _, height, width = image.shape
    cut = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            row, column = y + top - padding, x + left - padding
            if 0 <= row < height and 0 <= column < width:
                cut[:, y, x] = image[:, row, column]
    return cut


def slow_cutout(image: Tensor, side: int, row: int, column: int) -> Tensor:
    image = image.clone()
    for y in range(row - side // 2, row - side // 2 + side):
        for x in range(column - side // 2, column - side // 2 + side):
            if 0 <= y < image.shape[1] and 0 <= x < image.shape[2]:
                image[:, y, x] = 0
    return image


@pytest.mark.parametrize("padding", [1, 2, 8])
def test_crop_is_the_slow_loop(padding: int):
    batch = images()
    window = draw(AugmentSettings(crop=padding), (5, 6, 7), torch.Generator().manual_seed(0)).window
    assert window is not None
    slow = torch.stack([slow_crop(x, padding, *w.tolist()) for x, w in zip(batch, window, strict=True)])
    assert torch.equal(crop(batch, padding, window), slow)
    assert crop(batch, padding, window).dtype == torch.uint8


def test_flip_mirrors_the_marked_images_only():
    batch, mirrored = images(3), torch.tensor([True, False, True])
    flipped = flip(batch, mirrored)
    assert torch.equal(flipped[0], batch[0].flip(-1))
    assert torch.equal(flipped[1], batch[1])


@pytest.mark.parametrize("side", [1, 2, 3, 4, 20])
def test_cutout_is_the_slow_loop(side: int):
    batch = images().float()
    centre = draw(AugmentSettings(cutout=side), (5, 6, 7), torch.Generator().manual_seed(3)).centre
    assert centre is not None
    slow = torch.stack([slow_cutout(x, side, *c.tolist()) for x, c in zip(batch, centre, strict=True)])
    assert torch.equal(cutout(batch, side, centre), slow)


def test_cutout_leaves_its_argument_alone():
    batch = images().float()
    before = batch.clone()
    cutout(batch, 3, torch.zeros(5, 2, dtype=torch.int64))
    assert torch.equal(batch, before)


def test_every_window_every_mirror_and_every_centre_is_equally_likely():
    draws = draw(AugmentSettings(crop=1, flip=True, cutout=2), (90_000, 3, 3), torch.Generator().manual_seed(0))
    assert draws.window is not None and draws.mirrored is not None and draws.centre is not None
    for cells in (draws.window, draws.centre):
        counts = torch.bincount(cells[:, 0] * 3 + cells[:, 1], minlength=9)
        assert (counts - 10_000).abs().max() < 500  # five standard deviations
    assert abs(int(draws.mirrored.sum()) - 45_000) < 750


def test_an_operation_that_is_off_draws_nothing():
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    draws = draw(AugmentSettings(), (4, 8, 8), generator)
    assert (draws.window, draws.mirrored, draws.centre) == (None, None, None)
    assert torch.equal(generator.get_state(), before)


def test_normalise_is_per_channel_and_leaves_floats_alone():
    batch, mean, std = images(), torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 2.0, 4.0])
    assert torch.equal(normalise(batch, mean, std)[:, 2], (batch[:, 2].float() - 3.0) / 4.0)
    features = torch.randn(4, 9)
    assert torch.equal(normalise(features, torch.zeros(1), torch.ones(1)), features)


def test_channels_last_is_only_a_layout():
    batch, mean, std = images(), torch.zeros(3), torch.ones(3)
    there = normalise(batch, mean, std, channels_last=True)
    assert there.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(there, normalise(batch, mean, std))
