"""Where users keep sizes: weights, configs, tuples, dictionaries, quotients."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, image, vector


class Properties(nn.Module):
    """Sizes computed from the weights wherever they are needed."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 16, 14), nn.Linear(14, 5)

    @property
    def channels(self) -> int:
        return self.conv2.weight.shape[0]

    @property
    def features(self) -> int:
        return self.channels * 16

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 4)
        return self.fc2(F.relu(self.fc1(x.view(-1, self.features))))


@dataclass
class Sizes:
    num_attention_heads: int = 3
    head_dim: int = 8
    hidden: int = 20
    inner: int = 32
    extra: dict[str, int] = field(default_factory=dict)


class Attention(nn.Module):
    """Heads and head size from wherever the subclass keeps them."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(20, 72), nn.Linear(24, 20)

    def sizes(self) -> tuple[int, int]:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        heads, dim = self.sizes()
        q, k, v = self.qkv(x).view(b, t, 3, heads, dim).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.3)
        return self.out(y.transpose(1, 2).reshape(b, t, heads * dim))


class FromConfig(Attention):
    def __init__(self, config: Sizes):
        super().__init__()
        self.config = config

    def sizes(self) -> tuple[int, int]:
        return self.config.num_attention_heads, self.config.head_dim


class FromTuple(Attention):
    def __init__(self, _: Sizes):
        super().__init__()
        self.shape = (3, 8)

    def sizes(self) -> tuple[int, int]:
        return self.shape


class FromList(Attention):
    def __init__(self, _: Sizes):
        super().__init__()
        self.shape = [3, 8]

    def sizes(self) -> tuple[int, int]:
        return self.shape[0], self.shape[1]


class FromDict(Attention):
    def __init__(self, _: Sizes):
        super().__init__()
        self.hparams = {"heads": 3, "dim": 8, "layers": 3}

    def sizes(self) -> tuple[int, int]:
        return self.hparams["heads"], self.hparams["dim"]


class FromNamespace(Attention):
    def __init__(self, _: Sizes):
        super().__init__()
        self.args = SimpleNamespace(heads=3, dim=8)

    def sizes(self) -> tuple[int, int]:
        return self.args.heads, self.args.dim


class Twice(nn.Module):
    """Two attention blocks with a residual stream between plain layers."""

    def __init__(self, kind: type[Attention]):
        super().__init__()
        config = Sizes()
        self.stem, self.blocks = nn.Linear(6, 20), nn.ModuleList([kind(config), kind(config)])
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Decoy(nn.Module):
    """Another attribute has the same number as the heads, and must keep it."""

    def __init__(self):
        super().__init__()
        self.in_chans, self.num_heads, self.depth = 3, 3, 3
        self.stem, self.qkv, self.out = nn.Linear(3, 20), nn.Linear(20, 54), nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == self.in_chans
        b, t, _ = x.shape
        x = torch.tanh(self.stem(x))
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, -1).unbind(2)
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k).mul(0.2).softmax(-1)
        y = torch.einsum("bhqk,bkhd->bqhd", scores, v).flatten(2)
        return self.out(y) * self.depth


class Halves(nn.Module):
    """Slices by half of an attribute, and an attribute that is a quotient."""

    def __init__(self):
        super().__init__()
        self.width = 12
        self.half = self.width // 2
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(6, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        h = torch.tanh(h[:, : self.half]) * torch.sigmoid(h[:, self.half : self.width])
        return self.c(F.relu(self.b(h)))


def attention(kind: type[Attention], *, joint: bool, notes: str) -> Entry:
    where = "blocks.*.qkv"
    return Entry(
        f"sizes {kind.__name__.replace('From', 'from ').lower()}",
        lambda: Twice(kind),
        lambda: torch.randn(2, 5, 6),
        grows=(("stem", 20), (where, 3), (where, 8)),
        notes=notes + ("; both blocks grow together" if joint else ""),
    )


ENTRIES = (
    Entry("sizes from weights", Properties, image, grows=(("conv1", 6), ("conv2", 8), ("fc1", 14))),
    attention(FromConfig, joint=True, notes="one dataclass serves both blocks"),
    attention(FromTuple, joint=False, notes="a tuple in an attribute"),
    attention(FromList, joint=False, notes="a list in an attribute"),
    attention(FromDict, joint=False, notes="a dictionary in an attribute, beside another 3"),
    attention(FromNamespace, joint=False, notes="a namespace in an attribute"),
    Entry("decoy attribute", Decoy, lambda: torch.randn(2, 4, 3), grows=(("stem", 20), ("qkv", 3), ("qkv", 6))),
    Entry("halves", Halves, lambda: vector(6), grows=(("a", 6), ("b", 9))),
)
