"""What a check on one batch would not show: branches too faint for the outputs, and an eps beside activations of 1."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.surgery import Inputs
from growkit.surgery.trial import Trial


class Branches(nn.Module):
    """Two residual branches; the second is multiplied by a number, and may mix its hidden units."""

    def __init__(self, gain: float, *, mixes: bool):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 4), nn.Linear(4, 3)
        self.up, self.down = nn.Linear(4, 6), nn.Linear(6, 4)
        self.up2, self.down2 = nn.Linear(4, 6), nn.Linear(6, 4)
        self.gain, self.mixes = gain, mixes

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.tanh(self.up(x)))
        hidden = torch.tanh(self.up2(x))
        if self.mixes:
            hidden = hidden / (1.0 + hidden.sum(1, keepdim=True).square())
        return self.head(x + self.gain * self.down2(hidden))


def verdict_of(model: nn.Module) -> Any:
    torch.manual_seed(0)
    x = torch.randn(6, 5)
    return growkit.verify_sites(model, growkit.find_sites(model, x), example=x)


@pytest.mark.parametrize("gain", [1.0, 1e-7, 1e-12])
def test_a_fault_in_a_faint_branch_is_noticed_beside_a_strong_one(gain: float) -> None:
    torch.manual_seed(0)
    model = Branches(gain, mixes=False)
    sites = growkit.find_sites(model, x := torch.randn(6, 5))
    model.mixes = True
    verdict = growkit.verify_sites(model, sites, example=x)
    assert [refusal.name for refusal in verdict.refusals] == ["up2"]
    assert "changes the outputs by" in verdict.refusals[0].reason


@pytest.mark.parametrize("gain", [1.0, 1e-7, 1e-12])
def test_a_faint_branch_without_fault_may_grow(gain: float) -> None:
    verdict = verdict_of(Branches(gain, mixes=False))
    assert verdict.refusals == () and [site.name for site in verdict.sites] == ["stem", "up", "up2"]


class Norm(nn.Module):
    """A norm over the width written by hand, whose eps may be a number in the forward in place of the attribute."""

    def __init__(self, width: int, *, centred: bool):
        super().__init__()
        self.weight, self.centred = nn.Parameter(torch.ones(width)), centred
        self.eps, self.fixed = 1e-6, False

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        eps = 1e-6 if self.fixed else self.eps
        return self.weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps))


class Stream(nn.Module):
    def __init__(self, *, centred: bool):
        super().__init__()
        self.stem, self.head = nn.Linear(5, 8), nn.Linear(8, 3)
        self.first, self.last = Norm(8, centred=centred), Norm(8, centred=centred)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.down(torch.tanh(self.up(self.first(x))))
        return self.head(self.last(x))


@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "rms norm"])
@pytest.mark.parametrize("norm", ["first", "last"])
def test_an_eps_that_does_not_follow_the_width_is_noticed(norm: str, centred: bool) -> None:
    """Behind the graph's back; only streams as faint as the root of eps show it."""
    torch.manual_seed(0)
    model = Stream(centred=centred)
    sites = growkit.find_sites(model, x := torch.randn(6, 5))
    getattr(model, norm).fixed = True
    verdict = growkit.verify_sites(model, sites, example=x)
    assert [site.name for site in verdict.sites] == ["up"]
    assert [refusal.name for refusal in verdict.refusals] == ["stem"]


@pytest.mark.parametrize("centred", [True, False], ids=["layer norm", "rms norm"])
def test_an_eps_that_follows_the_width_is_right_on_faint_streams_too(centred: bool) -> None:
    verdict = verdict_of(Stream(centred=centred))
    assert [site.name for site in verdict.sites] == ["stem", "up"] and verdict.refusals == ()


def test_embeddings_with_sparse_gradients_may_grow() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4, sparse=True), nn.Tanh(), nn.Linear(4, 3))
    tokens = torch.randint(7, (6, 5))
    verdict = growkit.verify_sites(model, growkit.find_sites(model, tokens), example=tokens)
    assert [site.name for site in verdict.sites] == ["0"]


class StochasticDepth(nn.Module):
    """Every branch is left out for half of the samples while training."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5)) for _ in range(12))
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        for branch in self.branches:
            kept = torch.rand(len(x), 1) < 0.5 if self.training else torch.ones(len(x), 1)
            x = x + branch(x) * kept
        return self.head(x)


def test_branches_left_out_at_random_are_seen_with_other_random_numbers(monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    model, example = StochasticDepth(), torch.randn(2, 5)
    sites, trial = list(growkit.find_sites(model, example)), Trial(model, Inputs((example,)), 1e-5)
    assert len(sites) == 12 and trial.of(sites).reason is None
    monkeypatch.setattr("growkit.surgery.reaction.SEEDS", 1)
    assert trial.of(sites).reason == "no gradient reaches its new units"
