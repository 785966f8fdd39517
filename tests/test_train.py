from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from growkit.config.data import AugmentSettings, RandAugmentSettings, SplitSettings
from growkit.config.train import AdamSettings, AutoLossSettings, CosineSettings, SGDSettings, TrainSettings
from growkit.data import Data, batches, data_from_user
from growkit.device import ComputePolicy
from growkit.errors import DataError, TrainingError
from growkit.evaluation import evaluate
from growkit.losses import build_loss
from growkit.metrics import Evaluation
from growkit.optim import build_optimizer
from growkit.rng import Streams
from growkit.train import Trainer

FP32 = ComputePolicy("cpu", "fp32", False, "test")
BF16 = ComputePolicy("cpu", "bf16", True, "test")
SPLIT = SplitSettings.model_validate({"test": 0.2, "validate": 0.2, "diagnose": 0.0, "accept": 0.0})
SETTINGS = TrainSettings(
    epochs=3, batch_size=16, optimizer=SGDSettings(lr=0.05), schedule=CosineSettings(warmup_epochs=0.7)
)


@pytest.fixture(scope="module")
def images() -> Data:
    """64 training images in 4 batches of 16; 3 classes; cropped, flipped and cut out."""
    source = torch.Generator().manual_seed(0)
    inputs = torch.randint(0, 256, (100, 1, 6, 6), generator=source, dtype=torch.uint8)
    targets = torch.arange(100) % 3
    augment = AugmentSettings(crop=1, flip=True, cutout=2)
    return data_from_user((inputs, targets), split=SPLIT, augment=augment)


@pytest.fixture(scope="module")
def values() -> Data:
    """Two targets of regression per sample."""
    source = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 4, generator=source)
    return data_from_user((inputs, inputs[:, :2].sin()), split=SPLIT)


def network(dropout: float = 0.3) -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def regressor() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))


def trainer(
    model: nn.Module,
    data: Data,
    settings: TrainSettings = SETTINGS,
    *,
    steps: int = 12,
    compute: ComputePolicy = FP32,
    seed: int = 0,
) -> Trainer:
    optimizer = build_optimizer(settings.optimizer, model.parameters())
    return Trainer(compute.place(model), optimizer, data, settings, compute, Streams(seed), steps)


def never(step: int) -> bool:
    return False


def at(*steps: int) -> Any:
    return lambda step: step in steps


def same(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# --- the stage


def test_a_stage_is_the_loop_one_would_write_by_hand(images: Data):
    model, reference = network(), network()
    trainer(model, images).train_stage(stop=never)

    streams, step = Streams(0), 0
    order, augmentation = streams.generator("order"), streams.generator("augmentation")
    torch.manual_seed(streams.seed_of("dropout"))
    optimizer = torch.optim.SGD(
        reference.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4, fused=True
    )
    reference.train()
    for _ in range(3):
        for inputs, targets in batches(images, "train", 16, order=order, augmentation=augmentation):
            warmup = min(1.0, (step + 1) / (0.7 * 4))
            optimizer.param_groups[0]["lr"] = 0.05 * (warmup * 0.5 * (1 + math.cos(math.pi * step / 12)))
            optimizer.zero_grad()
            F.cross_entropy(reference(inputs), targets).backward()
            optimizer.step()
            step += 1

    assert step == 12
    assert same(model, reference)


@pytest.mark.parametrize("cuts", [(4,), (5,), (1, 2, 7, 11)], ids=["at an epoch", "mid-epoch", "four times"])
def test_going_on_after_a_stop_is_as_if_there_had_been_none(images: Data, cuts: tuple[int, ...]):
    whole, parts = trainer(network(), images), trainer(network(), images)
    means: tuple[list[Evaluation], list[Evaluation]] = ([], [])
    whole.train_stage(stop=never, on_epoch=means[0].append)
    for stage in range(len(cuts) + 1):
        parts.train_stage(stop=at(*cuts), on_epoch=means[1].append)
        assert parts.step == (*cuts, 12)[stage]
        torch.rand(7)  # chance used by others between the stages is not the trainer's
        evaluate(parts.model, images, "validate", FP32)
    assert parts.finished
    assert same(whole.model, parts.model)
    assert means[0] == means[1]


def test_training_leaves_the_global_random_state_alone(images: Data):
    model = network()
    before = torch.get_rng_state()
    trainer(model, images).train_stage(stop=never)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_only_dropout_draws_from_the_dropout_stream(images: Data, dropout: float):
    one, other = network(dropout), network(dropout)
    trainer(one, images).train_stage(stop=never)
    run = trainer(other, images)
    run.streams = AnotherDropout(0)
    run.train_stage(stop=never)
    assert same(one, other) == (dropout == 0.0)


class AnotherDropout(Streams):
    def seed_of(self, name: str) -> int:
        return 1 if name == "dropout" else super().seed_of(name)


def test_stop_is_asked_after_every_step_and_a_finished_trainer_does_nothing(images: Data):
    asked: list[int] = []
    run = trainer(network(), images, steps=5)
    run.train_stage(stop=lambda step: bool(asked.append(step)))
    assert asked == [1, 2, 3, 4, 5]
    weights = [p.detach().clone() for p in run.model.parameters()]
    run.train_stage(stop=lambda step: pytest.fail("a step too many"))
    assert run.finished and run.step == 5
    assert all(map(torch.equal, weights, run.model.parameters()))


def test_on_step_sees_the_gradients_of_that_step(images: Data):
    run = trainer(network(), images, steps=3)
    seen: list[tuple[int, int, bool]] = []
    run.train_stage(
        stop=never,
        on_step=lambda step: seen.append(
            (step, run.last_batch_size, all(p.grad is not None for p in run.model.parameters()))
        ),
    )
    assert seen == [(1, 16, True), (2, 16, True), (3, 16, True)]


def test_the_rate_follows_the_schedule_for_every_group(images: Data):
    model = network()
    groups = [{"params": list(model[0].parameters()), "lr": 0.5}, {"params": list(model[5].parameters())}]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    settings = SETTINGS.model_copy(update={"schedule": CosineSettings()})
    run = Trainer(model, optimizer, images, settings, FP32, Streams(0), 4)
    rates: list[list[float]] = []
    run.train_stage(stop=never, on_step=lambda step: rates.append([group["lr"] for group in optimizer.param_groups]))
    cosine = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert rates == [[0.5 * factor, 0.1 * factor] for factor in cosine]
    assert run.learning_rate == 0.5 * cosine[-1]


# --- epochs


def test_the_last_epoch_may_be_partial(images: Data):
    run = trainer(network(), images, steps=6)
    epochs: list[tuple[int, int, int]] = []
    run.train_stage(stop=never, on_epoch=lambda result: epochs.append((run.epoch, run.step, result.samples)))
    assert epochs == [(1, 4, 64), (2, 6, 32)]


def test_a_batch_that_is_not_full_counts_by_its_samples(images: Data):
    settings = SETTINGS.model_copy(update={"batch_size": 24})
    run = trainer(network(), images, settings, steps=3)
    sizes: list[int] = []
    results: list[Evaluation] = []
    run.train_stage(stop=never, on_step=lambda step: sizes.append(run.last_batch_size), on_epoch=results.append)
    assert sizes == [24, 24, 16]
    assert results[0].samples == 64


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_epoch_means_are_means_over_samples(images: Data, smoothing: float):
    """With a rate near 0 the weights stand still, so that the mean can be computed afterwards."""
    still = TrainSettings(
        batch_size=24,
        optimizer=SGDSettings(lr=1e-30, weight_decay=0.0),
        label_smoothing=smoothing,
    )
    model = network(dropout=0.0)
    run = trainer(model, images, still, steps=3)
    results: list[Evaluation] = []
    run.train_stage(stop=never, on_epoch=results.append)

    streams = Streams(0)
    losses, correct = [], []
    for inputs, targets in batches(
        images, "train", 24, order=streams.generator("order"), augmentation=streams.generator("augmentation")
    ):
        outputs = model(inputs).detach()
        losses.append(F.cross_entropy(outputs, targets, reduction="none", label_smoothing=smoothing))
        correct.append(outputs.argmax(1) == targets)
    assert results[0].loss == pytest.approx(float(torch.cat(losses).double().mean()), rel=1e-6)
    assert results[0].accuracy == float(torch.cat(correct).double().mean())


def test_an_optimizer_that_asks_twice_is_measured_at_the_weights_it_began_with(values: Data):
    class Twice(torch.optim.SGD):
        def step(self, closure=None):  # type: ignore[override]
            first = closure()
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.add_(1e3)
            closure()
            return first

    model = regressor()
    settings = TrainSettings(batch_size=64)
    run = Trainer(model, Twice(model.parameters(), lr=0.1), values, settings, FP32, Streams(0), 1)
    expected = evaluate(model, values, "train", FP32)
    results: list[Evaluation] = []
    run.train_stage(stop=never, on_epoch=results.append)
    assert expected is not None and results[0].loss == pytest.approx(expected.loss, rel=1e-6)


def test_regression_trains_on_the_mean_squared_error(values: Data):
    settings = TrainSettings(epochs=30, batch_size=8, optimizer=AdamSettings(lr=0.01))
    run = trainer(regressor(), values, settings, steps=120)
    results: list[Evaluation] = []
    before = evaluate(run.model, values, "test", FP32)
    run.train_stage(stop=never, on_epoch=results.append)
    after = evaluate(run.model, values, "test", FP32)
    assert all(result.accuracy is None for result in results)
    assert before is not None and after is not None
    assert after.accuracy is None and after.loss < before.loss / 2


# --- what goes wrong


def broken(data: Data) -> Trainer:
    settings = TrainSettings(batch_size=16, optimizer=SGDSettings(lr=1e20))
    return trainer(network(), data, settings, steps=12)


def test_a_loss_that_is_not_finite_ends_training_with_a_remedy(images: Data):
    message = r"loss must stay finite, got nan in epoch 1 \(by step 4\); lower train.optimizer.lr, or raise train.sch"
    with pytest.raises(TrainingError, match=message):
        broken(images).train_stage(stop=never)


def test_a_stage_does_not_end_on_a_loss_that_is_not_finite(images: Data):
    """What comes next would be growth, measured on weights that are lost."""
    with pytest.raises(TrainingError, match=r"must stay finite, got nan in epoch 1 \(by step 3\)"):
        broken(images).train_stage(stop=at(3))


# --- no waiting for the device


class Operators(TorchDispatchMode):
    """Counts the operators that make the host wait for a device."""

    WAITING = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "equal", "masked_select", "unique")

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._overloadpacket.__name__ in self.WAITING:
            self.waits.append(func._overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("compute", [FP32, BF16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("optimizer", [SGDSettings(), AdamSettings()], ids=["sgd", "adam"])
def test_a_step_never_waits_for_the_device(images: Data, compute: ComputePolicy, optimizer):
    settings = TrainSettings(batch_size=16, optimizer=optimizer)
    run = trainer(network(), images, settings, compute=compute)
    run.train_stage(stop=at(1))
    with Operators() as operators:
        while run.step < 3:
            run._one_step(*run._next_batch())
    assert operators.waits == []


def test_a_step_on_mixed_images_under_a_policy_never_waits(images: Data):
    augment = AugmentSettings(policy=RandAugmentSettings(), cutout=2, mixup=0.2)
    data = data_from_user((images.train.inputs, images.train.targets), split=SPLIT, augment=augment)
    run = trainer(network(), data)
    run.train_stage(stop=at(1))
    with Operators() as operators:
        while run.step < 3:
            run._one_step(*run._next_batch())
    assert operators.waits == []


def test_the_count_of_waits_would_see_one():
    with Operators() as operators:
        float(torch.ones(()))
    assert operators.waits == ["_local_scalar_dense"]


def test_a_step_needs_no_value_on_the_host(images: Data):
    """The meta device has shapes and no values: whatever asks for one fails there."""
    model = network().to("meta")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    run = Trainer(model, optimizer, images.to("meta"), SETTINGS, FP32, Streams(0), 12)
    for _ in range(5):  # past the end of an epoch of 4 steps
        run._one_step(*run._next_batch())
    assert run.step == 5
    with pytest.raises(NotImplementedError, match="meta"):
        run._check_finite()


# --- evaluation


@pytest.mark.parametrize("batch_size", [1000, 7])
def test_evaluation_is_a_direct_computation(images: Data, batch_size: int):
    model = network()
    found = evaluate(model, images, "test", FP32, batch_size)
    model.eval()
    ((inputs, targets),) = batches(images, "test", 1000)
    outputs = model(inputs).detach()
    assert found is not None and found.samples == len(targets) == 20
    assert found.loss == pytest.approx(float(F.cross_entropy(outputs.double(), targets)), rel=1e-6)
    assert found.accuracy == float((outputs.argmax(1) == targets).double().mean())


def test_evaluation_knows_no_label_smoothing(images: Data):
    settings = SETTINGS.model_copy(update={"label_smoothing": 0.5})
    run = trainer(network(), images, settings)
    outputs, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert torch.equal(run.loss(outputs, targets), F.cross_entropy(outputs, targets, label_smoothing=0.5))
    assert torch.equal(
        build_loss(AutoLossSettings(), "classification")(outputs, targets), F.cross_entropy(outputs, targets)
    )


def test_an_empty_split_has_no_evaluation(images: Data):
    assert evaluate(network(), images, "accept", FP32) is None


def test_an_unknown_split_is_named(images: Data):
    with pytest.raises(DataError, match="a split must be one of train, .* got 'tests'"):
        evaluate(network(), images, "tests", FP32)


def test_evaluation_leaves_modes_and_chance_alone(images: Data):
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    model = nn.Sequential(network(), Noisy()).train()
    model[0][1].eval()  # a frozen normaliser in a model that trains
    modes = [module.training for module in model.modules()]
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.manual_seed(3)
    chance = torch.get_rng_state()
    evaluate(model, images, "test", FP32)
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), chance)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert torch.is_grad_enabled()


def test_evaluation_puts_modes_back_after_an_error(images: Data):
    model = nn.Sequential(nn.Flatten(), nn.Linear(5, 3)).train()
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        evaluate(model, images, "test", FP32)
    assert all(module.training for module in model.modules())


def test_bf16_evaluation_takes_the_loss_in_fp32(images: Data):
    found, exact = (evaluate(network(), images, "test", compute) for compute in (BF16, FP32))
    assert found is not None and exact is not None
    assert found.loss == pytest.approx(exact.loss, rel=0.02)
    assert found.loss != exact.loss
