"""Recurrent layers, reparametrised weights, regions with a body of their own, complex numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from rule_cases.kit import image, net, series, tokens, vector, weight


class Steps(nn.Module):
    """A cell, step by step."""

    def __init__(self, cell: nn.RNNCellBase):
        super().__init__()
        self.cell, self.b = cell, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        state: Any = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.b(state[0] if isinstance(state, tuple) else state)


class Read(nn.Module):
    """A recurrent layer and what reads its last step."""

    def __init__(self, layer: nn.RNNBase, fan_in: int):
        super().__init__()
        self.layer, self.b = layer, nn.Linear(fan_in, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.layer(x)[0][:, -1])


def steps() -> Tensor:
    return torch.randn(4, 3, 5)


RECURRENT = {
    "lstm_cell": net(lambda: Steps(nn.LSTMCell(5, 4)), steps, {"cell": 4}),
    "gru_cell": net(lambda: Steps(nn.GRUCell(5, 4)), steps, {"cell": 4}),
    "rnn_cell": net(lambda: Steps(nn.RNNCell(5, 4, nonlinearity="relu", bias=False)), steps, {"cell": 4}),
    "rnn": net(lambda: Read(nn.RNN(5, 4, 2, batch_first=True), 4), steps, {"layer": 4}),
    "gru": net(lambda: Read(nn.GRU(5, 4, 2, batch_first=True, bidirectional=True), 8), steps, {"layer": 4}),
    "lstm_proj": net(
        lambda: Read(nn.LSTM(5, 4, 2, batch_first=True, bidirectional=True, proj_size=3), 6), steps,
        {"layer": 4, "layer#2": 3},
    ),
    "lstm_no_bias": net(lambda: Read(nn.LSTM(5, 4, bias=False, batch_first=True), 4), steps, {"layer": 4}),
    "lstm_after_conv": series(
        lambda m, h: m.w(h.transpose(1, 2))[0][:, -1], {"a": 8, "w": 4}, w=lambda: nn.LSTM(8, 4, batch_first=True)
    ),
}  # fmt: skip

OLD = nn.utils.weight_norm

REPARAMETRISED = {
    "weight_norm": vector(
        lambda m, h: m.w(h), {"a": 8, "w": 5},
        w=lambda: parametrizations.weight_norm(nn.Linear(8, 5)),
    ),
    "weight_norm_conv": image(
        lambda m, h: m.w(h), {"a": 8, "w": 5},
        w=lambda: parametrizations.weight_norm(nn.Conv2d(8, 5, 3)),
    ),
    "weight_norm_whole": vector(
        lambda m, h: m.w(h), {"a": "the norm of a weight runs over it"},
        w=lambda: parametrizations.weight_norm(nn.Linear(8, 5), dim=None),
    ),
    "weight_norm_columns": vector(
        lambda m, h: m.w(h), {"a": "is contracted with a weight that is computed"},
        w=lambda: parametrizations.weight_norm(nn.Linear(8, 5, bias=False), dim=1),
    ),
    "spectral_norm": vector(
        lambda m, h: m.w(h), {"a": "spectral"}, w=lambda: parametrizations.spectral_norm(nn.Linear(8, 5))
    ),
    "orthogonal": vector(
        lambda m, h: m.w(h), {"a": "is the width of the buffer"}, w=lambda: parametrizations.orthogonal(nn.Linear(8, 5))
    ),
}  # fmt: skip


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return 2 * gradient * ctx.saved_tensors[0]


class Sums(torch.autograd.Function):
    """Mixes the units."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x + x.sum(1, keepdim=True)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        return gradient + gradient.sum(1, keepdim=True)


def _without_gradient(m: Any, h: Tensor) -> Tensor:
    with torch.no_grad():
        return m.w(h)


def _cond(m: Any, h: Tensor) -> Tensor:
    return torch.cond(h.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (h,))


def _while(m: Any, h: Tensor) -> Tensor:
    return torch.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y * 0.5), (torch.tensor(0), h))[1]


def _map(m: Any, h: Tensor) -> Tensor:
    from torch._higher_order_ops import map as map_rows

    return map_rows(lambda row: row.sin(), h)


REGIONS = {
    "no_grad": vector(_without_gradient, {"a": 8, "w": 5}, w=lambda: nn.Linear(8, 5)),
    "checkpoint": vector(
        lambda m, h: checkpoint(m.w, h, use_reentrant=False), {"a": 8, "w": 5}, w=lambda: nn.Linear(8, 5)
    ),
    "autograd_function": vector(lambda m, h: Square.apply(h), 8),
    "autograd_function_mixing": vector(lambda m, h: Sums.apply(h), "sum runs over it"),
    "detach": vector(lambda m, h: h + h.detach(), 8),
    "cond": vector(_cond, "goes through torch's control flow (cond)"),
    "while_loop": vector(_while, "goes through torch's control flow (while_loop)"),
    "map": vector(_map, "goes through torch's control flow (map"),
    "vmap": vector(lambda m, h: torch.vmap(m.w)(h), {"a": "_add_batch_dim"}, w=lambda: nn.Linear(8, 5)),
    "assertions": vector(lambda m, h: (torch._assert(h.shape[0] > 0, "batch"), h)[1], 8),
    "item": vector(lambda m, h: h * h.mean(0).sum().detach(), 8),
}  # fmt: skip


def _rotary(m: Any, h: Tensor) -> Tensor:
    pairs = torch.view_as_complex(h.unflatten(2, (-1, 2)))
    return torch.view_as_real(pairs * torch.polar(torch.ones(()), torch.tensor(0.3))).flatten(2)


COMPLEX = {
    "fft_positions": tokens(lambda m, h: torch.fft.fft(h, dim=1).real, 8),
    "fft_image": image(lambda m, h: torch.fft.irfft2(torch.fft.rfft2(h)), 8),
    "fft_width": vector(lambda m, h: torch.fft.rfft(h).abs(), "is transformed by fft_rfft"),
    "fft_everything": tokens(lambda m, h: torch.fft.fftn(h).imag, "is transformed by fft_fftn"),
    "fourier_operator": series(
        lambda m, h: torch.fft.irfft(torch.einsum("bix,io->box", torch.fft.rfft(h), torch.complex(m.w, m.v)), n=12),
        {"a": "is contracted with a weight that is computed", "w": 5}, w=weight(8, 5), v=weight(8, 5),
    ),
    "fourier_layer": series(
        lambda m, h: torch.fft.irfft(torch.einsum("bix,iox->box", torch.fft.rfft(h), m.w), n=12), {"a": 8, "w": 5},
        w=lambda: nn.Parameter(torch.randn(8, 5, 7, dtype=torch.cdouble)),
    ),
    "stft": vector(
        lambda m, h: torch.stft(h, 4, window=torch.ones(4), center=False, return_complex=True).abs().flatten(1),
        "is taken as a whole by stft",
    ),
    "rotary": tokens(_rotary, {"a": 4}),
}  # fmt: skip
