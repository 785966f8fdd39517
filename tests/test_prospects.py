"""What growth promises: the spectrum of the mean loss, its noise floor, and what a policy makes of them."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.growth import RandomSettings
from growkit.graph import find_sites
from growkit.growth.base import Nothing, Prospects, SiteState
from growkit.growth.history import Clock, History
from growkit.growth.initializers.norms import fan_out_norm
from growkit.growth.statistics import Measurement
from growkit.growth.statistics.prospects import measure_prospects
from growkit.growth.where import LargestGain
from growkit.surgery import Inputs

BATCH = 1024


def tower(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for made, read in itertools.pairwise(widths):
        layers += [nn.Linear(made, read), nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def prospects_of(model: nn.Module, x: Tensor, y: Tensor) -> Prospects:
    first, *more = [(Inputs((part,)), labels) for part, labels in zip(x.split(BATCH), y.split(BATCH), strict=True)]
    sites = tuple(find_sites(model, x[:4]))
    measurement = Measurement(model, F.cross_entropy, *first, sites, tuple(more))
    return measure_prospects(measurement, lambda site, found: fan_out_norm(site, found, RandomSettings()), 1)


def choice(prospects: Prospects) -> list[str] | Nothing:
    states = [SiteState(name, 2, 2, 100) for name in prospects.sites]
    chosen = LargestGain().select(states, History(Clock(1, 10), 1), prospects)
    return chosen if isinstance(chosen, Nothing) else list(chosen)


def taught(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    teacher, x = tower(16, 64, 8), torch.randn(4 * BATCH, 16)
    for parameter in teacher.parameters():
        parameter.data *= 2.0
    return x, teacher(x).argmax(1).detach()


def train(model: nn.Module, x: Tensor, y: Tensor, steps: int = 300, lr: float = 1e-2, again: bool = True) -> None:
    """Steps of Adam on batches of 128, drawn from all samples or, not `again`, each sample once."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for step in range(steps):
        some = torch.randint(0, len(x), (128,)) if again else slice(128 * step, 128 * (step + 1))
        optimizer.zero_grad()
        F.cross_entropy(model(x[some]), y[some]).backward()
        optimizer.step()


def test_gains_are_those_of_the_mean_loss_over_all_batches() -> None:
    x, y = taught(0)
    model = tower(16, 6, 5, 8)
    prospects = prospects_of(model, x, y)
    whole = Measurement(model, F.cross_entropy, Inputs((x,)), y, tuple(find_sites(model, x[:4])))
    F.cross_entropy(model(x), y).backward()
    square = sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None)
    for site in whole.sites:
        sigma = torch.linalg.svdvals(whole.gradient_matrix(site).matrix.double())
        assert prospects.sites[site.name].gains[: len(sigma)] == pytest.approx(
            sigma.square().tolist(), rel=1e-3, abs=1e-9
        )
    assert prospects.gradient == pytest.approx(square, rel=1e-4)
    assert (prospects.samples, prospects.passes) == (4 * BATCH, 3.0)


def test_batches_that_are_alike_have_no_noise() -> None:
    x, y = taught(0)
    prospects = prospects_of(tower(16, 6, 8), x[:BATCH].repeat(4, 1), y[:BATCH].repeat(4))
    (site,) = prospects.sites.values()
    assert site.noise <= 1e-9 * site.gains[0] and site.standard_error <= 1e-5 * site.gains[0]


def test_a_planted_bottleneck_is_chosen_first_in_nine_of_ten_seeds() -> None:
    hits = 0
    for seed in range(10):
        x, y = taught(seed)
        widths = [24, 24, 24]
        widths[seed % 3] = 2
        model = tower(16, *widths, 8)
        train(model, x, y)
        hits += choice(prospects_of(model, x, y)) == [str(2 * (seed % 3))]
    assert hits >= 9


def test_labels_that_are_pure_noise_end_growth_in_nine_of_ten_seeds() -> None:
    ended = 0
    for seed in range(10):
        torch.manual_seed(seed)
        model = tower(16, 12, 12, 8)
        for lr in (1e-2, 1e-3, 1e-4):  # of samples that are new at every step nothing can be learnt, nor kept in mind
            train(model, *noise(300 * 128), steps=300, lr=lr, again=False)
        answer = choice(prospects_of(model, *noise(4 * BATCH)))
        ended += isinstance(answer, Nothing) and answer.ends
    assert ended >= 9


def noise(samples: int) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, 16), torch.randint(0, 8, (samples,))
