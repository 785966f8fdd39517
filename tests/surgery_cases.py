"""Small models that widen, and what tests of surgery do to them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.graph import GrowthSite, Sites, find_sites
from growkit.surgery import Edit, Extension, Growth, grow, lookup

IMAGES = (2, 6, 6)


class Stream(nn.Module):
    """Width of the residual stream, read by a norm and two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.inner, self.outer, self.head = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(torch.tanh(self.inner(self.norm(x))))
        return self.head(x)


class Tied(nn.Module):
    """One square weight under two names: both of its dimensions are the site."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = (
            nn.Linear(5, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(torch.tanh(self.stem(x)))))))


class Functional(nn.Module):
    """Raw parameters and buffers, no layer modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6))
        self.gain, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.slope = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
        self.w2 = nn.Parameter(torch.randn(3, 6))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.w1, self.b1)
        x = F.batch_norm(x, self.get_buffer("mean"), self.get_buffer("var"), self.gain, self.shift, self.training)
        return F.linear(F.prelu(x, self.slope), self.w2)


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.GroupNorm(4, 4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def vgg_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Dropout(0.4), nn.Linear(6, 3)), (5,)),
    "conv and batch norm": (conv_bn, IMAGES),
    "residual stream": (Stream, (5,)),
    "flatten to linear": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)),
        IMAGES,
    ),
    "depthwise": (depthwise, IMAGES),
    "tied weights": (Tied, (5,)),
    "functional": (Functional, (5,)),
    "vgg-like": (vgg_like, IMAGES),
    "grey pointwise": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 3, 1), nn.AvgPool2d(6), nn.Flatten()),
        (1, 6, 6),
    ),
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, Sites, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    model, x = make(), torch.randn(6, *shape)
    model(x)  # running statistics away from their start
    return model, find_sites(model, x), x


def fresh(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Sites, Tensor]:
    """A copy of the model, its sites at their seed widths (the trace is shared), and a batch."""
    model, sites, x = traced(name)
    for site in sites:
        site.resize(site.seed_width)
    return copy.deepcopy(model).to(dtype), sites, x.to(dtype)


def random_fan_in(model: nn.Module, site: GrowthSite, num_new: int, *, fan_out: bool = False) -> Extension:
    """Gaussian new slices of everything that makes the units; with `fan_out` also of what reads them."""
    values = {}
    for edit in site.tensor_edits(num_new):
        for dim, index in enumerate(edit.index_maps):
            if index is None or edit.pass_through or (dim in edit.consumer_dims and not fan_out and dim == 1):
                continue
            shape = list(lookup(model, edit.names[0], edit.kind).shape)
            shape[dim] = int((index < 0).sum())
            values[edit.names[0], dim] = torch.randn(shape, dtype=next(model.parameters()).dtype)
    return Extension(values)


def widen_all(model: nn.Module, sites: Sites, num_new: int = 2, **kwargs: Any) -> Edit:
    return grow(model, [Growth(site, num_new, random_fan_in(model, site, num_new)) for site in sites], **kwargs)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    state = {} if optimizer is None else {i: dict(optimizer.state[p]) for i, p in enumerate(model.parameters())}
    return {
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "layout": {name: tensor.stride() for name, tensor in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "optimizer": copy.deepcopy(state),
        "attributes": {n: {k: v for k, v in vars(m).items() if type(v) is int} for n, m in model.named_modules()},
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b


OPTIMIZERS = {
    "sgd momentum": lambda p, fused: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=fused),
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=fused),
}
