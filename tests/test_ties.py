"""Ties that no trace shows: views in attributes and buffers, hooks on gradients, halves of a sum, other models."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.errors import GrowthRefused, ModelError
from growkit.graph import GrowthSite
from growkit.surgery import Inputs, trial, verify_sites


class Proto(nn.Module):
    """Compares its inputs with the rows of its first weight, through a view of it."""

    def __init__(self, keep: Callable[[Proto, Tensor], None]):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)
        keep(self, self.a.weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        near = (x @ self.rows().t()).square().sum(-1, keepdim=True)
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))) + near

    def rows(self) -> Tensor:
        return self.held["rows"].t() if hasattr(self, "held") else self.view


def as_attribute(model: Proto, weight: Tensor) -> None:
    model.view = weight


def as_buffer(model: Proto, weight: Tensor) -> None:
    model.register_buffer("view", weight)


def as_slice(model: Proto, weight: Tensor) -> None:
    model.view = weight[:4]


def as_transpose_in_a_dictionary(model: Proto, weight: Tensor) -> None:
    model.held = {"rows": weight.t()}


@pytest.mark.parametrize("keep", [as_attribute, as_buffer, as_slice, as_transpose_in_a_dictionary])
def test_a_width_whose_weight_is_viewed_elsewhere_stays(keep: Callable[[Proto, Tensor], None]):
    model = Proto(keep)
    sites = growkit.find_sites(model, torch.randn(4, 5))
    assert [site.name for site in sites] == ["b"]
    reasons = [one.reason for one in sites.refusals if one.width == 8]
    assert any("shares its memory with" in reason for reason in reasons)


def test_a_tensor_of_its_own_ties_nothing():
    model = Proto(lambda model, weight: setattr(model, "view", weight.clone()))
    assert [site.name for site in growkit.find_sites(model, torch.randn(4, 5))] == ["a", "b"]


@pytest.mark.parametrize("register", ["register_hook", "register_post_accumulate_grad_hook"])
def test_a_weight_with_a_hook_on_its_gradient_stays(register: str):
    model, mask = (
        nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)),
        torch.ones(8, 5),
    )
    getattr(model[0].weight, register)(lambda gradient: mask * getattr(gradient, "grad", gradient))
    sites = growkit.find_sites(model, torch.randn(4, 5))
    assert [site.name for site in sites] == ["2"]
    assert any("hook on its gradient" in one.reason for one in sites.refusals)


class Halves(nn.Module):
    """Takes its concatenation apart in the middle: right only as long as both parts are of one width."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 8), nn.Linear(5, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([self.a(x), self.b(x)], -1)
        half = y.shape[-1] // 2
        return self.c(torch.cat([torch.sigmoid(y[:, :half]), torch.tanh(y[:, half:])], -1))


def test_a_width_that_is_right_by_chance_once_is_not_verified():
    torch.manual_seed(0)
    model, x = Halves(), torch.randn(4, 5)
    sites = list(growkit.find_sites(model, x))
    for site in verify_sites(model, sites, Inputs((x,))).sites:
        for units in (1, 2, 3, 8):
            growkit.widen(model, site, units).undo()


# --- what an edit carries


def test_accumulated_gradients_grow_along():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    x = torch.randn(4, 5)
    model(x).square().sum().backward()
    before = [one.grad.clone() for one in model.parameters()]
    edit = growkit.widen(model, growkit.find_sites(model, x)[0], 2)
    after = [one.grad for one in model.parameters()]
    assert torch.equal(after[0][:8], before[0]) and not after[0][8:].any()
    assert torch.equal(after[2][:, :8], before[2]) and not after[2][:, 8:].any()
    assert torch.equal(after[3], before[3])
    edit.undo()
    assert all(torch.equal(one.grad, old) for one, old in zip(model.parameters(), before, strict=True))


def test_gradients_of_scaled_weights_are_those_by_the_scaled_ones():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3)).double()
    x = torch.randn(4, 5).double()
    model(x).square().sum().backward()
    growkit.widen(model, growkit.find_sites(model, x)[0], 2, example=x)
    kept = [one.grad.clone() for one in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    # the norm, whose gain the edit scales, and what reads it
    for number, old in ((2, slice(8)), (3, slice(8)), (4, (slice(None), slice(8))), (5, slice(None))):
        torch.testing.assert_close(kept[number][old], list(model.parameters())[number].grad[old])


# --- of which model


class Renamed(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).softmax(-1)


@pytest.mark.parametrize("other", [copy.deepcopy, lambda model: Renamed(*copy.deepcopy(model))], ids=["copy", "class"])
def test_a_site_of_another_model_is_refused(other: Callable[[nn.Module], nn.Module]):
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    site = growkit.find_sites(model, torch.randn(4, 5))[0]
    with pytest.raises(GrowthRefused, match="must be found in the model itself"):
        growkit.widen(other(model), site, 2)


def test_numpys_whole_numbers_are_whole_numbers():
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    growkit.widen(model, growkit.find_sites(model, torch.randn(4, 5))[0], np.int64(2))  # type: ignore[arg-type]
    assert model[0].out_features == 10


# --- what is said


def test_a_machine_without_memory_refuses_no_site(monkeypatch: pytest.MonkeyPatch):
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 5)
    sites: list[GrowthSite] = list(growkit.find_sites(model, x))

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes")

    monkeypatch.setattr(trial, "reactions", full)
    with pytest.raises(ModelError, match="no memory was left"):
        verify_sites(model, sites, Inputs((x,)))


class Detached(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(5, 8)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.a.weight.data, self.a.bias)


def test_data_in_a_forward_is_named():
    with pytest.raises(ModelError, match=r"not by \.data, .*\.detach\(\)"):
        growkit.find_sites(Detached(), torch.randn(4, 5))


class Slope(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            y = x.detach().requires_grad_()
            return torch.autograd.grad(self.b(torch.tanh(self.a(y))).sum(), y, create_graph=True)[0]


def test_a_gradient_taken_in_a_forward_is_named():
    with pytest.raises(ModelError, match=r"nor by torch\.autograd\.grad .*return what it differentiates"):
        growkit.find_sites(Slope(), torch.randn(4, 5))


class Routed(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate, self.one, self.two = nn.Linear(5, 2), nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (self.gate(x).argmax(-1) == 0).nonzero()[:, 0]
        return torch.zeros(len(x), 3).index_add(0, chosen, self.two(torch.tanh(self.one(x[chosen]))))


def test_rows_that_data_choose_are_named():
    refusals = growkit.find_sites(Routed(), torch.randn(6, 5)).refusals
    assert any("number depends on the values of the data" in one.reason for one in refusals)


class Pre(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.norm, self.mlp = nn.LayerNorm(size), nn.Sequential(nn.Linear(size, 9), nn.GELU(), nn.Linear(9, size))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))


def test_a_block_that_stands_twice_is_no_fault():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            block = Pre(8)
            self.first, self.blocks, self.last = nn.Linear(5, 8), nn.ModuleList([block, block, Pre(8)]), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for block in self.blocks:
                x = block(x)
            return self.last(x)

    places = growkit.find_places(Twice(), torch.randn(4, 5))
    assert all(place.name != "blocks.0" for place in places)
