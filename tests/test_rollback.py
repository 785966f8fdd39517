"""Undo is exact: random modules, random edits, any optimizer; then every bit is back and training goes on."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from zoo.truth import photograph

import growkit
from growkit.graph import GrowthSite
from growkit.surgery import Extension, Growth, grow


class ConvNorm(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width + 1, 3, padding=1, bias=False), nn.BatchNorm2d(width + 1)
        self.back = nn.Conv2d(width + 1, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.back(F.relu(self.norm(self.conv(x))))


class Concatenated(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.left, self.right = nn.Conv2d(width, 3, 1), nn.Conv2d(width, 2, 3, padding=1)
        self.both = nn.Conv2d(5, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.both(F.silu(torch.cat([self.left(x), self.right(x)], 1)))


class Depthwise(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.up, self.deep = nn.Conv2d(width, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm, self.down = nn.GroupNorm(3, 6), nn.Conv2d(6, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.norm(self.deep(self.up(x)))))


class Pooled(nn.Module):
    """Flattened maps into a linear layer, back as a gate for each channel."""

    def __init__(self, width: int):
        super().__init__()
        self.narrow, self.gate = nn.Conv2d(width, 2, 1), nn.Linear(2 * 16, width)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.gate(self.narrow(x).flatten(1)))[:, :, None, None]


class Attention(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.heads, self.norm = 2, nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * 2 * 4), nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        y = x.flatten(2).transpose(1, 2)
        b, n, _ = y.shape
        q, k, v = self.qkv(self.norm(y)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, -1))
        return y.transpose(1, 2).reshape(b, -1, 4, 4)


PIECES: dict[str, type[nn.Module]] = {
    kind.__name__: kind for kind in (ConvNorm, Concatenated, Depthwise, Pooled, Attention)
}


class Grown(nn.Module):
    """A stem, pieces that are added to the stream or not, a head; one piece may run twice."""

    def __init__(self, width: int, pieces: Sequence[tuple[str, bool]], twice: bool):
        super().__init__()
        self.stem, self.residual = nn.Conv2d(3, width, 3, padding=1), [added for _, added in pieces]
        self.pieces = nn.ModuleList([PIECES[name](width) for name, _ in pieces])
        self.head, self.twice = nn.Linear(width, 3), twice

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for piece, added in zip(self.pieces, self.residual, strict=True):
            x = x + piece(x) if added else piece(x)
        if self.twice:
            x = self.pieces[-1](x)
        return self.head(x.mean((2, 3)))


OPTIMIZERS: dict[str, Any] = {
    "sgd": lambda p, fused: torch.optim.SGD(p, lr=0.05, fused=fused),
    "momentum": lambda p, fused: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=fused),
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.01, fused=fused),
}

recipes = st.tuples(
    st.integers(2, 5),
    st.lists(st.tuples(st.sampled_from(sorted(PIECES)), st.booleans()), min_size=1, max_size=3),
    st.booleans(),
)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    """Leaves the gradients of the last step where they are."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def memory_of(optimizer: torch.optim.Optimizer) -> Any:
    """What an optimizer remembers, to the last bit, in the order of its parameters."""
    return [
        {key: _plain(value) for key, value in optimizer.state.get(parameter, {}).items()}
        for group in optimizer.param_groups
        for parameter in group["params"]
    ], [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]


def _plain(value: Any) -> Any:
    return (value.stride(), value.dtype, value.tolist()) if isinstance(value, Tensor) else value


def extension(model: nn.Module, site: GrowthSite, num_new: int) -> Extension:
    values = {}
    for edit in site.tensor_edits(num_new):
        for dim, index in enumerate(edit.index_maps):
            if edit.kind == "parameter" and not edit.pass_through and index is not None and dim not in edit.silent_dims:
                shape = list(model.get_parameter(edit.names[0]).shape)
                shape[dim] = int((index < 0).sum())
                values[edit.names[0], dim] = torch.randn(shape)
    return Extension(values)


def twin_of(model: nn.Module, optimizer: torch.optim.Optimizer, make: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    """A copy of both that will never grow."""
    twin = copy.deepcopy(model)
    other = make(twin.parameters())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return twin, other


def check(data: st.DataObject, model: nn.Module, name: str, fused: bool, steps: int) -> None:
    x = torch.randn(3, 3, 4, 4)
    optimizer = OPTIMIZERS[name](model.parameters(), fused)
    train(model, optimizer, x, steps)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x), example=x)
    twin, other = twin_of(model, optimizer, lambda p: OPTIMIZERS[name](p, fused))
    before, memory = photograph(model), memory_of(optimizer)
    widths, outputs = [site.width for site in verdict.sites], model.eval()(x)
    model.train()
    assert verdict.sites
    edits = []
    events = st.lists(
        st.lists(
            st.tuples(st.sampled_from(verdict.sites), st.integers(1, 3)),
            min_size=1,
            max_size=3,
            unique_by=lambda o: o[0].name,
        ),
        min_size=1,
        max_size=3,
    )
    for event in data.draw(events):
        orders = [(site, site.width if site.by_copies else num) for site, num in event]
        growths = [Growth(site, num, extension(model, site, num)) for site, num in orders]
        edits.append(grow(model, growths, optimizer=optimizer))
    grown = model.eval()(x)
    model.train()
    assert float((grown - outputs).detach().abs().max()) <= 1e-4 * max(float(outputs.detach().abs().max()), 1e-3)
    for edit in reversed(edits):
        edit.undo()
    assert photograph(model) == before
    assert memory_of(optimizer) == memory
    assert [site.width for site in verdict.sites] == widths
    train(model, optimizer, x, 2)
    train(twin, other, x, 2)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.parameters(), strict=True))


CHOICES = {
    "data": st.data(),
    "seed": st.integers(0, 9),
    "recipe": recipes,
    "name": st.sampled_from(sorted(OPTIMIZERS)),
    "fused": st.booleans(),
    "steps": st.integers(0, 3),
}
COMMON: dict[str, Any] = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=8, **COMMON)
@given(**CHOICES)
def test_undo_in_reverse_restores_every_bit(
    data: st.DataObject, seed: int, recipe: Any, name: str, fused: bool, steps: int
) -> None:
    torch.manual_seed(seed)
    check(data, Grown(*recipe), name, fused, steps)


@pytest.mark.slow
@settings(max_examples=150, **COMMON)
@given(**CHOICES)
def test_undo_in_reverse_restores_every_bit_of_many_modules(
    data: st.DataObject, seed: int, recipe: Any, name: str, fused: bool, steps: int
) -> None:
    torch.manual_seed(seed)
    check(data, Grown(*recipe), name, fused, steps)
