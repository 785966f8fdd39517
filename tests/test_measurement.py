"""What a growth event measures: no more than it needs, and the same however it is asked."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from growkit.graph import find_sites
from growkit.growth.initializers import GradMax
from growkit.growth.initializers.singular import EXACT_LIMIT, top_singular, top_singular_of
from growkit.growth.statistics import Measurement
from growkit.surgery import Extension, Growth, Inputs, grow

TARGETS = torch.arange(12) % 3


class Blocks(nn.Module):
    """Residual blocks, whose inner widths share no tensor; torch.relu, so that new units have zero fan-out."""

    def __init__(self, through_checkpoint: bool = False):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(5, 4) for _ in range(3))
        self.second = nn.ModuleList(nn.Linear(4, 5) for _ in range(3))
        self.head, self.through_checkpoint = nn.Linear(5, 3), through_checkpoint

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(torch.relu(first(x)))
        return checkpoint(self.head, x, use_reentrant=True) if self.through_checkpoint else self.head(x)


def measured(model: nn.Module) -> Measurement:
    torch.manual_seed(1)
    x = torch.randn(12, 5, dtype=torch.float64)
    sites = tuple(site for site in find_sites(model, x) if site.chain is not None)
    return Measurement(model, F.cross_entropy, Inputs((x,)), TARGETS, sites)


def blocks(**settings: bool) -> nn.Module:
    torch.manual_seed(0)
    return Blocks(**settings).double()


def test_zero_fan_outs_of_several_sites_share_a_pass_and_are_those_of_each_alone() -> None:
    model = blocks()
    together, gradmax = measured(model), GradMax()
    found = [gradmax.extend(site, 3, together, torch.Generator().manual_seed(0)) for site in together.sites]
    assert {one.form for one in found} == {"zero_fan_out"} and len(found) == 3
    before = together.forwards
    values = [dict(one.values) for one in found]
    assert together.forwards == before + 3  # one pass forward and backward
    for site, shared in zip(together.sites, values, strict=True):
        alone = dict(gradmax.extend(site, 3, measured(model), torch.Generator().manual_seed(0)).values)
        assert shared.keys() == alone.keys()
        assert all(torch.equal(shared[place], alone[place]) for place in alone)


def test_sites_that_share_a_tensor_are_measured_one_after_the_other() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    together = measured(model)
    values = {
        site: {(f"{number}.weight", 0): torch.randn(2, *shape, dtype=torch.float64)}
        for site, number, shape in zip(together.sites, (0, 2), ((5,), (4,)), strict=True)
    }
    answers = [together.ask_response(site, values[site], 2) for site in together.sites]
    alone = [measured(model).response(site, values[site], 2) for site in together.sites]
    assert all(torch.allclose(answer(), truth, rtol=1e-12) for answer, truth in zip(answers, alone, strict=True))
    assert together.forwards == 6


@pytest.mark.parametrize(("samples", "asked"), [(200, 50), (100, 32), (20, 20)])
def test_a_share_of_a_batch_is_its_first_samples_and_costs_no_more(samples: int, asked: int) -> None:
    model, (x, y) = blocks(), (torch.randn(samples, 5, dtype=torch.float64), torch.arange(samples) % 3)
    sites = measured(model).sites
    whole = Measurement(model, F.cross_entropy, Inputs((x,)), y, sites)
    part = Measurement(model, F.cross_entropy, Inputs((x[:asked],)), y[:asked], sites)
    values = {("first.0.weight", 0): torch.randn(2, 5, dtype=torch.float64)}
    found = whole.ask_gradients(sites[0], values, 2, share=4)()
    assert torch.allclose(found, part.ask_gradients(sites[0], values, 2)(), rtol=1e-12)
    assert whole.forwards == 3 * asked / samples


def test_slices_that_are_chosen_late_are_chosen_before_anything_changes() -> None:
    model = blocks()
    measurement = measured(model)
    found = [GradMax().extend(site, 2, measurement, torch.Generator()) for site in measurement.sites]
    growths = [Growth(site, 2, Extension(one.values)) for site, one in zip(measurement.sites, found, strict=True)]
    grow(model, growths)
    assert [first.out_features for first in model.get_submodule("first")] == [6, 6, 6]  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_reentrant_checkpoint_changes_nothing() -> None:
    plain, whole = measured(blocks()), measured(blocks(through_checkpoint=True))
    for one, other in zip(plain.sites, whole.sites, strict=True):
        assert torch.allclose(plain.gradient_matrix(one).matrix, whole.gradient_matrix(other).matrix, atol=1e-15)
    assert plain.gradient_square() == pytest.approx(whole.gradient_square(), rel=1e-12)


@pytest.mark.parametrize("through_checkpoint", [False, True])
def test_the_models_gradients_are_left_alone(through_checkpoint: bool) -> None:
    model = blocks(through_checkpoint=through_checkpoint)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 7.0)
    measurement = measured(model)
    measurement.gradient_matrix(measurement.sites[0])
    measurement.gradient_square()
    assert all(bool((parameter.grad == 7.0).all()) for parameter in model.parameters())


def test_the_square_asked_for_first_serves_the_matrices() -> None:
    measurement = measured(blocks())
    truth = torch.autograd.grad(
        F.cross_entropy(measurement.model(*measurement.inputs.args), TARGETS), list(measurement.model.parameters())
    )
    assert measurement.gradient_square() == pytest.approx(float(sum(one.square().sum() for one in truth)), rel=1e-12)
    measurement.gradient_matrix(measurement.sites[0])
    assert measurement.forwards == 3


# singular triplets of operators


SIZE, COUNT = EXACT_LIMIT + 40, 60


def with_values(sigma: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    sides = [torch.linalg.qr(torch.randn(SIZE, len(sigma), generator=generator)).Q for _ in range(2)]
    return sides[0] * sigma @ sides[1].T


@pytest.mark.parametrize(
    "sigma",
    [
        pytest.param(torch.cat([torch.full((COUNT,), 2.0), torch.full((200,), 1.0)]), id="many equal ones"),
        pytest.param(torch.ones(SIZE), id="all equal"),
        pytest.param(torch.linspace(2.0, 1.0, SIZE), id="flat"),
        pytest.param(0.5 ** torch.arange(30.0).clamp_max(12), id="fewer than wanted"),
    ],
)
def test_iteration_finds_nearly_all_of_the_energy(sigma: Tensor) -> None:
    matrix = with_values(sigma)
    left, found, right = top_singular(matrix, COUNT, torch.Generator().manual_seed(1))
    best = sigma[:COUNT].double().square().sum()
    captured = (left.double().T @ matrix.double()).square().sum()
    assert 0.999 * best <= captured <= best * (1 + 1e-5)
    assert len(found) == min(COUNT, len(sigma))
    assert torch.allclose(left.T @ left, torch.eye(len(found)), atol=1e-5)
    assert torch.allclose(right.norm(dim=0), torch.ones(len(found)), atol=1e-4)


class Counted:
    def __init__(self, matrix: Tensor):
        self.matrix, self.shape, self.columns = matrix, (matrix.shape[0], matrix.shape[1]), 0

    def times(self, vectors: Tensor) -> Tensor:
        self.columns += vectors.shape[1]
        return self.matrix @ vectors

    def transposed_times(self, vectors: Tensor) -> Tensor:
        self.columns += vectors.shape[1]
        return self.matrix.T @ vectors


def test_a_spectrum_that_falls_takes_few_products() -> None:
    matrix = with_values(torch.arange(1.0, SIZE + 1) ** -1.0)
    counted = Counted(matrix)
    top_singular_of(counted, 32, torch.Generator().manual_seed(0), matrix)
    assert counted.columns <= 2 * 32 * 6  # where subspace iteration takes 48 columns for each of its products


def test_an_operator_that_is_zero_has_no_triplets() -> None:
    matrix = torch.zeros(SIZE, SIZE)
    left, sigma, right = top_singular(matrix, 5, torch.Generator().manual_seed(0))
    assert (left.shape, len(sigma), right.shape) == ((SIZE, 0), 0, (SIZE, 0))
