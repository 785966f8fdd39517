"""mixup: torchvision's MixUp and a loop in float64 are the truth."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from data_cases import seeded
from torch import Tensor, nn
from torchvision.transforms import v2

from growkit.config.data import AugmentSettings, SplitSettings
from growkit.config.train import AutoLossSettings, SAMSettings, SGDSettings, TrainSettings
from growkit.data import Data, batches, data_from_user
from growkit.data.mixup import Mixture, class_shares, draw_mixture
from growkit.device import ComputePolicy
from growkit.errors import DataError
from growkit.evaluation import evaluate
from growkit.losses import build_loss
from growkit.metrics import Evaluation
from growkit.optim import build_optimizer
from growkit.rng import Streams
from growkit.train import Trainer

FP32 = ComputePolicy("cpu", "fp32", False, "test")
SPLIT = SplitSettings.model_validate({"test": 0.2, "validate": 0.2, "diagnose": 0.0, "accept": 0.0})
CLASSES = 5


def images(**augment: Any) -> Data:
    inputs = torch.randint(0, 256, (100, 1, 6, 6), generator=seeded(), dtype=torch.uint8)
    return data_from_user((inputs, torch.arange(100) % CLASSES), split=SPLIT, augment=AugmentSettings(**augment))


def values(mixup: float) -> Data:
    inputs = torch.randn(50, 4, generator=seeded())
    return data_from_user((inputs, inputs[:, :2].sin()), split=SPLIT, augment=AugmentSettings(mixup=mixup))


def network() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, CLASSES))


def mixed_batch(data: Data, seed: int = 1) -> tuple[Tensor, Tensor]:
    return next(batches(data, "train", 16, augmentation=seeded(seed)))


# --- the mixture


def test_a_batch_is_mixed_as_torchvision_mixes_it(monkeypatch: pytest.MonkeyPatch):
    """Which pairs each sample with the one before it."""
    inputs, targets = torch.randn(16, 3, 4, 4, generator=seeded()), torch.arange(16) % CLASSES
    theirs = v2.MixUp(num_classes=CLASSES)
    monkeypatch.setattr(theirs, "make_params", lambda flat_inputs: {"lam": 0.3})
    expected = theirs(inputs, targets)
    mixture = Mixture(0.3, torch.arange(16).roll(1))
    assert torch.equal(mixture.of(inputs), expected[0])
    assert torch.equal(mixture.of(class_shares(targets, CLASSES)), expected[1])


def test_a_batch_is_mixed_after_all_other_augmentation():
    chance = {"crop": 1, "flip": True, "cutout": 2}
    plain, generator = images(**chance), seeded(1)
    inputs, classes = next(batches(plain, "train", 16, augmentation=generator))
    mixture = draw_mixture(0.4, 16, generator)  # the stream goes on after the draws of the others
    found = mixed_batch(images(**chance, mixup=0.4))
    assert torch.equal(found[0], mixture.of(inputs))
    assert torch.equal(found[1], mixture.of(class_shares(classes, CLASSES)))
    assert found[1].shape == (16, CLASSES) and torch.allclose(found[1].sum(1), torch.ones(16))


@pytest.mark.parametrize("alpha", [0.2, 1.0, 8.0])
def test_shares_have_the_moments_of_their_beta_and_partners_are_drawn_alike(alpha: float):
    generator = seeded(3)
    draws = [draw_mixture(alpha, 3, generator) for _ in range(6000)]
    shares = torch.tensor([one.share for one in draws], dtype=torch.float64)
    variance = 1 / (4 * (2 * alpha + 1))
    fourth = variance * (3 / 4 / (2 * alpha + 3)) if alpha else 0.0  # of Beta(a, a): kurtosis 3 (2a + 1) / (2a + 3)
    assert abs(float(shares.mean()) - 0.5) < 5 * (variance / 6000) ** 0.5
    assert abs(float(shares.var()) - variance) < 5 * ((fourth - variance**2) / 6000) ** 0.5
    orders = torch.tensor([one.partner.tolist() for one in draws]) @ torch.tensor([9, 3, 1])
    counts = orders.unique(return_counts=True)[1]
    assert len(counts) == 6 and all(abs(int(one) - 1000) < 5 * (6000 * 5 / 36) ** 0.5 for one in counts)


def test_off_draws_nothing_and_keeps_classes():
    generator = seeded(1)
    before = generator.get_state()
    _, targets = next(batches(images(), "train", 16, augmentation=generator))
    assert targets.dtype == torch.int64 and torch.equal(generator.get_state(), before)


def test_values_are_mixed_as_inputs_are():
    data, mixture = values(0.4), draw_mixture(0.4, 16, seeded(1))
    inputs, targets = mixed_batch(data)
    assert torch.equal(inputs, mixture.of(data.train.inputs[:16]))
    assert torch.equal(targets, mixture.of(data.train.targets[:16]))
    assert not torch.equal(inputs, data.train.inputs[:16])


def test_data_stay_as_they_are_and_evaluation_is_never_mixed():
    data, plain = images(mixup=1.0), images()
    before = data.train.inputs.clone(), data.train.targets.clone()
    mixed_batch(data)
    assert torch.equal(data.train.inputs, before[0]) and torch.equal(data.train.targets, before[1])
    for split in ("train", "validate", "test"):
        assert evaluate(network(), data, split, FP32) == evaluate(network(), plain, split, FP32)


# --- the loss


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_the_loop_of_the_paper_in_float64(smoothing: float):
    """share * CE(own class) + (1 - share) * CE(partner's class), label smoothing in each."""
    generator = seeded(4)
    outputs = 3 * torch.randn(16, CLASSES, generator=generator)
    classes = torch.randint(0, CLASSES, (16,), generator=generator)
    mixture = draw_mixture(0.7, 16, generator)

    def entropy(row: list[float], label: int) -> float:
        total = math.log(sum(math.exp(one) for one in row))
        wanted = [(1 - smoothing) * (k == label) + smoothing / CLASSES for k in range(CLASSES)]
        return -sum(weight * (one - total) for weight, one in zip(wanted, row, strict=True))

    slow = 0.0
    for row, label, partner in zip(outputs.double().tolist(), classes.tolist(), mixture.partner.tolist(), strict=True):
        slow += mixture.share * entropy(row, label) + (1 - mixture.share) * entropy(row, int(classes[partner]))
    loss = build_loss(AutoLossSettings(), "classification", smoothing)(
        outputs, mixture.of(class_shares(classes, CLASSES))
    )
    assert float(loss) == pytest.approx(slow / 16, rel=1e-6)


def test_shares_of_one_class_are_that_class():
    outputs, classes = torch.randn(16, CLASSES, generator=seeded()), torch.arange(16) % CLASSES
    loss = build_loss(AutoLossSettings(), "classification", 0.1)
    torch.testing.assert_close(loss(outputs, class_shares(classes, CLASSES)), loss(outputs, classes))


# --- training


def trained(data: Data, settings: TrainSettings, model: nn.Module | None = None) -> tuple[nn.Module, list[Evaluation]]:
    model = network() if model is None else model
    optimizer = build_optimizer(settings.optimizer, model.parameters(), model=model, total_steps=8)
    results: list[Evaluation] = []
    run = Trainer(model, optimizer, data, settings, FP32, Streams(0), 8)
    run.train_stage(stop=lambda step: False, on_epoch=results.append)
    return model, results


def test_training_is_the_loop_one_would_write_by_hand():
    data, reference = images(mixup=0.3, flip=True), network()
    model, _ = trained(data, TrainSettings(batch_size=16, optimizer=SGDSettings(lr=0.05), schedule="constant"))
    streams = Streams(0)
    order, augmentation = streams.generator("order"), streams.generator("augmentation")
    optimizer = torch.optim.SGD(
        reference.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    for _ in range(2):
        for inputs, shares in batches(data, "train", 16, order=order, augmentation=augmentation):
            optimizer.zero_grad()
            F.cross_entropy(reference(inputs), shares).backward()
            optimizer.step()
    assert all(map(torch.equal, model.parameters(), reference.parameters()))


def test_accuracy_is_that_of_the_class_with_the_larger_share():
    """With a rate near 0 the weights stand still, so that it can be computed afterwards."""
    data = images(mixup=0.3)
    still = TrainSettings(batch_size=20, optimizer=SGDSettings(lr=1e-30, weight_decay=0.0))
    model, results = trained(data, still)
    streams = Streams(0)
    order, augmentation = streams.generator("order"), streams.generator("augmentation")
    right, losses = [], []
    for inputs, shares in batches(data, "train", 20, order=order, augmentation=augmentation):
        outputs = model(inputs).detach()
        right.append(outputs.argmax(1) == shares.argmax(1))
        losses.append(F.cross_entropy(outputs, shares, reduction="none"))
    assert results[0].accuracy == float(torch.cat(right).double().mean())
    assert results[0].loss == pytest.approx(float(torch.cat(losses).double().mean()), rel=1e-6)


def test_sam_slices_shares_as_it_slices_samples():
    """Parts of the whole batch are the batch."""
    data = images(mixup=0.3)
    base = SGDSettings(lr=0.05)
    whole, _ = trained(data, TrainSettings(batch_size=16, optimizer=SAMSettings(base=base)))
    one_part, _ = trained(data, TrainSettings(batch_size=16, optimizer=SAMSettings(base=base, m=16)))
    parts, results = trained(data, TrainSettings(batch_size=16, optimizer=SAMSettings(base=base, m=5)))
    assert all(map(torch.equal, whole.parameters(), one_part.parameters()))
    assert not all(map(torch.equal, whole.parameters(), parts.parameters()))
    assert results[0].samples == len(data.train)


def test_regression_trains_on_mixed_values():
    model = nn.Linear(4, 2)
    _, results = trained(values(0.4), TrainSettings(batch_size=10, optimizer=SGDSettings(lr=0.1)), model)
    assert results[-1].accuracy is None and results[-1].loss < results[0].loss


# --- what cannot be mixed


@pytest.mark.parametrize("classes", [True, False], ids=["classes of sequences", "tokens"])
def test_tokens_have_no_mean(classes: bool):
    tokens = torch.randint(0, 7, (40, 6), generator=seeded())
    targets = torch.arange(40) % 3 if classes else tokens
    with pytest.raises(
        DataError, match=r"data\.augment\.mixup needs images or floats, which have means, got torch.int64"
    ):
        data_from_user((tokens, targets), augment=AugmentSettings(mixup=0.2))
