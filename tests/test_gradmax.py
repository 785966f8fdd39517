from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.growth import GradMaxSettings, RandomSettings
from growkit.errors import GrowthRefused, TrainingError
from growkit.graph import Chain, GrowthSite, find_sites
from growkit.growth.initializers import GaussianRandom, GradMax
from growkit.growth.initializers.singular import EXACT_LIMIT, top_singular
from growkit.growth.statistics import GradientMatrix, Measurement, gradient
from growkit.surgery import Extension, Growth, Inputs, grow

TARGETS = torch.arange(12) % 3


class Line:
    """A chain that needs no trace: two weights of a model, and what stands between them."""

    def __init__(self, model: nn.Module, producer: str, consumer: str, between: tuple[str, ...] = ("tanh",)):
        self.name = producer.rpartition(".")[0]
        self.chain = Chain(producer, consumer, between)
        self.model = model


def gradient_matrix(model: nn.Module, x: Tensor, between: tuple[str, ...] = ("tanh",)) -> GradientMatrix:
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    site: Any = Line(model, names[0], names[1], between)
    return Measurement(model, F.cross_entropy, Inputs((x,)), TARGETS[: len(x)], (site,)).gradient_matrix(site)


def by_autograd(model: nn.Module, x: Tensor) -> Tensor:
    """The matrix row by row: one silent unit, its fan-out a basis vector, the gradient of its zero fan-in."""
    (first, producer), (second, consumer) = [(n, p) for n, p in model.named_parameters() if p.dim() > 1][:2]
    bias_name = f"{first.rpartition('.')[0]}.bias"
    bias = dict(model.named_parameters()).get(bias_name)
    rows, size = [], consumer[:, 0].numel()
    for index in range(size):
        wide = copy.deepcopy(model)
        fan_out = torch.zeros(size, dtype=x.dtype)
        fan_out[index] = 1.0
        made, read = wide.get_parameter(first), wide.get_parameter(second)
        made.data = torch.cat([producer.data, torch.zeros_like(producer.data[:1])])
        read.data = torch.cat([consumer.data, fan_out.view_as(consumer[:, :1])], 1)
        if bias is not None:
            wide.get_parameter(bias_name).data = torch.cat([bias.data, bias.data.new_zeros(1)])
        for norm in wide.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                widen_norm(norm)
        F.cross_entropy(wide.train()(x), TARGETS[: len(x)]).backward()
        row = [made.grad[-1].flatten()]
        if bias is not None:
            row.append(wide.get_parameter(bias_name).grad[-1:])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def widen_norm(norm: nn.modules.batchnorm._BatchNorm) -> None:
    one, zero = norm.weight.data.new_ones(1), norm.weight.data.new_zeros(1)
    norm.weight.data, norm.bias.data = torch.cat([norm.weight.data, one]), torch.cat([norm.bias.data, zero])
    norm.running_mean, norm.running_var = torch.cat([norm.running_mean, zero]), torch.cat([norm.running_var, one])


class ConvNet(nn.Module):
    """Two convolutions, whatever their settings, and the mean of what they leave."""

    def __init__(self, dims: int, first: dict[str, Any], second: dict[str, Any], between: nn.Module | None = None):
        super().__init__()
        conv: Any = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.first, self.second = conv(2, 4, **first), conv(4, 3, **second)
        self.between = nn.Tanh() if between is None else between
        self.weights = torch.linspace(0.5, 1.5, 1000, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(self.between(self.first(x))).flatten(2)
        return (y * self.weights[: y.shape[2]]).sum(2)  # a plain mean would hide mixed-up positions


def conv_settings(kernel: int, stride: int, padding: Any, dilation: int, bias: bool = False) -> dict[str, Any]:
    return {"kernel_size": kernel, "stride": stride, "padding": padding, "dilation": dilation, "bias": bias}


SIZES = {1: (13,), 2: (11, 8), 3: (7, 6, 8)}
GRID_2D = [
    (first, second)
    for first in [(3, 1, 1, 1), (3, 2, 1, 1), (2, 1, 0, 1), (1, 3, 0, 1), (3, 1, 2, 2)]
    for second in [(3, 1, 1, 1), (3, 2, 1, 1), (2, 2, 1, 1), (2, 1, 0, 2), (4, 3, 2, 1), (1, 2, 0, 1)]
]


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("first", "second"), GRID_2D, ids=str)
def test_the_matrix_of_convolutions_is_what_autograd_measures(first: tuple, second: tuple, bias: bool) -> None:
    check_convolution(2, conv_settings(*first, bias=bias), conv_settings(*second))


@pytest.mark.parametrize("dims", [1, 3])
@pytest.mark.parametrize("first", [(3, 2, 1, 1), (2, 1, 1, 1)], ids=str)
@pytest.mark.parametrize("second", [(2, 2, 1, 1), (3, 1, 2, 2)], ids=str)
def test_the_matrix_in_one_and_three_dimensions(dims: int, first: tuple, second: tuple) -> None:
    check_convolution(dims, conv_settings(*first, bias=True), conv_settings(*second))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("kernel", [2, 3, 4])
@pytest.mark.parametrize("dilation", [1, 3])
def test_the_matrix_with_padding_by_name(dims: int, kernel: int, dilation: int) -> None:
    same = conv_settings(kernel, 1, "same", dilation, bias=True)
    check_convolution(dims, same, same | {"bias": False})


def test_the_matrix_with_valid_padding_and_uneven_settings() -> None:
    first = {"kernel_size": (3, 2), "stride": (1, 2), "padding": "valid", "dilation": (2, 1)}
    second = {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2), "dilation": (1, 2)}
    check_convolution(2, first, second)


def check_convolution(dims: int, first: dict[str, Any], second: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model, x = ConvNet(dims, first, second).double(), torch.randn(4, 2, *SIZES[dims], dtype=torch.float64)
    truth = by_autograd(model, x)
    for composed in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gradient, "is_worth_composing", lambda *_, composed=composed: composed)
            found = gradient_matrix(model, x)
        assert found.matrix.shape == truth.shape
        assert torch.allclose(found.matrix, truth, rtol=1e-9, atol=1e-12)
    check_products(model, x, truth)


def check_products(model: nn.Module, x: Tensor, truth: Tensor, between: tuple[str, ...] = ("tanh",)) -> None:
    """The operator gives the products of the matrix."""
    names = [name for name, p in model.named_parameters() if p.dim() > 1]
    site: Any = Line(model, names[0], names[1], between)
    operator = Measurement(model, F.cross_entropy, Inputs((x,)), TARGETS[: len(x)], (site,)).gradient_operator(site)
    fan_in, fan_out = (torch.randn(size, 3, dtype=torch.float64) for size in reversed(truth.shape))
    assert operator.shape == tuple(truth.shape)
    assert torch.allclose(operator.times(fan_in), truth @ fan_in, rtol=1e-9, atol=1e-12)
    assert torch.allclose(operator.transposed_times(fan_out), truth.T @ fan_out, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [(5,), (4, 5)], ids=["vectors", "tokens"])
def test_the_matrix_of_linear_layers_is_what_autograd_measures(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)

    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y if y.dim() == 2 else (y * torch.arange(1.0, 5.0, dtype=y.dtype)[:, None]).sum(1)

    model = Net(nn.Linear(5, 6, bias=bias), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(12, *shape, dtype=torch.float64)
    truth = by_autograd(model, x)
    assert torch.allclose(gradient_matrix(model, x).matrix, truth, rtol=1e-9, atol=1e-12)
    check_products(model, x, truth)


class Functional(nn.Module):
    """Raw parameters; the activation overwrites its input."""

    def __init__(self) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(4, 2, 3, 3, dtype=torch.float64))
        self.w2 = nn.Parameter(torch.randn(3, 4, 3, 3, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.conv2d(weight=self.w1, input=x, stride=2)
        return F.conv2d(F.elu_(hidden), self.w2, None, 1, 1).amax((2, 3))


def test_the_matrix_of_a_functional_model() -> None:
    torch.manual_seed(0)
    model, x = Functional(), torch.randn(6, 2, 9, 8, dtype=torch.float64)
    assert torch.allclose(gradient_matrix(model, x).matrix, by_autograd(model, x), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("conv", [False, True], ids=["linear", "conv"])
def test_with_batch_norm_between_the_matrix_is_centred(conv: bool) -> None:
    """Autograd's rows are gamma / sqrt(eps) times as long: the norm blows the first gradient up."""
    torch.manual_seed(0)
    between: list[nn.Module] = [nn.BatchNorm2d(4) if conv else nn.BatchNorm1d(4), nn.Tanh()]
    if conv:
        net = ConvNet(2, conv_settings(3, 2, 1, 1), conv_settings(3, 1, 1, 1), nn.Sequential(*between))
    else:
        net = nn.Sequential(nn.Linear(5, 4), *between, nn.Linear(4, 3))
    model = net.double()
    x = torch.randn(12, *((2, 9, 8) if conv else (5,)), dtype=torch.float64)
    found, truth = gradient_matrix(model, x, ("batch_norm", "tanh")).matrix, by_autograd(model, x)
    assert torch.allclose(found / math.sqrt(1e-5), truth, rtol=1e-6, atol=1e-8)
    assert not torch.allclose(gradient_matrix(model, x).matrix / math.sqrt(1e-5), truth, rtol=1e-2, atol=1e-8)


def test_a_gradient_that_is_not_finite_is_named() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    x = torch.full((4, 5), float("nan"))
    with pytest.raises(TrainingError, match=r"the gradient at 0 must be finite"):
        gradient_matrix(model, x)


# GradMax on traced models


def mlp(activation: nn.Module | None = None) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 6), activation or nn.Tanh(), nn.Linear(6, 8), nn.Flatten())


def measured(model: nn.Module, x: Tensor, targets: Tensor | None = None) -> tuple[GrowthSite, Measurement]:
    site = find_sites(model, x)[0]
    targets = torch.randn(len(x), 8, dtype=x.dtype) if targets is None else targets
    return site, Measurement(model, F.mse_loss, Inputs((x,)), targets, (site,))


def fan_in_gradient(measurement: Measurement, site: GrowthSite, values: Any) -> Tensor:
    """Gradient of the new units' zero fan-in with its bias, [K, C*U + 1]."""
    model = copy.deepcopy(measurement.model)
    edit = grow(model, [Growth(site, next(iter(values.values())).shape[1], Extension(values))])
    measurement.loss(model(*measurement.inputs.args), measurement.targets).backward()
    new = slice(-next(iter(values.values())).shape[1], None)
    gradient = torch.cat([model[0].weight.grad[new].flatten(1), model[0].bias.grad[new, None]], 1)
    edit.undo()
    return gradient


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ["linear", "conv"])
def test_singular_values_are_the_measured_gradient_norms(name: str) -> None:
    if name == "linear":
        model, x = mlp().double(), torch.randn(40, 5, dtype=torch.float64)
    else:
        torch.manual_seed(1)
        tail = (nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten())
        model = nn.Sequential(nn.Conv2d(2, 3, 3, 2), nn.ELU(), nn.Conv2d(3, 4, 3, padding=1), *tail).double()
        x = torch.randn(20, 2, 9, 9, dtype=torch.float64)
    site, measurement = measured(model, x)
    extended = GradMax().extend(site, 4, measurement, generator())
    assert extended.form == "zero_fan_in"
    (fan_out,) = extended.values.values()
    norms = fan_in_gradient(measurement, site, extended.values).norm(dim=1)
    lengths = fan_out.transpose(0, 1).flatten(1).norm(dim=1)
    assert (norms / lengths).tolist() == pytest.approx(extended.facts["sigma"], rel=1e-6)


def test_gradmax_beats_orthonormal_frames_of_the_same_norm() -> None:
    """Ky Fan; without orthogonality the claim would be false: k copies of the first vector do better."""
    site, measurement = measured(mlp(), torch.randn(40, 5))
    extended = GradMax().extend(site, 3, measurement, generator())
    ((key, fan_out),) = extended.values.items()
    length = fan_out[:, 0].norm()
    best = fan_in_gradient(measurement, site, extended.values).norm()
    for seed in range(20):
        frame = torch.linalg.qr(torch.randn(8, 3, generator=generator(seed))).Q * length
        assert fan_in_gradient(measurement, site, {key: frame}).norm() <= best * (1 + 1e-5)
    copies = fan_out[:, :1].expand(-1, 3).contiguous()
    assert fan_in_gradient(measurement, site, {key: copies}).norm() > best


def test_one_gradmax_unit_beats_any_unit_of_the_same_norm() -> None:
    site, measurement = measured(mlp(), torch.randn(40, 5))
    best = GradMax().extend(site, 1, measurement, generator())
    rival = GaussianRandom(RandomSettings()).extend(site, 1, measurement, generator())
    mine, theirs = (fan_in_gradient(measurement, site, e.values).norm() for e in (best, rival))
    assert mine >= theirs


@pytest.mark.parametrize(
    ("activation", "value", "slope"),
    [
        (nn.Tanh(), 0.0, 1.0),
        (nn.ReLU(), 0.0, 0.0),
        (nn.ReLU(inplace=True), 0.0, 0.0),
        (nn.ReLU6(), 0.0, 0.0),
        (nn.LeakyReLU(), 0.0, 0.01),
        (nn.GELU(), 0.0, 0.5),
        (nn.SiLU(inplace=True), 0.0, 0.5),
        (nn.SELU(), 0.0, 1.7581),
        (nn.Sigmoid(), 0.5, 0.25),
        (nn.Softplus(), math.log(2), 0.5),
        (nn.AlphaDropout(0.5), 0.7791, 1.0),  # silent in eval mode only
    ],
    ids=lambda a: str(a) if isinstance(a, nn.Module) else "",
)
def test_what_an_activation_does_at_zero_is_measured(activation: nn.Module, value: float, slope: float) -> None:
    site, measurement = measured(mlp(activation), torch.randn(40, 5))
    facts = measurement.activation(site)
    assert (facts.value, facts.slope) == pytest.approx((value, slope), abs=1e-3)


class Clamp(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(min=0.0)


def test_the_form_at_a_clamp_follows_its_slope_on_this_torch() -> None:
    x = torch.zeros(1, requires_grad=True)
    x.clamp(min=0.0).backward()
    assert x.grad is not None
    slope = float(x.grad)
    site, measurement = measured(mlp(Clamp()), torch.randn(40, 5))
    assert measurement.activation(site).slope == slope
    form = GradMax().extend(site, 2, measurement, generator()).form
    assert form == ("zero_fan_in" if slope else "zero_fan_out")


def test_zero_fan_out_takes_the_units_with_the_largest_measured_gradient() -> None:
    site, measurement = measured(mlp(nn.ReLU()), torch.randn(40, 5))
    extended = GradMax().extend(site, 2, measurement, generator())
    assert extended.form == "zero_fan_out" and set(extended.values) == {("0.weight", 0), ("0.bias", 0)}
    mine = measurement.response(site, extended.values, 2).square().sum()
    rivals = []
    for seed in range(10):
        values = GaussianRandom().extend(site, 2, measurement, generator(seed)).values
        rivals.append(measurement.response(site, values, 2).square().sum())
    assert mine > torch.stack(rivals).mean()


def test_zero_fan_out_makes_no_unit_twice_under_an_odd_activation() -> None:
    """tanh(-v x) = -tanh(v x): a direction and its opposite are one unit."""
    site, measurement = measured(mlp(), torch.randn(40, 5))
    extended = GradMax(GradMaxSettings(form="zero_fan_out")).extend(site, 3, measurement, generator())
    rows = torch.cat([extended.values["0.weight", 0], extended.values["0.bias", 0][:, None]], 1)
    cosines = F.normalize(rows) @ F.normalize(rows).T
    assert (cosines - torch.eye(3)).abs().max() < 0.999


def test_units_beyond_the_rank_are_random_and_said() -> None:
    site, measurement = measured(mlp(), torch.randn(40, 5))  # a matrix [8, 6]
    extended = GradMax().extend(site, 9, measurement, generator())
    assert len(extended.facts["sigma"]) == 6 and extended.facts["random_beyond_rank"] == 3
    lengths = extended.values["2.weight", 1].norm(dim=0)
    assert torch.allclose(lengths, lengths[:1].expand(9))


def test_units_beyond_the_rank_can_be_an_error() -> None:
    site, measurement = measured(mlp(), torch.randn(40, 5))
    with pytest.raises(
        GrowthRefused, match="as many units as the gradient matrix has rank, 6 at 0, got 9; grow by fewer"
    ):
        GradMax(GradMaxSettings(beyond_rank="error")).extend(site, 9, measurement, generator())


def test_without_any_gradient_all_units_are_random() -> None:
    model, x = mlp(), torch.randn(40, 5)
    site, measurement = measured(model, x, model(x).detach())
    extended = GradMax().extend(site, 2, measurement, generator())
    assert extended.facts == {"sigma": [], "random_beyond_rank": 2}


def test_measuring_leaves_the_model_untouched_even_if_it_fails() -> None:
    model, x = mlp(nn.BatchNorm1d(6)), torch.randn(40, 5)
    site, measurement = measured(model, x)
    model(x).sum().backward()
    model.eval()
    before = [*(t.clone() for t in model.state_dict().values()), *(p.grad.clone() for p in model.parameters())]
    stream = torch.get_rng_state()

    def unchanged() -> bool:
        after = [*model.state_dict().values(), *(p.grad for p in model.parameters())]
        modes = not any(module.training for module in model.modules())
        same = all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
        return same and modes and torch.equal(stream, torch.get_rng_state()) and site.width == 6

    GradMax().extend(site, 2, measurement, generator())
    assert unchanged()

    def broken(outputs: Any, targets: Tensor) -> Tensor:
        raise RuntimeError("no loss")

    failing = Measurement(model, broken, Inputs((x,)), TARGETS, (site,))
    with pytest.raises(RuntimeError, match="no loss"):
        failing.gradient_matrix(site)
    assert unchanged()


# singular vectors

MATRICES: dict[str, Callable[[], Tensor]] = {
    "tall": lambda: torch.randn(40, 9, dtype=torch.float64, generator=generator()),
    "wide": lambda: torch.randn(9, 40, dtype=torch.float64, generator=generator()),
    "rank 3": lambda: torch.randn(20, 3, generator=generator()).double() @ torch.randn(3, 30, dtype=torch.float64),
}


@pytest.mark.parametrize("name", MATRICES)
def test_top_singular_agrees_with_torch(name: str) -> None:
    matrix = MATRICES[name]()
    left, sigma, right = top_singular(matrix, 5, generator())
    truth = torch.linalg.svdvals(matrix)
    rank = min(5, int((truth > 1e-9).sum()))
    assert sigma.tolist() == pytest.approx(truth[:rank].tolist(), rel=1e-8)
    assert torch.allclose(left.T @ left, torch.eye(rank, dtype=matrix.dtype), atol=1e-8)
    assert torch.allclose(right.T @ right, torch.eye(rank, dtype=matrix.dtype), atol=1e-8)
    assert torch.allclose(matrix @ right, left * sigma, atol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.5, 2.0], ids="sigma ~ i^-{}".format)
@pytest.mark.parametrize("tall", [False, True], ids=["wide", "tall"])
def test_above_the_exact_limit_the_energy_is_nearly_optimal(decay: float, tall: bool) -> None:
    rows, columns, count = EXACT_LIMIT + 20, EXACT_LIMIT + 100, 12
    matrix = torch.randn(rows, columns, generator=generator()) * torch.arange(1, rows + 1)[:, None] ** -decay
    truth = torch.linalg.svdvals(matrix.double())[:count].square().sum()
    left, sigma, right = top_singular(matrix.T if tall else matrix, count, generator(1))
    left, right = (right, left) if tall else (left, right)
    captured = (left.double().T @ matrix.double()).square().sum()
    assert 0.999 * truth <= captured <= truth * (1 + 1e-6)
    assert float(sigma.double().square().sum()) == pytest.approx(float(captured), rel=1e-4)
    assert right.shape == (columns, count)


def test_over_several_batches_it_is_the_matrix_of_their_mean_loss() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    x = torch.randn(12, 5, dtype=torch.float64)
    site: Any = Line(model, "0.weight", "2.weight")
    more = tuple((Inputs((x[part : part + 4],)), TARGETS[part : part + 4]) for part in (4, 8))
    pooled = Measurement(model, F.cross_entropy, Inputs((x[:4],)), TARGETS[:4], (site,), more)
    whole = Measurement(model, F.cross_entropy, Inputs((x,)), TARGETS, (site,))
    assert torch.allclose(pooled.gradient_matrix(site).matrix, whole.gradient_matrix(site).matrix, atol=1e-15)
    assert len(pooled.gradient_matrices(site)) == 3 and pooled.forwards == 9
