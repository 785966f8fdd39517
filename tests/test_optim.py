"""Optimizers by name: what settings become, and what every one of them must bear."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.config import load_config
from growkit.config.train import (
    AdaBoundSettings,
    AdamSettings,
    AdamWSettings,
    AMSBoundSettings,
    AnyOptimizer,
    ASAMSettings,
    CosineRadius,
    RateRadius,
    SAMSettings,
    SGDSettings,
)
from growkit.errors import ModelError, UserInputError
from growkit.optim import ASAM, Cosine, Linear, build_optimizer


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2))


def trained(module: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> nn.Module:
    inputs = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module(inputs).square().mean()
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)  # type: ignore[arg-type]
    return module


@pytest.mark.parametrize(
    ("settings", "reference", "arguments"),
    [
        (SGDSettings(), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}),
        (
            SGDSettings(lr=0.3, momentum=0.0, nesterov=False, weight_decay=0.1),
            torch.optim.SGD,
            {"lr": 0.3, "momentum": 0.0, "nesterov": False, "weight_decay": 0.1},
        ),
        (AdamSettings(), torch.optim.Adam, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}),
        (
            AdamSettings(lr=0.02, beta1=0.5, beta2=0.7, eps=1e-3, weight_decay=0.1),
            torch.optim.Adam,
            {"lr": 0.02, "betas": (0.5, 0.7), "eps": 1e-3, "weight_decay": 0.1},
        ),
        (AdamWSettings(), torch.optim.AdamW, {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 1e-2}),
    ],
    ids=["sgd", "plain sgd", "adam", "other adam", "adamw"],
)
def test_settings_are_torchs_arguments(settings, reference, arguments):
    ours, theirs = model(), model()
    optimizer = build_optimizer(settings, ours.parameters())
    assert type(optimizer) is reference
    assert {name: optimizer.defaults[name] for name in arguments} == arguments
    trained(ours, optimizer)
    trained(theirs, reference(theirs.parameters(), fused=True, **arguments))
    assert all(map(torch.equal, ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("settings", [SGDSettings(), AdamSettings(), AdamWSettings()], ids=lambda s: s.name)
def test_optimizers_are_fused_and_agree_with_the_plain_ones(settings):
    ours, theirs = model(), model()
    optimizer = build_optimizer(settings, ours.parameters())
    assert optimizer.defaults["fused"]
    arguments = {name: value for name, value in optimizer.defaults.items() if name != "decoupled_weight_decay"}
    plain = type(optimizer)(theirs.parameters(), **{**arguments, "fused": False})
    trained(ours, optimizer)
    trained(theirs, plain)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_frozen_parameters_are_left_out():
    module = model()
    module[0].requires_grad_(False)
    optimizer = build_optimizer(SGDSettings(), module.parameters())
    assert [id(p) for group in optimizer.param_groups for p in group["params"]] == [
        id(p) for p in module[2].parameters()
    ]
    before = [p.detach().clone() for p in module[0].parameters()]
    trained(module, optimizer)
    assert all(map(torch.equal, module[0].parameters(), before))


def test_nothing_to_train_is_refused():
    with pytest.raises(ModelError, match="must have parameters to train, got none with requires_grad=True"):
        build_optimizer(SGDSettings(), model().requires_grad_(False).parameters())


def test_complex_parameters_are_trained_without_fusing():
    optimizer = build_optimizer(SGDSettings(), [nn.Parameter(torch.zeros(2, dtype=torch.complex64))])
    assert not optimizer.defaults["fused"]


# --- the contract of the family

FAMILY: list[AnyOptimizer] = [
    SGDSettings(lr=0.05),
    AdamSettings(lr=0.01),
    AdamWSettings(lr=0.01),
    AdaBoundSettings(lr=0.01),
    AMSBoundSettings(lr=0.01, decoupled=True, weight_decay=0.01),
    SAMSettings(base=SGDSettings(lr=0.05)),
    SAMSettings(norm="inf", rho=0.01, interval=2, clip=1.0, schedule=CosineRadius(), base=AdamSettings(lr=0.01)),
    ASAMSettings(rho=0.2, by="filter", schedule=RateRadius(), base=AdaBoundSettings(lr=0.01)),
]
every_optimizer = pytest.mark.parametrize("settings", FAMILY, ids=lambda settings: settings.name)


def made(settings: AnyOptimizer, module: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(settings, module.parameters(), model=module, total_steps=40)


def memory_of(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    return [optimizer.state[parameter] for group in optimizer.param_groups for parameter in group["params"]]


@every_optimizer
def test_it_descends_and_returns_the_loss(settings: AnyOptimizer):
    module = model()
    optimizer, inputs = made(settings, module), torch.randn(8, 4)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = module(inputs).square().mean()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(40)]  # type: ignore[arg-type, union-attr]
    assert losses[-1] < 0.5 * losses[0]


@every_optimizer
def test_it_goes_on_from_its_saved_state_bit_for_bit(settings: AnyOptimizer):
    whole, parts = model(), model()
    trained(whole, made(settings, whole), 12)
    optimizer = made(settings, parts)
    trained(parts, optimizer, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = made(settings, parts)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    trained(parts, fresh, 7)
    assert all(map(torch.equal, whole.parameters(), parts.parameters()))


@every_optimizer
def test_a_copy_goes_on_alike(settings: AnyOptimizer):
    module = model()
    optimizer = made(settings, module)
    trained(module, optimizer)
    twin, other = copy.deepcopy((module, optimizer))
    trained(module, optimizer)
    trained(twin, other)
    assert all(map(torch.equal, module.parameters(), twin.parameters()))


@every_optimizer
def test_its_state_grows_with_the_model_and_it_trains_on(settings: AnyOptimizer):
    module, inputs = model(), torch.randn(8, 4)
    optimizer = made(settings, module)
    trained(module, optimizer)
    weight = module[0].weight
    before = {k: v.clone() for k, v in optimizer.state[weight].items() if isinstance(v, Tensor) and v.dim()}
    growkit.widen(module, growkit.find_sites(module, inputs)[0], 3, optimizer=optimizer)
    for key, old in before.items():
        new = optimizer.state[weight][key]
        assert torch.equal(new[:5], old) and not new[5:].any()
    trained(module, optimizer, 20)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


@every_optimizer
def test_a_group_that_joins_late_trains(settings: AnyOptimizer):
    module, late = model(), nn.Parameter(torch.ones(3))
    optimizer = made(settings, module)
    trained(module, optimizer)
    optimizer.add_param_group({"params": [late]})
    optimizer.step(lambda: late.sum().backward() or late.sum())  # type: ignore[arg-type]
    assert (late < 1.0).all()


def test_settings_of_sam_are_its_arguments():
    module = model()
    optimizer = made(ASAMSettings(adaptive="all", eta=0.2, norm="inf", schedule=CosineRadius(final=0.5)), module)
    assert isinstance(optimizer, ASAM) and isinstance(optimizer.base, torch.optim.SGD)
    group = optimizer.param_groups[0]
    assert (group["adaptive"], group["eta"], group["rho"]) == ("all", 0.2, 0.5)
    assert optimizer.neighbourhood.norm == float("inf")
    assert optimizer.neighbourhood.schedule == Cosine(40, 0.5) and optimizer.model is module


@pytest.mark.parametrize(("schedule", "halfway"), [(Linear(10, 0.2), 0.6), (Cosine(10, 0.2), 0.6)])
def test_radii_fall_from_one_to_their_end(schedule, halfway):
    assert [schedule(0), schedule(5), schedule(10), schedule(99)] == pytest.approx([1.0, halfway, 0.2, 0.2])


def test_settings_that_do_not_fit_the_model_name_their_place():
    with pytest.raises(UserInputError, match=r"train.optimizer: SAM: moved must choose .*, got '9.\*'"):
        made(SAMSettings(moved=["9.*"]), model())


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ("{name: asam, adaptive: false}", "optimizer.adaptive: must be one of true, all, got false"),
        ("{name: adabound, decoupled: maybe}", "optimizer.decoupled: must be one of false, true, fixed, got 'maybe'"),
        ("{name: amsbound, paper: book}", "optimizer.paper: must be one of false, true, slides, got 'book'"),
    ],
)
def test_a_choice_in_a_file_names_all_there_are(given, rule, tmp_path):
    (tmp_path / "c.yaml").write_text(f"train: {{optimizer: {given}}}\n")
    with pytest.raises(UserInputError, match=rule):
        load_config(tmp_path / "c.yaml")
