from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from growkit.cost import Flops, TrainingCost, count_flops, count_params
from growkit.errors import ModelError


class First(nn.Module):
    """The first of several outputs, so that recurrent layers fit the one-tensor rule."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)[0]


class SelfAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x, x, x, need_weights=False)[0]


T, I, H = 6, 5, 7  # noqa: E741 - time steps, inputs, hidden units
ATTENTION = 2 * T * 8 * 24 + 2 * 2 * T * T * 8 + 2 * T * 8 * 8  # projections in, scores and values, projection out

CASES = {
    "linear": (nn.Linear(5, 7), (5,), 2 * 5 * 7),
    "linear over time": (nn.Linear(5, 7, bias=False), (T, 5), 2 * T * 5 * 7),
    "conv": (nn.Conv2d(3, 8, 3, padding=1), (3, 10, 10), 2 * 100 * 8 * 3 * 9),
    "conv, stride 2": (nn.Conv2d(3, 8, 3, stride=2), (3, 11, 9), 2 * 5 * 4 * 8 * 3 * 9),
    "conv, groups": (nn.Conv2d(6, 8, 3, padding=1, groups=2), (6, 4, 4), 2 * 16 * 8 * 3 * 9),
    "conv, depthwise": (nn.Conv2d(6, 6, 5, padding=2, groups=6), (6, 4, 4), 2 * 16 * 6 * 25),
    "conv, dilation": (nn.Conv1d(3, 4, 3, dilation=2), (3, 20), 2 * 16 * 4 * 3 * 3),
    "conv, transposed": (nn.ConvTranspose2d(3, 4, 3, stride=2), (3, 5, 5), 2 * 25 * 3 * 4 * 9),
    "lstm": (First(nn.LSTM(I, H, batch_first=True)), (T, I), 2 * T * 4 * H * (I + H)),
    "lstm, two layers": (
        First(nn.LSTM(I, H, 2, batch_first=True)),
        (T, I),
        2 * T * 4 * H * (I + H) + 2 * T * 4 * H * (H + H),
    ),
    "lstm, bidirectional": (
        First(nn.LSTM(I, H, 2, batch_first=True, bidirectional=True)),
        (T, I),
        2 * (2 * T * 4 * H * (I + H) + 2 * T * 4 * H * (2 * H + H)),
    ),
    "gru": (First(nn.GRU(I, H, batch_first=True)), (T, I), 2 * T * 3 * H * (I + H)),
    "gru, bidirectional": (
        First(nn.GRU(I, H, 2, batch_first=True, bidirectional=True)),
        (T, I),
        2 * (2 * T * 3 * H * (I + H) + 2 * T * 3 * H * (2 * H + H)),
    ),
    "rnn": (First(nn.RNN(I, H, batch_first=True)), (T, I), 2 * T * H * (I + H)),
    "lstm cell": (First(nn.LSTMCell(I, H)), (I,), 2 * 4 * H * (I + H)),
    "attention": (SelfAttention(8, 2), (T, 8), ATTENTION),
    "transformer layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        (T, 8),
        ATTENTION + 2 * 2 * T * 8 * 16,
    ),
    "free": (
        nn.Sequential(nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.PReLU(4), nn.LayerNorm(3), nn.MaxPool2d(2), nn.GELU()),
        (4, 3, 3),
        0,
    ),
}


@pytest.mark.parametrize(("model", "shape", "flops"), CASES.values(), ids=CASES.keys())
def test_flops_are_the_hand_count(model: nn.Module, shape: tuple[int, ...], flops: int):
    assert count_flops(model, torch.randn(3, *shape)) == Flops(flops, ())


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "shape", "flops"), CASES.values(), ids=CASES.keys())
def test_flops_are_the_hand_count_on_the_gpu(model: nn.Module, shape: tuple[int, ...], flops: int):
    try:
        assert count_flops(model.cuda(), torch.randn(3, *shape, device="cuda")) == Flops(flops, ())
    finally:
        model.cpu()


def test_an_embedding_is_free_and_tokens_are_inputs():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    assert count_flops(model, torch.zeros(2, 5, dtype=torch.int64)) == Flops(2 * 5 * 4 * 3, ())


def test_bilinear_and_vector_products_are_counted():
    class Products(nn.Module):
        def __init__(self):
            super().__init__()
            self.bilinear = nn.Bilinear(3, 4, 5)
            self.matrix = nn.Parameter(torch.randn(6, 5))

        def forward(self, x: Tensor) -> Tensor:
            return self.matrix @ self.bilinear(x[:, :3], x[:, 3:])[0]

    assert count_flops(Products(), torch.randn(2, 7)) == Flops(2 * 5 * 4 * (3 + 1) + 2 * 6 * 5, ())


@torch.library.custom_op("growkit_test_cost::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return mix(x, self.weight.t())


def test_an_operator_without_a_formula_is_named_never_silently_0():
    assert count_flops(nn.Sequential(nn.Linear(4, 4), Mixed()), torch.randn(2, 4)) == Flops(
        2 * 4 * 4, ("growkit_test_cost.mix",)
    )


def test_a_registered_formula_makes_it_known(monkeypatch: pytest.MonkeyPatch):
    from torch.utils import flop_counter

    monkeypatch.setattr(flop_counter, "flop_registry", dict(flop_counter.flop_registry))

    @flop_counter.register_flop_formula(torch.ops.growkit_test_cost.mix)
    def mix_flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
        return 2 * x_shape[0] * weight_shape[0] * weight_shape[1]

    assert count_flops(Mixed(), torch.randn(2, 4)) == Flops(2 * 4 * 4, ())


def test_an_odd_operator_on_a_parameter_is_named_even_through_a_view():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.matrix_exp(self.weight.t()).sum() * torch.fft.fft(x).real

    assert count_flops(Odd(), torch.randn(2, 4)).unknown == ("aten._fft_r2c", "aten.linalg_matrix_exp")


def test_counting_leaves_no_trace():
    class Restless(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.norm(self.dropout(x)) + torch.rand(4)

    model = Restless().train()
    model.dropout.eval()
    random, fast = torch.get_rng_state(), torch.backends.mha.get_fastpath_enabled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    count_flops(model, torch.zeros(2, 4))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.training, model.norm.training, model.dropout.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.backends.mha.get_fastpath_enabled() == fast
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_model_that_fails_is_a_model_error_and_leaves_no_trace_either():
    model = nn.Linear(3, 2).train()
    with pytest.raises(ModelError, match=r"failed on inputs \[1, 4\]: RuntimeError"):
        count_flops(model, torch.randn(2, 4))
    assert model.training


def test_tied_parameters_count_once():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    model[1].weight = model[0].weight
    assert count_params(model) == 16


def test_the_ledger_adds_three_forwards_per_pass():
    cost = TrainingCost()
    cost.add_steps(100, samples=8)
    cost.add_steps(100, samples=8, passes=2)
    cost.add("growth", 5)
    cost.add("evaluation", 7)
    cost.add("growth", 5)
    assert cost.training == 3 * 100 * 8 * (1 + 2)
    assert cost.other == {"growth": 10, "evaluation": 7}


def test_the_ledger_survives_json():
    cost = TrainingCost()
    cost.add_steps(10, 3)
    cost.add("diagnosis", 4)
    again = TrainingCost(**json.loads(json.dumps(cost.to_json())))
    assert again == cost
    again.add("diagnosis", 1)
    assert cost.other == {"diagnosis": 4}
