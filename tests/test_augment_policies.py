"""RandAugment and AutoAugment: torchvision's own, image by image, is the truth."""

from __future__ import annotations

import sys
from collections import Counter

import pytest
import torch
from data_cases import seeded
from torch import Tensor
from torchvision.transforms import v2

from growkit.config.data import AnyPolicy, AugmentSettings, AutoAugmentSettings, DigitsSettings, RandAugmentSettings
from growkit.data import batches, data_from_user, load_data
from growkit.data.policies import OPERATIONS, Steps, apply_steps, draw_steps, magnitude_of
from growkit.errors import DataError

SIZES = [(1, 8, 8), (3, 32, 32), (3, 9, 14), (1, 31, 17)]
POLICIES = [RandAugmentSettings(), *(AutoAugmentSettings(policy=name) for name in ("cifar10", "imagenet", "svhn"))]
LEVELS = {"rand": (v2.RandAugment, 31), "auto": (v2.AutoAugment, 10)}


def images(batch: int, channels: int, height: int, width: int) -> Tensor:
    """Noise, and pictures of few and of dark tones, in which rounding and equal pixels matter."""
    noise = torch.randint(0, 256, (batch, channels, height, width), generator=seeded(), dtype=torch.uint8)
    noise[::3] //= 64
    noise[1::3] //= 16
    noise[1::3] *= 12
    return noise


def truth(image: Tensor, name: str, magnitude: float) -> Tensor:
    """One operation on one image, by torchvision."""
    theirs = v2.RandAugment()
    return theirs._apply_image_or_video_transform(image, name, magnitude, theirs.interpolation, theirs._fill)


def magnitudes(name: str) -> list[float]:
    """Every level of torchvision's two spaces at 32 x 32, with both signs where it has them."""
    found = set()
    for space, levels in LEVELS.values():
        if name in space._AUGMENTATION_SPACE:
            listed, signed = space._AUGMENTATION_SPACE[name]
            values = listed(levels, 32, 32)
            found |= {0.0} if values is None else {sign * float(one) for one in values for sign in (1, 1 - 2 * signed)}
    return sorted(found)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_batch_is_torchvision_image_by_image(name: str, size: tuple[int, int, int]):
    given = magnitudes(name)
    batch = images(2 * len(given), *size)
    steps = Steps(
        torch.full((len(batch), 1), OPERATIONS.index(name)), torch.tensor(given + given, dtype=torch.float64)[:, None]
    )
    expected = torch.stack([truth(one, name, value) for one, value in zip(batch, given + given, strict=True)])
    assert torch.equal(apply_steps(batch, steps), expected)


def test_operations_do_something():
    """Or the test above would be empty."""
    batch = images(30, 3, 32, 32)
    changing = {
        name for name in OPERATIONS for one in magnitudes(name) if not torch.equal(truth(batch, name, one), batch)
    }
    assert changing == {*OPERATIONS} - {"Identity"}


@pytest.mark.parametrize("settings", POLICIES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_all_steps_of_a_batch_are_torchvision_image_by_image(settings: AnyPolicy, size: tuple[int, int, int]):
    batch = images(40, *size)
    before = batch.clone()
    steps = draw_steps(settings, (40, *size[1:]), seeded(1))
    slow = []
    for image, operations, values in zip(batch, steps.operations, steps.magnitudes, strict=True):
        for operation, magnitude in zip(operations.tolist(), values.tolist(), strict=True):
            image = truth(image, OPERATIONS[operation], magnitude)
        slow.append(image)
    assert torch.equal(apply_steps(batch, steps), torch.stack(slow))
    assert torch.equal(batch, before)


@pytest.mark.parametrize("kind", LEVELS)
@pytest.mark.parametrize("size", [(32, 32), (224, 160)], ids=str)
def test_magnitudes_are_those_of_torchvision(kind: str, size: tuple[int, int]):
    space, levels = LEVELS[kind]
    for name, (listed, _) in space._AUGMENTATION_SPACE.items():
        theirs = listed(levels, *size)
        ours = [magnitude_of(name, level, levels, *size) for level in range(levels)]
        assert ours == ([0.0] * levels if theirs is None else [float(one) for one in theirs]), name


def drawn(settings: AnyPolicy, batch: int) -> list[tuple[tuple[str, float], ...]]:
    steps = draw_steps(settings, (batch, 32, 32), seeded(2))
    return [
        tuple((OPERATIONS[operation], round(magnitude, 6)) for operation, magnitude in zip(*row, strict=True))
        for row in zip(steps.operations.tolist(), steps.magnitudes.tolist(), strict=True)
    ]


def close(count: int, batch: int, probability: float) -> bool:
    """Within five standard deviations."""
    return abs(count - batch * probability) <= 5 * (batch * probability * (1 - probability)) ** 0.5


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugment_draws_every_operation_at_its_magnitude_alike(magnitude: int):
    batch, space = 20_000, v2.RandAugment._AUGMENTATION_SPACE
    counts = Counter(
        step for row in drawn(RandAugmentSettings(operations=3, magnitude=magnitude), batch) for step in row
    )
    expected: Counter[tuple[str, float]] = Counter()
    for name, (listed, signed) in space.items():
        values = listed(31, 32, 32)
        value = 0.0 if values is None else round(float(values[magnitude]), 6)
        for sign in (1, -1) if signed else (1,):
            expected[(name, sign * value)] += 1 / len(space) / (2 if signed else 1)
    assert counts.keys() == expected.keys()
    assert all(close(counts[step], 3 * batch, probability) for step, probability in expected.items())


def test_steps_of_randaugment_are_drawn_apart():
    pairs = Counter((first[0], second[0]) for first, second in drawn(RandAugmentSettings(), 50_000))
    assert len(pairs) == 14 * 14
    assert all(close(count, 50_000, 1 / 196) for count in pairs.values())


@pytest.mark.parametrize("policy", ["cifar10", "imagenet", "svhn"])
def test_autoaugment_draws_the_pairs_of_torchvision_with_their_probabilities(policy: str):
    batch = 50_000
    counts = Counter(drawn(AutoAugmentSettings(policy=policy), batch))  # type: ignore[arg-type]
    pairs = v2.AutoAugment(v2.AutoAugmentPolicy(policy))._policies
    expected: Counter[tuple[tuple[str, float], ...]] = Counter()
    for first, second in pairs:
        for one, share in outcomes(*first).items():
            for other, rest in outcomes(*second).items():
                expected[(one, other)] += share * rest / len(pairs)
    assert counts.keys() <= expected.keys()
    assert all(close(counts[row], batch, probability) for row, probability in expected.items())


def outcomes(name: str, probability: float, level: int | None) -> dict[tuple[str, float], float]:
    """What one step of a pair may be, with its probability."""
    listed, signed = v2.AutoAugment._AUGMENTATION_SPACE[name]
    values = listed(10, 32, 32)
    value = 0.0 if values is None or level is None else round(float(values[level]), 6)
    found = Counter({("Identity", 0.0): 1 - probability})
    for sign in (1, -1) if signed else (1,):
        found[(name, sign * value)] += probability / (2 if signed else 1)
    return {step: share for step, share in found.items() if share > 0}


# --- in batches


def pictures(policy: AnyPolicy | None, **augment: object):
    source = (images(64, 3, 16, 16), torch.arange(64) % 4)
    return data_from_user(source, augment=AugmentSettings(policy=policy, **augment))  # type: ignore[arg-type]


def test_a_policy_comes_after_crop_and_flip_and_before_cutout():
    from growkit.data.augment import crop, cutout, draw, flip, normalise

    data = pictures(RandAugmentSettings(), crop=2, flip=True, cutout=4)
    found, _ = next(batches(data, "train", 16, augmentation=seeded(3)))
    chance = seeded(3)
    draws = draw(data.augment, (16, 16, 16), chance)
    assert draws.window is not None and draws.mirrored is not None and draws.centre is not None
    stored = flip(crop(data.train.inputs[:16], 2, draws.window), draws.mirrored)
    stored = apply_steps(stored, draw_steps(RandAugmentSettings(), (16, 16, 16), chance))
    assert torch.equal(found, cutout(normalise(stored, data.mean, data.std), 4, draws.centre))


@pytest.mark.parametrize("settings", POLICIES, ids=str)
def test_data_stay_as_they_are_and_evaluation_sees_no_policy(settings: AnyPolicy):
    data, plain = pictures(settings), pictures(None)
    before = data.train.inputs.clone()
    augmented = torch.cat([x for x, _ in batches(data, "train", 16, augmentation=seeded())])
    assert torch.equal(data.train.inputs, before)
    seen = torch.cat([x for x, _ in batches(data, "train", 16)])
    assert torch.equal(seen, torch.cat([x for x, _ in batches(plain, "train", 16)]))
    assert not torch.equal(seen, augmented)


def test_threads_change_nothing():
    data = pictures(RandAugmentSettings(operations=4, magnitude=20))

    def passed() -> Tensor:
        return torch.cat([x for x, _ in batches(data, "train", 16, order=seeded(1), augmentation=seeded(2))])

    one = passed()
    torch.set_num_threads(2)
    try:
        assert torch.equal(passed(), one)
    finally:
        torch.set_num_threads(1)


@pytest.mark.gpu
@pytest.mark.parametrize("settings", POLICIES, ids=str)
def test_a_policy_on_the_gpu_equals_the_cpu(settings: AnyPolicy):
    batch = images(256, 3, 32, 32)
    steps = draw_steps(settings, (256, 32, 32), seeded())
    assert torch.equal(apply_steps(batch.cuda(), steps).cpu(), apply_steps(batch, steps))


# --- what cannot have one


@pytest.mark.parametrize(
    ("inputs", "found"),
    [
        (torch.rand(40, 3, 8, 8), r"torch.float32 inputs of shape \["),
        (torch.zeros(40, 4, 8, 8, dtype=torch.uint8), r"torch.uint8 inputs of shape \[.*, 4, 8, 8\]"),
    ],
    ids=["floats", "four channels"],
)
def test_a_policy_needs_bytes_of_1_or_3_channels(inputs: Tensor, found: str):
    with pytest.raises(DataError, match=rf"data\.augment\.policy needs uint8 images of 1 or 3 channels, got {found}"):
        data_from_user((inputs, torch.arange(40) % 4), augment=AugmentSettings(policy=RandAugmentSettings()))


def test_a_policy_needs_images():
    with pytest.raises(DataError, match=r"data\.augment needs images \[N, C, H, W\].*policy to null"):
        data_from_user((torch.rand(40, 8), torch.arange(40) % 4), augment=AugmentSettings(policy=RandAugmentSettings()))


def test_a_policy_without_torchvision_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchvision.transforms.v2", None)
    with pytest.raises(DataError, match=r"data\.augment\.policy needs torchvision, run `pip install torchvision`"):
        pictures(RandAugmentSettings())


def test_images_of_another_scale_are_pointed_out():
    data = load_data(DigitsSettings(augment=AugmentSettings(policy=RandAugmentSettings())))
    assert any("made for images from 0 to 255, those of 'digits' end at 16" in note for note in data.notes)
    assert pictures(RandAugmentSettings()).notes == ()
