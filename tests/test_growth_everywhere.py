"""One growth event by GradMax in fp32, for every activation in every kind of place: the function stays, units live."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.graph import find_sites
from growkit.growth.initializers import GradMax
from growkit.growth.statistics import Measurement, unit_layout
from growkit.growth.statistics.layout import Part
from growkit.surgery import Extension, Growth, Inputs, function_change, grow, observe, verify_sites

NUM_NEW = 3
TARGETS = torch.arange(16) % 3
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}
Make = Callable[[], nn.Module]


class Block(nn.Module):
    """A residual block between a stem and a head."""

    def __init__(self, act: Make, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.norm, self.act = nn.Linear(5, 8), norm(8), act()
        self.up, self.down, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.down(self.act(self.up(self.norm(x)))))


class Attending(nn.Module):
    """Attention over tokens with an activation before it, whose values may be wider than queries and keys."""

    def __init__(self, act: Make) -> None:
        super().__init__()
        self.inner, self.act = nn.Linear(5, 6), act()
        self.query, self.key, self.value = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(6, 5)
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.inner(x))
        y = F.scaled_dot_product_attention(self.query(x), self.key(x), self.value(x))
        return self.out(y).mean(1)


class WithClassToken(nn.Module):
    """A residual stream behind a layer norm, with a token of its own in front of those of the inputs."""

    def __init__(self, act: Make) -> None:
        super().__init__()
        self.stem, self.token = nn.Linear(5, 8), nn.Parameter(torch.randn(1, 1, 8))
        self.block, self.norm, self.head = (
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), act()),
            nn.LayerNorm(8),
            nn.Linear(8, 3),
        )
        self.down = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.stem(x)], 1)
        return self.head(self.norm(x + self.down(self.block(x).mean(1, keepdim=True)))[:, 0])


def convolutions(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


VECTORS, IMAGES, TOKENS = (5,), (2, 7, 6), (4, 5)
PLACES: dict[str, tuple[Callable[[Make], nn.Module], tuple[int, ...], str]] = {
    "linear": (lambda act: nn.Sequential(nn.Linear(5, 6), act(), nn.Linear(6, 3)), VECTORS, "0"),
    "conv": (lambda act: convolutions(nn.Conv2d(2, 6, 3, padding=1), act(), nn.Conv2d(6, 4, 3)), IMAGES, "0"),
    "conv, stride 2": (
        lambda act: convolutions(nn.Conv2d(2, 6, 3, 2, 1), act(), nn.Conv2d(6, 4, 3, 2, 1)),
        IMAGES,
        "0",
    ),
    "depthwise": (
        lambda act: convolutions(
            *(nn.Conv2d(2, 6, 1), act(), nn.Conv2d(6, 6, 3, padding=1, groups=6), act(), nn.Conv2d(6, 4, 1))
        ),
        IMAGES,
        "0",
    ),
    "groups": (
        lambda act: convolutions(nn.Conv2d(2, 6, 3, padding=1, groups=2), act(), nn.Conv2d(6, 4, 3, groups=2)),
        IMAGES,
        "0",
    ),
    "batch norm": (
        lambda act: convolutions(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), act(), nn.Conv2d(6, 4, 3)),
        IMAGES,
        "0",
    ),
    "layer norm before": (lambda act: Block(act, nn.LayerNorm), VECTORS, "up"),
    "residual stream, no norm": (lambda act: Block(act, lambda _: nn.Identity()), VECTORS, "stem"),
    "stream with a class token": (WithClassToken, TOKENS, "stem"),
    "before attention": (Attending, TOKENS, "inner"),
    "values of attention": (Attending, TOKENS, "value"),
}


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("place", PLACES)
def test_the_function_stays_and_every_unit_lives(place: str, activation: str) -> None:
    torch.manual_seed(0)
    make, shape, name = PLACES[place]
    model, inputs = make(ACTIVATIONS[activation]), Inputs((torch.randn(16, *shape),))
    verdict = verify_sites(model, list(find_sites(model, *inputs.args)), inputs)
    site = next(one for one in verdict.sites if one.name == name)
    num_new = NUM_NEW if not site.by_copies else site.grows_by
    assert GradMax().refuses(site) is None
    measurement = Measurement(model, F.cross_entropy, inputs, TARGETS, (site,))
    extended = GradMax().extend(site, num_new, measurement, torch.Generator().manual_seed(0))
    before, layout = observe(model, inputs), unit_layout(site, num_new)
    edit = grow(model, [Growth(site, num_new, Extension(extended.values))])
    try:
        assert function_change(before, observe(model, inputs)).worst <= 1e-6
        step(model, inputs)
        assert lives(model, inputs, layout.fan_in) and lives(model, inputs, layout.fan_out)
    finally:
        edit.undo()


def step(model: nn.Module, inputs: Inputs) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    F.cross_entropy(model.train()(*inputs.args), TARGETS).backward()
    optimizer.step()


def lives(model: nn.Module, inputs: Inputs, parts: tuple[Part, ...]) -> bool:
    """Whether each new unit has a gradient there."""
    model.zero_grad()
    F.cross_entropy(model.train()(*inputs.args), TARGETS).backward()
    gradients = []
    for part in parts:
        gradient = model.get_parameter(part.name).grad
        assert gradient is not None
        gradients.append(part.read(gradient))
    return bool((torch.cat(gradients, 1).norm(dim=1) > 0).all())
