from __future__ import annotations

import sys
import textwrap
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from growkit.config.models import (
    CallableModelSettings,
    DensenetSettings,
    MlpSettings,
    MobilenetSettings,
    ModelSettings,
    ResnetSettings,
    VggSettings,
    VitSettings,
    WrnSettings,
)
from growkit.errors import ModelError
from growkit.models import MLP, VGG, ReLU, WideResNet, build_model, check_output, make_activation
from growkit.rng import isolated

CIFAR, DIGITS = (3, 32, 32), (1, 8, 8)


def build(settings: ModelSettings, input_shape: tuple[int, ...] = DIGITS, num_outputs: int = 10, seed: int = 0):
    with isolated(seed):
        return build_model(settings, input_shape, num_outputs)


def num_params(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# --- activations


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_relu_has_slope_1_at_0_where_torch_has_0(dtype: torch.dtype):
    x = torch.tensor([-1.0, 0.0, 2.0], dtype=dtype, requires_grad=True)
    assert torch.autograd.grad(ReLU()(x).sum(), x)[0].tolist() == [0, 1, 1]
    assert torch.autograd.grad(x.relu().sum(), x)[0].tolist() == [0, 0, 1]
    assert torch.equal(ReLU()(x), x.relu())


def test_relu_has_slope_1_at_0_even_where_the_processor_flushes_tiny_numbers():
    x = torch.zeros(3, requires_grad=True)
    torch.set_flush_denormal(True)
    try:
        assert torch.autograd.grad(ReLU()(x).sum(), x)[0].tolist() == [1, 1, 1]
    finally:
        torch.set_flush_denormal(False)


def test_relu_is_one_operator_of_an_exported_graph():
    exported = torch.export.export(nn.Sequential(ReLU()), (torch.randn(2, 3),), strict=False)
    called = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert called == [torch.ops.aten.threshold.default]


def test_relu_keeps_its_slope_under_forward_mode_and_twice_backward():
    x = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    assert torch.func.jvp(ReLU(), (x,), (torch.ones(3),))[1].tolist() == [0, 1, 1]
    slope = torch.autograd.grad(ReLU()(x).square().sum(), x, create_graph=True)[0]
    assert torch.autograd.grad(slope.sum(), x)[0].tolist() == [0, 2, 2]


def test_relu_hides_no_nan():
    assert ReLU()(torch.tensor([float("nan"), float("-inf")])).isnan().tolist() == [True, False]


@pytest.mark.parametrize("name", ["relu", "gelu", "silu", "tanh", "elu", "selu", "softplus", "sigmoid"])
def test_every_activation_is_torchs(name: str):
    x = torch.linspace(-3, 3, 7)
    reference = getattr(nn.functional, name) if name not in ("tanh", "sigmoid") else getattr(torch, name)
    assert torch.equal(make_activation(name)(x), reference(x))  # type: ignore[arg-type]


# --- the seed models

EVERY_MODEL = [
    MlpSettings(),
    MlpSettings(hidden=(5,), activation="gelu", norm="batchnorm", bias=False),
    VggSettings(width=0.05),
    VggSettings(width=0.05, norm="batchnorm"),
    WrnSettings(depth=10),
    WrnSettings(depth=10, width=2, block_width=0.25, norm="batchnorm"),
    ResnetSettings(),
    ResnetSettings(depth=18, width=0.1, stem="imagenet"),
    ResnetSettings(depth=50, width=0.1),
    MobilenetSettings(width=0.1),
    DensenetSettings(depth=16, growth_rate=4),
    VitSettings(width=0.1, patch=1, depth=2),
]


@pytest.mark.parametrize("shape", [CIFAR, DIGITS, (2, 7, 5)], ids=str)
@pytest.mark.parametrize("settings", EVERY_MODEL, ids=str)
def test_every_model_takes_every_image(settings: ModelSettings, shape: tuple[int, ...]):
    model = build(settings, shape, 7)
    assert model(torch.randn(3, *shape)).shape == (3, 7)


@pytest.mark.parametrize("settings", EVERY_MODEL, ids=str)
def test_every_model_is_its_seed(settings: ModelSettings):
    one, two, other = (build(settings, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert not all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("settings", EVERY_MODEL, ids=str)
def test_every_parameter_learns(settings: ModelSettings):
    model = build(settings, CIFAR)
    model(torch.randn(4, *CIFAR)).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("settings", [WrnSettings(depth=16), VggSettings()], ids=str)
def test_outputs_start_at_order_one(settings: ModelSettings):
    outputs = build(settings, CIFAR)(torch.randn(16, *CIFAR, generator=torch.Generator().manual_seed(0)))
    assert 0.05 < outputs.std() < 5


def test_mlp_has_the_parameters_of_its_formula():
    assert num_params(build(MlpSettings(hidden=(5, 6)))) == 64 * 5 + 5 + 5 * 6 + 6 + 6 * 10 + 10
    assert num_params(build(MlpSettings(hidden=(5,), bias=False))) == 64 * 5 + 5 * 10
    assert num_params(build(MlpSettings(hidden=(5,), bias=False, norm="batchnorm"))) == 64 * 5 + 2 * 5 + 5 * 10


def test_vgg_has_the_parameters_of_its_formula():
    widths = (3, 64, 128, 256, 256, 512, 512, 512, 512, 10)
    formula = 9 * sum(fan_in * fan_out for fan_in, fan_out in pairwise(widths))
    assert num_params(build(VggSettings(), CIFAR)) == formula


def convs_of(model: VGG) -> list[nn.Conv2d]:
    return [layer.conv for layer in model.layers]


def test_vgg_leaves_one_pixel_of_a_cifar_image():
    model = build(VggSettings(width=0.1), CIFAR)
    assert isinstance(model, VGG)
    assert [conv.stride[0] for conv in convs_of(model)] == [1, 2, 2, 1, 2, 1, 2, 1]
    x = torch.randn(1, *CIFAR)
    for conv in convs_of(model):
        x = conv(x)
    assert x.shape[2:] == (2, 2) and model.head(x).shape[2:] == (1, 1)


def wrn_formula(depth: int, width: int, channels: int, outputs: int, share: float = 1.0, norm: bool = False) -> int:
    total, fan_in = channels * 16 * 9, 16
    for fan_out in (16 * width, 32 * width, 64 * width):
        inner = max(1, round(fan_out * share))
        for block in range((depth - 4) // 6):
            total += 2 * fan_in + 9 * fan_in * inner + 9 * inner * fan_out + 2 * inner * norm
            projects = fan_in != fan_out or (block == 0 and fan_out != 16 * width)
            total += fan_in * fan_out * projects
            fan_in = fan_out
    return total + 2 * fan_in + fan_in * outputs + outputs


@pytest.mark.parametrize("share", [1.0, 0.25, 0.01])
@pytest.mark.parametrize("norm", ["none", "batchnorm"])
@pytest.mark.parametrize(("depth", "width"), [(16, 1), (28, 1), (10, 4)])
def test_wrn_has_the_parameters_of_its_formula(depth: int, width: int, norm, share: float):
    settings = WrnSettings(depth=depth, width=width, norm=norm, block_width=share)
    assert num_params(build(settings, CIFAR)) == wrn_formula(depth, width, 3, 10, share, norm == "batchnorm")


@pytest.mark.parametrize(("depth", "width", "millions"), [(16, 1, 0.17), (28, 1, 0.37), (40, 1, 0.56), (16, 4, 2.75)])
def test_wrn_has_the_published_size(depth: int, width: int, millions: float):
    with torch.device("meta"):
        model = build_model(WrnSettings(depth=depth, width=width, norm="batchnorm"), CIFAR, 10)
    assert num_params(model) / 1e6 == pytest.approx(millions, abs=0.01)


def test_wrn_28_has_12_blocks_and_reaches_8x8():
    model = build(WrnSettings(depth=28), CIFAR)
    assert isinstance(model, WideResNet) and len(model.blocks) == 12
    x = model.stem(torch.randn(1, *CIFAR))
    for block in model.blocks:
        x = block(x)
    assert x.shape == (1, 64, 8, 8)


def test_a_narrow_wrn_differs_from_the_full_one_inside_its_blocks_only():
    settings = WrnSettings(depth=16, block_width=0.25, norm="batchnorm")
    narrow, full = (dict(build(s).named_parameters()) for s in (settings, settings.full()))
    changed = {name.split(".", 2)[2] for name in narrow if narrow[name].shape != full[name].shape}
    assert changed == {"conv1.weight", "norm2.weight", "norm2.bias", "conv2.weight"}
    assert narrow["blocks.0.conv1.weight"].shape == (4, 16, 3, 3)


def test_a_narrow_vgg_keeps_its_outputs():
    model = build(VggSettings(width=0.25))
    assert isinstance(model, VGG)
    assert [conv.out_channels for conv in convs_of(model)] == [16, 32, 64, 64, 128, 128, 128, 128]
    assert model.head.out_channels == 10


def test_a_unit_without_fan_in_still_learns():
    model = build(MlpSettings(hidden=(4,)))
    assert isinstance(model, MLP)
    nn.init.zeros_(model.hidden[0].linear.weight)
    nn.init.zeros_(model.hidden[0].linear.bias)
    model(torch.randn(8, *DIGITS)).square().sum().backward()
    assert model.hidden[0].linear.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("settings", EVERY_MODEL[2:], ids=str)
def test_features_do_not_fit_a_convolutional_net(settings: ModelSettings):
    with pytest.raises(ModelError, match=r"needs images \[C, H, W\], the data have inputs of shape \[20\].*'mlp'"):
        build_model(settings, (20,), 10)


# --- a user's callable


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "user_models_for_test.py").write_text(
        textwrap.dedent("""
        from torch import nn
        class Zoo:
            @staticmethod
            def small(width=3):
                return nn.Linear(width, 2)
        def build_small(width=3):
            return nn.Linear(width, 2)
        def no_model():
            return 7
        number = 3
        instance = nn.Linear(3, 2)
        """)
    )
    (tmp_path / "broken_models_for_test.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "user_models_for_test"
    for name in ("user_models_for_test", "broken_models_for_test"):
        sys.modules.pop(name, None)


def test_a_callable_is_called_with_its_args(user_module: str):
    model = build(CallableModelSettings(name=f"{user_module}:build_small", args={"width": 5}))
    assert isinstance(model, nn.Linear) and model.in_features == 5
    assert isinstance(build(CallableModelSettings(name=f"{user_module}:Zoo.small")), nn.Linear)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("user_models_for_test:build_smal", {}, "has no 'build_smal'; did you mean 'build_small'"),
        ("user_models_for_test:Zoo.smal", {}, "did you mean 'small'"),
        ("user_models_for_test:number", {}, "must be callable, got int"),
        ("user_models_for_test:instance", {}, "got an instance of Linear: every run builds its own seed"),
        ("user_models_for_test:no_model", {}, "must return a torch.nn.Module, got int"),
        ("user_models_for_test:build_small", {"wide": 3}, "failed: TypeError: .*'wide'"),
        ("no_such_module_for_test:build", {}, "importing 'no_such_module_for_test' failed.*PYTHONPATH"),
        ("broken_models_for_test:build", {}, "failed: ZeroDivisionError"),
    ],
)
def test_a_wrong_callable_is_explained(user_module: str, name: str, args: dict, message: str):
    with pytest.raises(ModelError, match=message):
        build(CallableModelSettings(name=name, args=args))


# --- does it fit


class Restless(nn.Module):
    """Changes a buffer, draws and remembers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.calls = self.calls * 2
        return self.linear(x) + torch.rand(3)


def test_a_check_leaves_no_trace():
    model = Restless().train()
    model.linear.eval()
    state = torch.get_rng_state()
    check_output(model, torch.randn(2, 4, generator=torch.Generator()), 3, "classification")
    assert model.training and not model.linear.training
    assert model.calls.item() == 0
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("outputs", "task", "message"),
    [
        (7, "classification", r"gives \[2, 7\] outputs for 2 inputs, the data have 10 classes"),
        (11, "classification", r"gives \[2, 11\] outputs"),
        (1, "regression", r"the data have 10 targets; it must give \[2, 10\]"),
    ],
)
def test_the_number_of_outputs_must_be_exact(outputs: int, task: str, message: str):
    with pytest.raises(ModelError, match=message):
        check_output(nn.Linear(4, outputs), torch.randn(2, 4), 10, task)


class Two(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, x


def test_a_model_must_take_the_inputs_and_return_one_tensor():
    with pytest.raises(ModelError, match=r"does not take inputs \[2, 4\] of torch.float32: RuntimeError"):
        check_output(nn.Linear(5, 10), torch.randn(2, 4), 10, "classification")
    with pytest.raises(ModelError, match=r"must return one tensor \[B, 10\], got tuple"):
        check_output(Two(), torch.randn(2, 10), 10, "classification")
    with pytest.raises(ModelError, match=r"gives \[2, 10, 4, 4\] outputs"):
        check_output(nn.Conv2d(1, 10, 1), torch.randn(2, 1, 4, 4), 10, "classification")
