"""Models that can grow deeper, optimizers for them, and what tests of depth share."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import growkit
from growkit.config.models import WrnSettings
from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import Places, find_places
from growkit.models import ReLU, build_model
from growkit.surgery import (
    Edit,
    deepen,
    record_from_json,
)


class Loop(nn.Module):
    """Layers in a list; the forward puts the activation in."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class Shared(Loop):
    """One activation module for all layers, and in the forward a dropout for each."""

    def __init__(self, rate: float) -> None:
        super().__init__(nn.ReLU())
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(self.activation(layer(x)), self.rate, self.training)
        return self.head(x)


class PostActivation(nn.Module):
    """relu(x + branch(x)), as in a ResNet; the branch ends in a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Attention(nn.Module):
    """A pre-norm transformer block, two branches, dropout at the end of each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(mixed), 0.2, self.training)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class LayerScale(nn.Module):
    """A ConvNeXt block: depthwise, norm, MLP in channels-last, layer scale, stochastic depth by sample."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        y = (self.down(F.gelu(self.up(y))) * self.gamma).permute(0, 3, 1, 2)
        if self.training:
            y = y * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5).div_(0.5)
        return x + y


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def wrn() -> nn.Module:
    return build_model(WrnSettings(depth=16, width=1, block_width=0.25), (2, 6, 6), 3)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4), ReLU(), nn.Linear(4, 3)),
        (5,),
        ["0", "3"],
    ),
    "list": (Loop, (5,), ["layers.0", "layers.1"]),
    "shared activation": (lambda: Shared(0.0), (5,), ["layers.0", "layers.1"]),
    "named": (
        lambda: nn.Sequential(OrderedDict(stem=nn.Linear(5, 4), act=nn.ReLU(), block=residual(), head=nn.Linear(4, 3))),
        (5,),
        ["stem", "block"],
    ),
    "deep linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), (5,), ["0"]),
    "vgg-like": (
        lambda: images(
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, bias=False, padding=1),
            nn.BatchNorm2d(4),
            nn.Hardtanh(),
            nn.Conv2d(4, 4, (1, 3), stride=2, groups=2),
            nn.ReLU6(),
        ),
        (2, 6, 6),
        ["0", "2", "5"],
    ),
    "wrn": (wrn, (2, 6, 6), ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]),
    "post-activation": (
        lambda: images(nn.ReLU(), PostActivation(4), PostActivation(4)),
        (2, 6, 6),
        ["0", "2", "3"],
    ),
    "transformer": (Transformer, (5, 8), ["blocks.0", "blocks.1"]),
    "layer scale": (lambda: images(LayerScale(), LayerScale()), (2, 6, 6), ["1", "2"]),
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "SGD fused": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "Adam fused": lambda groups: torch.optim.Adam(groups, lr=0.01, fused=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
}


def fresh(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model of the table with weights and statistics as after some training, and a batch."""
    torch.manual_seed(seed)
    make, shape, _ = CASES[name]
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model, torch.randn(4, *shape)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int = 2) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """All that an undone edit must have left alone: names, objects, values, modes, gradients, optimizer."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "tensors": [
            (name, id(tensor), tensor.requires_grad, tensor.detach().clone())
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        ],
        "state": list(model.state_dict()),
        "hooks": [
            len(hooks) for module in model.modules() for name, hooks in vars(module).items() if name.endswith("hooks")
        ],
        "optimizer": None if optimizer is None else copy.deepcopy(optimizer.state_dict()),
        "groups": None if optimizer is None else [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


def refusals(model: nn.Module, x: Tensor) -> dict[str, str]:
    places = find_places(model, x)
    assert not list(places)
    return {refusal.name: refusal.reason for refusal in places.refusals}


class Block(nn.Module):
    """A residual block of which one thing is changed."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4)
        self.gain = nn.Parameter(torch.ones(4))
        self._forward = forward

    def branch(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


def residual() -> Block:
    return Block(lambda self, x: x + self.branch(x))


def widen(model: nn.Module, x: Tensor, number: int, num_new: int, **given: Any) -> Edit:
    """Widen the site of that number, or the next one that can grow by itself."""
    sites = list(growkit.find_sites(model, x))
    for site in sites[number % len(sites) :] + sites[: number % len(sites)]:
        try:
            return growkit.widen(model, site, num_new, initializer="random", **given)
        except (SurgeryError, GrowthRefused):
            continue
    raise AssertionError("no site can grow")


def grow_all(model: nn.Module, x: Tensor) -> list[Any]:
    """Wider, deeper, wider again, deeper again at another place: the records."""
    records: list[Any] = []
    for _ in range(2):
        records += widen(model, x, 0, 2).records
        places: Places = find_places(model, x)
        records += deepen(model, places[len(places) // 2], seed=3).records
    return records + widen(model, x, -1, 1).records


MIXED = ["mlp", "named", "vgg-like", "wrn", "post-activation", "transformer", "layer scale"]


def through_json(records: list[Any]) -> list[Any]:
    written = [record.to_json() for record in records]
    read = [record_from_json(record) for record in json.loads(json.dumps(written))]
    assert [record.to_json() for record in read] == written
    return read
