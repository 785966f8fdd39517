"""What each initializer promises beyond the contract, against slow and obvious truths."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from growkit.config.growth import (
    FireflySettings,
    GradMaxOptSettings,
    Net2WiderSettings,
    SplittingSettings,
    TinySettings,
    VarianceTransferSettings,
)
from growkit.errors import GrowthRefused, TrainingError
from growkit.graph import GrowthSite, find_sites
from growkit.growth.base import Extended, Initializer
from growkit.growth.initializers import (
    Firefly,
    GaussianRandom,
    GradMax,
    GradMaxInverse,
    GradMaxOpt,
    Net2Wider,
    Splitting,
    Tiny,
    VarianceTransfer,
)
from growkit.growth.initializers.chain_pass import chain_pass, patches
from growkit.growth.initializers.splitting import lowest_eigenpairs
from growkit.growth.initializers.tiny import expressivity_bottleneck
from growkit.growth.rewriting import Rewriting
from growkit.growth.statistics import Measurement
from growkit.surgery import Extension, Growth, Inputs, function_change, grow, observe

TARGETS = torch.arange(40) % 4


class Case:
    """A model, the first of its sites, and a batch."""

    def __init__(self, *layers: nn.Module, shape: tuple[int, ...] = (5,), double: bool = False):
        torch.manual_seed(3)
        self.model: nn.Module = nn.Sequential(*copy.deepcopy(layers))
        for module in self.model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        self.inputs = torch.randn(40, *shape)
        if double:
            self.model, self.inputs = self.model.double(), self.inputs.double()
        self.loss: Callable[[Any, Tensor], Tensor] = F.cross_entropy
        self.targets = TARGETS
        self.site: GrowthSite = find_sites(self.model, self.inputs)[0]

    @property
    def measurement(self) -> Measurement:
        return Measurement(self.model, self.loss, Inputs((self.inputs,)), self.targets, (self.site,))

    def extend(self, initializer: Initializer, num_new: int = 2, seed: int = 0) -> Extended:
        return initializer.extend(self.site, num_new, self.measurement, torch.Generator().manual_seed(seed))

    def grown(self, extended: Extended, num_new: int = 2) -> nn.Module:
        """A widened copy."""
        model, width = copy.deepcopy(self.model), self.site.width
        Rewriting().write(model, {"": extended.rewrites})
        grow(model, [Growth(self.site, num_new, Extension(extended.values))])
        self.site.resize(width)
        return model

    def loss_of(self, model: nn.Module) -> float:
        return float(self.loss(copy.deepcopy(model).train()(self.inputs), self.targets).detach())


def mlp(activation: nn.Module, **more: Any) -> Case:
    return Case(nn.Linear(5, 6), activation, nn.Linear(6, 4), **more)


def conv(*between: nn.Module, stride: int = 2, **more: Any) -> Case:
    layers = (
        nn.Conv2d(2, 5, 3, stride),
        *between,
        nn.Conv2d(5, 4, 3, padding=1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return Case(*layers, shape=(2, 9, 8), **more)


# gradmax by other ways


def test_one_optimised_unit_comes_near_the_closed_form() -> None:
    case = mlp(nn.Tanh())
    closed, found = case.extend(GradMax(), 1), case.extend(GradMaxOpt(), 1)
    best = closed.facts["sigma"][0] * float(closed.values["2.weight", 1].norm())
    assert found.form == closed.form == "zero_fan_in"
    assert found.facts["gradient_norm_start"] < 0.95 * best
    assert 0.99 * best <= found.facts["gradient_norm"] <= best * (1 + 1e-5)


@pytest.mark.parametrize(
    "case",
    [Case(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 4)), conv(nn.BatchNorm2d(5), nn.ReLU())],
    ids=["linear", "conv, norm"],
)
def test_optimised_units_of_zero_fan_out_learn_about_as_fast_as_the_best_singular_vectors(case: Case) -> None:
    found = case.extend(GradMaxOpt())
    assert found.form == "zero_fan_out"
    norms = [
        float(case.measurement.response(case.site, one.values, len(next(iter(one.values.values())))).norm())
        for one in (found, case.extend(GradMaxInverse()), case.extend(GaussianRandom()))
    ]
    assert norms[0] == pytest.approx(found.facts["gradient_norm"], rel=1e-3)
    assert norms[0] > 0.95 * norms[1] and norms[0] > 1.3 * norms[2]


class Once(torch.autograd.Function):
    """Tanh without a second derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(y := torch.tanh(x))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class TanhOnce(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) if torch.compiler.is_exporting() else Once.apply(x)


def test_what_cannot_be_differentiated_twice_is_refused() -> None:
    case = mlp(TanhOnce())
    with pytest.raises(GrowthRefused, match="needs operations with a second derivative, and at 0 torch has none"):
        case.extend(GradMaxOpt())


def test_the_inverse_form_is_taken_where_the_other_one_would_do() -> None:
    extended = mlp(nn.Tanh()).extend(GradMaxInverse())
    assert extended.form == "zero_fan_out" and set(extended.values) == {("0.weight", 0), ("0.bias", 0)}


# firefly


def test_firefly_lowers_the_loss_of_the_batch_at_its_norms() -> None:
    case = mlp(nn.Tanh())
    extended = case.extend(Firefly(FireflySettings(scale=0.4, epsilon=0.7, norm="fixed")))
    assert extended.values["0.weight", 0].norm(dim=1).tolist() == pytest.approx([0.7, 0.7], rel=1e-4)
    assert extended.values["2.weight", 1].norm(dim=0).tolist() == pytest.approx([0.4, 0.4], rel=1e-4)
    facts = extended.facts
    assert case.loss_of(case.model) == pytest.approx(facts["loss_before"], rel=1e-5)
    assert case.loss_of(case.grown(extended)) == pytest.approx(facts["loss"], rel=1e-5)
    assert facts["loss"] < facts["loss_start"] and facts["loss"] < facts["loss_before"]


def test_a_batch_norm_knows_fireflys_units_from_the_start() -> None:
    case = conv(nn.BatchNorm2d(5), nn.ReLU())
    extended = case.extend(Firefly(FireflySettings(steps=3)))
    seen = case.grown(extended)[0](case.inputs)[:, -2:].transpose(0, 1).flatten(1)
    assert torch.allclose(extended.values["1.running_mean", 0], seen.mean(1), atol=1e-5)
    assert torch.allclose(extended.values["1.running_var", 0], seen.var(1), rtol=1e-4)


# variance transfer


@pytest.mark.parametrize(
    ("case", "rescaled", "divided"),
    [
        (mlp(nn.ReLU()), "fan_in", {"0.weight", "0.bias"}),
        (mlp(nn.Tanh()), "none", set()),
        (conv(nn.BatchNorm2d(5), nn.ReLU()), "norm", {"1.weight", "1.bias"}),
        (conv(nn.BatchNorm2d(5), nn.GELU()), "none", set()),
        (conv(nn.ReLU(), nn.BatchNorm2d(5)), "norm", {"2.weight", "2.bias"}),
    ],
    ids=["relu", "tanh", "norm, relu", "norm, gelu", "relu, norm"],
)
@pytest.mark.parametrize("exponent", [1.0, 0.5])
def test_old_fan_outs_are_rescaled_where_the_unit_can_be_divided(
    case: Case, rescaled: str, divided: set[str], exponent: float
) -> None:
    extended = case.extend(VarianceTransfer(VarianceTransferSettings(exponent=exponent)), 3)
    consumer = next(name for name, _ in extended.values if extended.values.get((name, 1)) is not None)
    ratio = (case.site.width / (case.site.width + 3)) ** exponent
    tensors = dict(case.model.named_parameters())
    assert extended.facts["rescaled"] == rescaled and extended.facts["ratio"] == pytest.approx(ratio)
    assert extended.rewrites.keys() == (divided | {consumer} if divided else set())
    for name, values in extended.rewrites.items():
        assert torch.allclose(values, tensors[name] * (ratio if name == consumer else 1 / ratio))
    before, after = observe(case.model, Inputs((case.inputs,))), case.grown(extended, 3)
    assert function_change(before, observe(after, Inputs((case.inputs,)))).worst <= 1e-5


def test_variance_transfer_rescales_nothing_at_exponent_0() -> None:
    extended = mlp(nn.ReLU()).extend(VarianceTransfer(VarianceTransferSettings(exponent=0.0)))
    assert extended.facts["rescaled"] == "none" and not extended.rewrites


def test_new_weights_have_the_norms_of_the_new_width_and_are_reported() -> None:
    case = mlp(nn.ReLU())
    extended = case.extend(VarianceTransfer(), 2)
    rows, columns = case.model[0].weight.norm(dim=1).mean(), case.model[2].weight.norm(dim=0).mean()
    assert torch.allclose(extended.values["0.weight", 0].norm(dim=1), rows.expand(2))
    assert torch.allclose(extended.values["2.weight", 1].norm(dim=0), 0.75 * columns.expand(2))
    grown = case.grown(extended)
    norms = {"0.weight": grown[0].weight, "2.weight": grown[2].weight.T}
    for name, weight in norms.items():
        parts = [weight[:6].norm().item(), weight[6:].norm().item()]
        assert extended.facts["part_norms"][name] == pytest.approx(parts, rel=1e-5)


# copies


def test_copies_share_the_fan_out_of_their_origin_about_evenly() -> None:
    case = mlp(nn.Tanh())
    extended = case.extend(Net2Wider(Net2WiderSettings(noise=0.3)), 14)
    copied = extended.facts["copied"]
    counts = [copied.count(unit) for unit in range(6)]
    assert sorted(counts) == [2, 2, 2, 2, 3, 3]
    shares = extended.values["2.weight", 1] / case.model[2].weight.detach()[:, copied]
    for number, unit in enumerate(copied):
        count = counts[unit] + 1
        assert torch.allclose(shares[:, number], shares[0, number].expand(4), rtol=1e-4)
        assert 0.7 / count - 1e-6 <= float(shares[0, number]) <= 1.3 / count + 1e-6
    assert torch.equal(extended.values["0.weight", 0], case.model[0].weight[copied])


def test_without_noise_all_copies_get_the_same_share() -> None:
    case = mlp(nn.Tanh())
    extended = case.extend(Net2Wider(Net2WiderSettings(noise=0.0)), 6)
    assert torch.allclose(extended.rewrites["2.weight"], case.model[2].weight / 2)


def test_dead_units_are_not_copied() -> None:
    case = mlp(nn.ReLU())
    with torch.no_grad():
        case.model[0].bias[:4] = -100.0
    assert set(case.extend(Net2Wider(), 5).facts["copied"]) == {4, 5}
    with torch.no_grad():
        case.model[0].bias[:] = -100.0
    with pytest.raises(GrowthRefused, match="net2wider copies units that learn, and none at 0 has a gradient"):
        case.extend(Net2Wider())


class Sequence(nn.Module):
    """A recurrent width, whose units read one another."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[0][:, -1])


class Joined(nn.Module):
    """A concatenation, and a convolution that is flattened."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1, groups=1)
        self.depthwise, self.head = nn.Conv2d(7, 7, 3, groups=7), nn.Linear(7 * 6 * 6, 4)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.sigmoid(self.first(x))
        return self.head(self.depthwise(torch.cat([first, torch.tanh(self.second(first))], 1)).flatten(1))


class Heads(nn.Module):
    """Attention whose heads are units."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (
            nn.Linear(5, 6),
            nn.Linear(5, 6),
            nn.Linear(5, 6),
            nn.Linear(6, 5),
        )
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = [f(x).unflatten(-1, (-1, 3)).transpose(1, 2) for f in (self.query, self.key, self.value)]
        mixed = F.scaled_dot_product_attention(*parts).transpose(1, 2).flatten(2)
        return self.head((x + self.out(mixed)).mean(1))


@pytest.mark.parametrize(
    ("model", "shape", "count"),
    [(Sequence, (4, 5), 1), (Joined, (2, 8, 8), 2), (Heads, (4, 5), 1)],
    ids=lambda v: str(v)[-20:],
)
@pytest.mark.parametrize("initializer", [Net2Wider(), VarianceTransfer()], ids=lambda one: one.name)
def test_units_of_any_form_are_copied_and_paired_exactly(
    model: type[nn.Module], shape: tuple[int, ...], count: int, initializer: Initializer
) -> None:
    torch.manual_seed(0)
    net, x = model(), torch.randn(40, *shape)
    served = [site for site in find_sites(net, x) if initializer.refuses(site) is None][:count]
    assert len(served) == count
    before = observe(net, Inputs((x,)))
    for site in served:
        measurement = Measurement(net, F.cross_entropy, Inputs((x,)), TARGETS, (site,))
        extended = initializer.extend(site, 3, measurement, torch.Generator().manual_seed(0))
        rewriting = Rewriting()
        rewriting.write(net, {site.name: extended.rewrites})
        edit = grow(net, [Growth(site, 3, Extension(extended.values))])
        assert function_change(before, observe(net, Inputs((x,)))).worst <= 1e-5, site.name
        edit.undo()
        rewriting.undo()


# splitting


def splitting_matrices(case: Case) -> list[Tensor]:
    """S of every unit by torch's Hessian: of sum dL/dh h over the weights of one unit, dL/dh held fixed."""
    model, names = copy.deepcopy(case.model).train(), ["0.weight", "0.bias"]
    hidden = [index for index, layer in enumerate(model) if isinstance(layer, nn.Linear | nn.Conv2d)][1]
    h = model[:hidden](case.inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model[hidden:](h), TARGETS), h)
    weight, bias = (dict(model.named_parameters())[name].detach() for name in names)

    def linear(row: Tensor, unit: int) -> Tensor:
        w = torch.cat([weight[:unit], row[:-1].view_as(weight[:1]), weight[unit + 1 :]])
        b = torch.cat([bias[:unit], row[-1:], bias[unit + 1 :]])
        values = {"0.weight": w, "0.bias": b}
        return (torch.func.functional_call(model[:hidden], values, (case.inputs,)) * gradient).sum()

    rows = torch.cat([weight.flatten(1), bias[:, None]], 1)
    return [
        torch.autograd.functional.hessian(lambda row, u=unit: linear(row, u), rows[unit]) for unit in range(len(rows))
    ]  # type: ignore[misc]


@pytest.mark.parametrize(
    "case",
    [mlp(nn.Tanh(), double=True), conv(nn.SiLU(), double=True), conv(nn.BatchNorm2d(5), nn.Softplus(), double=True)],
    ids=["linear", "conv", "norm"],
)
def test_units_split_along_the_lowest_eigenvectors_of_their_splitting_matrices(case: Case) -> None:
    extended = case.extend(Splitting())
    lowest = [torch.linalg.eigvalsh(matrix)[0] for matrix in splitting_matrices(case)]
    order = torch.stack(lowest).argsort()[:2].tolist()
    assert extended.facts["split"] == order
    assert extended.facts["eigenvalues"] == pytest.approx([float(lowest[unit]) for unit in order], rel=1e-5, abs=1e-8)
    new, old = extended.values["0.weight", 0].flatten(1), extended.rewrites["0.weight"][order].flatten(1)
    bias = (extended.rewrites["0.bias"][order] - extended.values["0.bias", 0])[:, None]
    for unit, step in zip(order, torch.cat([old - new, bias], 1), strict=True):
        step = F.normalize(step, dim=0)
        assert float(step @ splitting_matrices(case)[unit] @ step) == pytest.approx(float(lowest[unit]), rel=1e-5)


def test_a_split_lowers_the_loss_by_half_the_eigenvalue_times_the_square_of_the_step() -> None:
    case = mlp(nn.Tanh(), double=True)
    extended = case.extend(Splitting(SplittingSettings(epsilon=1e-3)), 1)
    step = (torch.cat([extended.values["0.weight", 0][0], extended.values["0.bias", 0]])).sub(
        torch.cat([case.model[0].weight, case.model[0].bias[:, None]], 1).detach()[extended.facts["split"][0]]
    )
    predicted = 0.5 * extended.facts["eigenvalues"][0] * float(step.square().sum())
    gained = case.loss_of(case.grown(extended, 1)) - case.loss_of(case.model)
    assert predicted < 0 and gained == pytest.approx(predicted, rel=1e-2)


def test_straight_activations_and_too_many_units_are_refused() -> None:
    with pytest.raises(GrowthRefused, match=r"at 0 all splitting matrices are 0 .* \(as with torch's ReLU\)"):
        mlp(nn.ReLU()).extend(Splitting())
    with pytest.raises(GrowthRefused, match="0 can grow by at most its 6 units at an event, got 7"):
        mlp(nn.Tanh()).extend(Splitting(), 7)


def test_units_that_would_gain_nothing_are_split_and_said_or_an_error() -> None:
    case = mlp(nn.Tanh())
    gaining = sum(float(torch.linalg.eigvalsh(matrix)[0]) < 0 for matrix in splitting_matrices(case))
    facts = case.extend(Splitting(), 6).facts
    assert facts.get("beyond_negative", 0) == 6 - gaining
    convex = Case(nn.Linear(5, 6), nn.Softplus(), nn.Linear(6, 4))
    convex.model[2].weight.data.abs_()
    convex.loss = lambda outputs, targets: outputs.mean()  # all of dL/dh is positive, and softplus is convex
    assert convex.extend(Splitting(), 2).facts["beyond_negative"] == 2
    with pytest.raises(GrowthRefused, match="which 0 units at 0 have, fewer than 2; .*beyond_negative: split"):
        convex.extend(Splitting(SplittingSettings(beyond_negative="error")), 2)


@pytest.mark.parametrize("size", [1, 4, 40])
def test_lowest_eigenpairs_agree_with_torch(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.randn(3, size, size, dtype=torch.float64, generator=generator)
    matrices = matrices + matrices.transpose(1, 2)
    matrices[1] = 2.0 * torch.eye(size)  # every vector is one of its eigenvectors
    values, vectors = lowest_eigenpairs(
        lambda v: (matrices @ v[:, :, None]).squeeze(2), matrices[:, 0], generator, steps=size
    )
    assert torch.allclose(values, torch.linalg.eigvalsh(matrices)[:, 0], rtol=1e-8)
    assert torch.allclose((matrices @ vectors[:, :, None]).squeeze(2), values[:, None] * vectors, atol=1e-7)
    assert torch.allclose(vectors.norm(dim=1), torch.ones(3, dtype=torch.float64))


# tiny


def least_squares(inputs: Tensor, outputs: Tensor) -> Tensor:
    return torch.linalg.lstsq(inputs, outputs, driver="gelsd").solution


def test_all_units_of_the_bottleneck_together_are_the_best_linear_answer() -> None:
    """sum_k w_out w_in' over all k is the least squares map from the inputs to what own weights leave over."""
    case = mlp(nn.Tanh(), double=True)
    seen = chain_pass(case.measurement, case.site)
    weights = case.model[0].weight.detach(), case.model[2].weight.detach()
    fan_out, sigma, fan_in = expressivity_bottleneck(seen, *weights, 10, torch.Generator())
    ones = torch.ones(40, 1, dtype=torch.float64)
    x, h = torch.cat([case.inputs, ones], 1), torch.cat([torch.tanh(case.model[0](case.inputs)).detach(), ones], 1)
    z = case.model(case.inputs).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(z, TARGETS), z)
    residual = -gradient - h @ least_squares(h, -gradient)
    truth = least_squares(x, residual).T
    assert torch.allclose(fan_out @ fan_in.T, truth, atol=1e-9 + 1e-6 * float(truth.abs().max()))
    assert len(sigma) == 3 and bool((sigma[:-1] >= sigma[1:]).all())  # the gradients of classes add up to 0


@pytest.mark.parametrize("stride", [1, 2])
def test_patches_are_what_torchs_unfold_gives(stride: int) -> None:
    case = conv(nn.Tanh(), stride=stride, double=True)
    seen = chain_pass(case.measurement, case.site)
    unfolded = F.unfold(case.inputs, 3, stride=stride).transpose(1, 2).flatten(0, 1)
    mine = patches(seen.producer, case.model[0].weight.detach())
    assert torch.allclose(mine[:, :-1], unfolded) and bool((mine[:, -1] == 1).all())


@pytest.mark.parametrize("case", [mlp(nn.ReLU()), mlp(nn.GELU()), conv(nn.SELU())], ids=["relu", "gelu", "conv"])
def test_tiny_lowers_the_loss_of_the_batch_and_says_to_what(case: Case) -> None:
    extended = case.extend(Tiny(), 2)
    assert case.loss_of(case.model) == pytest.approx(extended.facts["loss_before"], rel=1e-5)
    assert case.loss_of(case.grown(extended)) == pytest.approx(extended.facts["loss"], rel=1e-5)
    assert extended.facts["loss"] < extended.facts["loss_before"] - 1e-4


def test_tiny_fills_beyond_the_rank_with_random_units_of_zero_fan_out_or_says_so() -> None:
    case = mlp(nn.Tanh())
    extended = case.extend(Tiny(), 5)
    assert extended.facts["random_beyond_rank"] == 2
    assert extended.values["2.weight", 1].any(0).tolist() == [True] * 3 + [False] * 2
    assert bool(extended.values["0.weight", 0].any(1).all())
    with pytest.raises(
        GrowthRefused, match="as the bottleneck at 0 has rank, 3 on the growth batch, got 5; .*: random"
    ):
        case.extend(Tiny(TinySettings(beyond_rank="error")), 5)


def test_tiny_refuses_a_norm_in_between() -> None:
    reason = Tiny().refuses(conv(nn.BatchNorm2d(5), nn.ReLU()).site)
    assert reason is not None and "a BatchNorm stands in between" in reason


# what no batch should be

ASKS_THE_BATCH = [GradMaxOpt(GradMaxOptSettings(steps=2)), Net2Wider(), Splitting(), Tiny()]


@pytest.mark.parametrize("initializer", ASKS_THE_BATCH, ids=lambda one: one.name)
def test_a_batch_without_gradient_is_refused(initializer: Initializer) -> None:
    case = mlp(nn.Tanh())
    case.loss, case.targets = F.mse_loss, case.model(case.inputs).detach()
    with pytest.raises(GrowthRefused, match="growth.fallback"):
        case.extend(initializer)


@pytest.mark.parametrize("initializer", [*ASKS_THE_BATCH, Firefly()], ids=lambda one: one.name)
def test_a_loss_that_is_not_finite_is_an_error_of_training(initializer: Initializer) -> None:
    case = mlp(nn.Tanh())
    case.inputs[0] = float("nan")
    with pytest.raises(TrainingError, match="the loss must be finite to grow at 0, got nan on the growth batch"):
        case.extend(initializer)
    assert case.site.width == 6


@pytest.mark.parametrize(
    "initializer", [*ASKS_THE_BATCH, Firefly(), GradMax(), GradMaxInverse()], ids=lambda one: one.name
)
def test_equal_singular_values_are_no_trouble(initializer: Initializer) -> None:
    """Every input and every class plays the same part."""
    case = Case(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4), shape=(4,))
    case.inputs, case.targets = torch.eye(4).repeat(10, 1), torch.arange(4).repeat(10)
    for layer in (case.model[0], case.model[2]):
        nn.init.eye_(layer.weight)
        nn.init.zeros_(layer.bias)
    if initializer.name == "tiny":
        nn.init.zeros_(case.model[0].weight)  # else four old units answer four inputs, and nothing is left over
    extended = case.extend(initializer)
    assert all(bool(values.isfinite().all()) for values in extended.values.values())
    assert bool(case.grown(extended)(case.inputs).isfinite().all())
