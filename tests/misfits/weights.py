"""Weights of odd kinds, shared, frozen or without values, and modules that are no Python any more."""

from __future__ import annotations

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .forwards import Net


class ComplexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8, dtype=torch.complex64)
        self.b = nn.Linear(8, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.to(torch.complex64))).abs()


class SparseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(8, 6).to_sparse())
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sparse.mm(self.w, x.t()).t())


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.b, self.c = nn.Embedding(9, 8, sparse=True), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(self.embed(x.abs().long().clamp(max=8))).mean(1)))


class TiedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.a(x)), self.a.weight.t())


class IntWeights(nn.Module):
    """A layer quantised by hand: whole-number weights in a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randint(-9, 9, (8, 6), dtype=torch.int8), requires_grad=False)
        self.b, self.c = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(F.linear(x, self.w.to(x.dtype) * 0.1))))


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.also = self.a
        self.list = nn.ModuleList([self.a, self.b])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.list[0](x)) + self.also(x))


class DuplicateBuffers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.other.running_mean = self.norm.running_mean
        self.other.running_var = self.norm.running_var

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.other(torch.tanh(self.norm(self.a(x)))))


class Scalars(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.steps = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


class ZeroWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.empty = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([torch.tanh(self.a(x)), x.new_zeros(0, 8) + self.empty.sum()]))


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ghost = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2))


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def parametrised() -> nn.Module:
    model = Net()
    nn.utils.parametrizations.orthogonal(model.a)
    return model


def half_frozen() -> nn.Module:
    model = Net()
    model.a.requires_grad_(False)
    return model


def frozen() -> nn.Module:
    return Net().requires_grad_(False)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(sequence())


def scripted_inside() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), scripted_of(5))


def scripted_of(width: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 3)))


def compiled_inside() -> nn.Module:
    return nn.Sequential(torch.compile(nn.Linear(6, 8)), nn.Tanh(), nn.Linear(8, 3))  # type: ignore[arg-type]


def compiled_in_place() -> nn.Module:
    model = Net()
    model.a.compile(backend="eager")
    return model


def meta() -> nn.Module:
    with torch.device("meta"):
        return Net()
