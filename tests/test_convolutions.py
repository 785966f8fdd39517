"""Kernel entries that meet padding alone, which bf16 kernels of CPUs leave without a gradient."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from growkit.config import load_config
from growkit.convolutions import idle_entries, strided_over_padding
from growkit.device import ComputePolicy
from growkit.errors import UserInputError
from growkit.pipeline import run

VGG = Path(__file__).parent.parent / "experiments" / "vgg_quarter.yaml"
SHORT = ["train.epochs=1", "data.limit=60", "growth.when=never", "run.tensorboard=false"]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", [0, 1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
def test_entries_are_idle_where_the_gradient_of_ones_is_zero(
    size: int, kernel: int, stride: int, padding: int, dilation: int
):
    if size + 2 * padding < dilation * (kernel - 1) + 1:
        return  # torch refuses it
    convolution = nn.Conv1d(1, 1, kernel, stride, padding, dilation, dtype=torch.float64)
    convolution(torch.ones(1, 1, size, dtype=torch.float64)).sum().backward()
    gradient = convolution.weight.grad
    assert gradient is not None
    assert (
        idle_entries(size, kernel, stride, padding, dilation) == (gradient.flatten() == 0).nonzero().flatten().tolist()
    )


def test_only_convolutions_that_stride_over_padding_are_named():
    model = nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.Conv2d(2, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, 2, 1))
    assert strided_over_padding(lambda: model(torch.zeros(2, 1, 2, 2))) == [
        "3x3 with stride 2 over 2x2",
        "3x3 with stride 2 over 1x1",
    ]
    assert strided_over_padding(lambda: model(torch.zeros(2, 1, 8, 8))) == []


@pytest.fixture
def bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor with bf16 instructions, whichever this is."""
    policy = ComputePolicy("cpu", "bf16", True, "the CPU has AMX bf16 instructions")
    monkeypatch.setattr("growkit.assembly.choose_compute", lambda precision, device: policy)


def test_a_model_with_such_a_convolution_trains_in_fp32_and_says_why(bf16: None, tmp_path: Path):
    done = run(load_config(VGG, [*SHORT, f"run.root={tmp_path}"]), observers=())
    assert done.result["compute"]["precision"] == "fp32"
    assert "a convolution of 3x3 with stride 2 over 2x2" in done.result["compute"]["reason"]


def test_bf16_is_refused_where_it_is_asked_for(bf16: None, tmp_path: Path):
    with pytest.raises(
        UserInputError, match="train.precision must be fp32 here, got bf16: .*; use fp32, auto or larger"
    ):
        run(load_config(VGG, [*SHORT, f"run.root={tmp_path}", "train.precision=bf16"]), observers=())
    assert list(tmp_path.iterdir()) == []
