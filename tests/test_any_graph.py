"""GradMax between any layers: its matrix is the mixed second derivative of the loss, and its units keep and learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.growth import GradMaxSettings
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite, find_sites
from growkit.growth.initializers import GradMax
from growkit.growth.statistics import Measurement, Part, UnitLayout, unit_layout
from growkit.growth.statistics.fan_map import sketched
from growkit.surgery import Extension, Growth, Inputs, function_change, grow, observe, verify_sites

TARGETS = torch.arange(12) % 3


class Readers(nn.Module):
    """Two layers read the units, one of them twice as wide."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.short, self.long = nn.Linear(5, 6), nn.Linear(6, 3), nn.Linear(6, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.short(h) + self.last(torch.tanh(self.long(h)))


class Makers(nn.Module):
    """Two layers make the units, which add up."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        return self.head(x + torch.tanh(self.inner(x)))


class Flattened(nn.Module):
    """Every unit is read at all its positions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(2, 4, 3, stride=2), nn.Linear(4 * 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).flatten(1))


class Depthwise(nn.Module):
    """A depthwise convolution and two norms between the pointwise ones."""

    def __init__(self, act: type[nn.Module], norm: bool) -> None:
        super().__init__()
        norms = [nn.BatchNorm2d(6), nn.BatchNorm2d(6)] if norm else [nn.Identity(), nn.Identity()]
        self.body = nn.Sequential(
            *(nn.Conv2d(2, 6, 1), norms[0], act(), nn.Conv2d(6, 6, 3, padding=1, groups=6), norms[1], act()),
            *(nn.Conv2d(6, 4, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Gated(nn.Module):
    """The product of two layers' units, without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(*size, bias=False) for size in ((5, 6), (5, 6), (6, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Attention(nn.Module):
    """Self-attention over tokens, whose number of heads is the width of its layers over their size."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 3
        self.query, self.key, self.value = nn.Linear(5, 6), nn.Linear(5, 6), nn.Linear(5, 6)
        self.out = nn.Linear(6, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(torch.tanh(self.out(y)).mean(1) + torch.tanh(self.out(y))[:, 0])


VECTORS, IMAGES, TOKENS = (5,), (2, 5, 7), (4, 5)
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "two readers": (Readers, VECTORS, "first"),
    "two makers": (Makers, VECTORS, "stem"),
    "flattened": (Flattened, IMAGES, "conv"),
    "depthwise": (lambda: Depthwise(nn.GELU, norm=False), IMAGES, "body.0"),
    "depthwise, batch norm": (lambda: Depthwise(nn.SiLU, norm=True), IMAGES, "body.0"),
    "heads": (Attention, TOKENS, "value"),
}


def case(name: str) -> tuple[nn.Module, GrowthSite, Measurement]:
    make, shape, _ = MODELS[name]
    return measured(make(), shape, MODELS[name][2])


def measured(model: nn.Module, shape: tuple[int, ...], name: str) -> tuple[nn.Module, GrowthSite, Measurement]:
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.5)
    model, inputs = model.double(), Inputs((torch.randn(12, *shape, dtype=torch.float64),))
    verdict = verify_sites(model, list(find_sites(model, *inputs.args)), inputs)
    site = next(one for one in verdict.sites if any(member.names[0].startswith(name) for member in one.producers))
    return model, site, Measurement(model, F.cross_entropy, inputs, TARGETS, (site,))


def mixed_derivative(model: nn.Module, site: GrowthSite, inputs: Inputs) -> Tensor:
    """d2L / dw_out dw_in of one new unit at zero, by differentiating twice."""
    layout = unit_layout(site, 1)
    sizes = [sum(part.numel for part in parts) for parts in (layout.fan_out, layout.fan_in)]
    edit = grow(model, [Growth(site, 1)])
    try:
        for part in layout.filters:
            part.write(model.get_parameter(part.name).data, part.identity())
        plain = {name: parameter.detach() for name, parameter in model.named_parameters()}
        unit = torch.zeros(sum(sizes), dtype=torch.float64, requires_grad=True)
        values, start = dict(plain), 0
        for part in (*layout.fan_out, *layout.fan_in):
            places = torch.stack([_entry(part, number, plain[part.name]) for number in range(part.numel)])
            spread = unit[start : start + part.numel] @ places.flatten(1)
            values[part.name] = values[part.name] + spread.view_as(plain[part.name])
            start += part.numel
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            outputs = torch.func.functional_call(model.train(), values, inputs.args)
        (first,) = torch.autograd.grad(F.cross_entropy(outputs, TARGETS), unit, create_graph=True)
        rows = [torch.autograd.grad(one, unit, retain_graph=True)[0] for one in first[: sizes[0]]]
        return torch.stack(rows)[:, sizes[0] :]
    finally:
        edit.undo()


def _entry(part: Part, number: int, tensor: Tensor) -> Tensor:
    """1 in one entry of a part, 0 in all else."""
    one, spread = torch.zeros(1, part.numel), torch.zeros_like(tensor)
    one[0, number] = 1.0
    part.write(spread, one)
    return spread


@pytest.mark.parametrize("name", MODELS)
def test_the_map_is_the_mixed_second_derivative_of_the_loss(name: str) -> None:
    model, site, measurement = case(name)
    truth = mixed_derivative(model, site, measurement.inputs)
    found = measurement.fan_map(site).matrix
    assert truth.abs().max() > 0 and torch.allclose(
        found.double(), truth, rtol=1e-9, atol=1e-9 * float(truth.abs().max())
    )


@pytest.mark.parametrize("name", MODELS)
def test_new_units_keep_the_function_and_learn(name: str) -> None:
    model, site, measurement = case(name)
    extended = GradMax().extend(site, 3, measurement, torch.Generator().manual_seed(0))
    before, layout = observe(model, measurement.inputs), unit_layout(site, 3)
    edit = grow(model, [Growth(site, 3, Extension(extended.values))])
    assert function_change(before, observe(model, measurement.inputs)).worst <= 1e-12
    learns_everywhere(model, layout, measurement)
    edit.undo()


def learns_everywhere(model: nn.Module, layout: UnitLayout, measurement: Measurement) -> None:
    """After the first step every new unit has a gradient on both sides."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.step()
        optimizer.zero_grad()
        F.cross_entropy(model.train()(*measurement.inputs.args), TARGETS).backward()
    for parts in (layout.fan_in, layout.fan_out):
        gradients = [part.read(model.get_parameter(part.name).grad) for part in parts]
        assert bool((torch.cat(gradients, 1).norm(dim=1) > 0).all())


@pytest.mark.parametrize("name", ["two readers", "two makers", "depthwise", "flattened"])
def test_no_orthonormal_frame_gives_the_new_units_a_larger_gradient(name: str) -> None:
    _, site, measurement = case(name)
    fan_map = measurement.fan_map(site)
    (component,) = fan_map.components()
    left = torch.linalg.svd(component.matrix).U[:, :2]
    best = max(
        float((component.matrix.T @ torch.linalg.qr(torch.randn(len(left), 2).double()).Q).norm()) for _ in range(200)
    )
    extended = GradMax(GradMaxSettings(norm="fixed", scale=1.0)).extend(
        site, 2, measurement, torch.Generator().manual_seed(0)
    )
    sigma = torch.tensor(extended.facts["sigma"])
    assert float((component.matrix.T @ left).norm()) >= best
    assert float(sigma.norm()) == pytest.approx(float((component.matrix.T @ left).norm()), rel=1e-6)


def test_the_channels_of_a_head_are_told_apart() -> None:
    _, site, measurement = case("heads")
    extended = GradMax().extend(site, 1, measurement, torch.Generator().manual_seed(0))
    columns = extended.values["out.weight", 1]
    assert columns.shape[1] == 3 and torch.linalg.matrix_rank(columns) == 3
    assert extended.values["query.weight", 0].norm() > 0 and extended.values["value.weight", 0].norm() == 0


def test_gates_take_the_best_of_gaussian_units() -> None:
    _, site, measurement = measured(Gated(), VECTORS, "gate")
    extended = GradMax().extend(site, 2, measurement, torch.Generator().manual_seed(0))
    assert extended.form == "zero_fan_out" and extended.facts == {"best_of": 8}


def test_units_with_a_slope_beside_zero_alone_are_measured_there() -> None:
    _, site, measurement = measured(Depthwise(nn.ReLU, norm=True), IMAGES, "body.0")
    extended = GradMax().extend(site, 2, measurement, torch.Generator().manual_seed(0))
    assert extended.form == "zero_fan_out" and len(extended.facts["sigma"]) == 2


def test_zero_fan_in_by_name_is_refused_where_it_cannot_work() -> None:
    _, site, measurement = measured(Gated(), VECTORS, "gate")
    settings: Any = GradMaxSettings(form="zero_fan_in")
    with pytest.raises(GrowthRefused, match="units of zero fan-in have no gradient at first; use form: auto"):
        GradMax(settings).extend(site, 2, measurement, torch.Generator().manual_seed(0))


class Stream(nn.Module):
    """A pre-norm residual stream of RMS norms, whose width two blocks write to."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.norms = nn.ModuleList(nn.RMSNorm(8) for _ in range(3))
        self.ups, self.downs = (nn.ModuleList(nn.Linear(*size) for _ in range(2)) for size in ((8, 6), (6, 8)))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=False):
            x = x + down(torch.tanh(up(norm(x))))
        return self.head(self.norms[2](x))


def test_a_residual_stream_grows_by_the_directions_of_its_own_map() -> None:
    model, site, measurement = measured(Stream(), VECTORS, "stem")
    assert site.remedies and GradMax().refuses(site) is None
    before = observe(model, measurement.inputs)
    extended = GradMax().extend(site, 2, measurement, torch.Generator().manual_seed(0))
    edit = grow(model, [Growth(site, 2, Extension(extended.values))])
    assert extended.form == "zero_fan_in" and "norms depend on these units" in extended.reason
    assert function_change(before, observe(model, measurement.inputs)).worst <= 1e-7
    edit.undo()


def test_over_several_batches_the_map_is_that_of_their_mean_loss() -> None:
    model, site, measurement = case("two readers")
    x = measurement.inputs.args[0]
    more = ((Inputs((x[6:],)), TARGETS[6:]),)
    pooled = Measurement(model, F.cross_entropy, Inputs((x[:6],)), TARGETS[:6], (site,), more)
    assert torch.allclose(pooled.fan_map(site).matrix, measurement.fan_map(site).matrix, atol=1e-15)


class Recurrent(nn.Module):
    """An LSTM over tokens, read at the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(5, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_the_hidden_width_of_an_lstm_grows_and_learns() -> None:
    model, site, measurement = measured(Recurrent(), TOKENS, "lstm")
    before, layout = observe(model, measurement.inputs), unit_layout(site, 2)
    extended = GradMax().extend(site, 2, measurement, torch.Generator().manual_seed(0))
    edit = grow(model, [Growth(site, 2, Extension(extended.values))])
    assert extended.form == "zero_fan_in" and len(extended.facts["sigma"]) == 2
    assert function_change(before, observe(model, measurement.inputs)).worst <= 1e-12
    learns_everywhere(model, layout, measurement)
    edit.undo()


def test_a_sketch_of_fan_outs_keeps_squared_norms_in_the_mean() -> None:
    site = next(iter(find_sites(nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 40)), torch.randn(4, 6))))
    all_of_it, some = sketched(site, 40), sketched(site, 8)
    assert torch.equal(all_of_it, torch.eye(40))
    assert torch.allclose(some @ some.T, 5.0 * torch.eye(8), atol=1e-5)  # 40 / 8
    assert torch.equal(some, sketched(site, 8))


def test_products_of_the_map_are_those_of_its_matrix() -> None:
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(6, 3), nn.Tanh(), nn.Linear(3, 40)), torch.randn(16, 6), torch.arange(16)
    (site,) = [site for site in find_sites(model, x) if site.name == "0"]
    measurement = Measurement(model, F.cross_entropy, Inputs((x,)), y, (site,))
    probes = torch.randn(5, 40)
    assert torch.allclose(measurement.fan_map(site, probes=probes).matrix, probes @ measurement.fan_map(site).matrix)
