"""Habits of users: state in plain attributes, branches, masks, inputs and outputs of all shapes."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .entry import Entry, tokens, vector


class Dispatch(nn.Module):
    """Blocks by name, one head for each task."""

    def __init__(self, kind: str = "gelu"):
        super().__init__()
        self.kind = kind
        self.acts = nn.ModuleDict({"relu": nn.ReLU(), "gelu": nn.GELU()})
        self.encoder = nn.ModuleDict({"in": nn.Linear(10, 12), "mid": nn.Linear(12, 9)})
        self.heads = nn.ModuleDict({"class": nn.Linear(9, 4), "depth": nn.Linear(9, 1), "box": nn.Linear(9, 4)})

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        x = self.acts[self.kind](self.encoder["in"](batch["x"]))
        x = torch.relu(self.encoder["mid"](x + 0 * batch["weight"][:, None]))
        return {name: head(x) for name, head in self.heads.items()}


class Caching(nn.Module):
    """Keeps its last activation, and a mask that it makes once."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 9), nn.Linear(9, 3)
        self.last, self._mask, self.calls = None, None, 0

    def forward(self, x: Tensor) -> Tensor:
        if self._mask is None or self._mask.shape[-1] != x.shape[1]:
            self._mask = torch.ones(x.shape[1], x.shape[1]).tril()
        h = F.gelu(self.a(self._mask.to(x.dtype) @ x))
        self.last, self.calls = h, self.calls + 1
        return self.c(F.gelu(self.b(h)))


class StaleCache(nn.Module):
    """Makes a table from a weight at the first call and never again: stale after any change."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.scale = nn.Linear(6, 12), nn.Linear(12, 3), nn.Parameter(torch.rand(12))
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.cache.clear()
        elif "gain" not in self.cache:
            self.cache["gain"] = F.softplus(self.scale)
        gain = F.softplus(self.scale) if self.training else self.cache["gain"]
        return self.b(torch.tanh(self.a(x)) * gain)


class BranchOnMean(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 12), nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        if x.mean() > 0.1:
            x = x * 0.5
        return self.c(F.relu(self.b(x)))


class BranchOnInput(BranchOnMean):
    def forward(self, x: Tensor) -> Tensor:
        if (x > 1e3).any():
            x = x.clamp(max=1e3)
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


class Masked(nn.Module):
    """Whole-number inputs with a mask, an average over what is there."""

    def __init__(self):
        super().__init__()
        self.embed, self.fc1, self.fc2 = nn.Embedding(61, 12), nn.Linear(12, 14), nn.Linear(14, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.embed(ids).masked_fill(~mask[..., None], 0.0)
        x = x.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
        return self.fc2(F.relu(self.fc1(x)))


class Result(NamedTuple):
    logits: Tensor
    hidden: Tensor


class NamedOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 12), nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Result:
        h = torch.tanh(self.b(F.relu(self.a(x))))
        return Result(self.c(h), h)


class Output(OrderedDict):
    """A dictionary with attributes, as model outputs often are."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class OwnOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Output:
        return Output(logits=self.b(torch.tanh(self.a(x))), loss=None)


@dataclass
class Prediction:
    logits: Tensor
    name: str = "prediction"


class DataclassOutput(OwnOutput):
    def forward(self, x: Tensor) -> Prediction:
        return Prediction(self.b(torch.tanh(self.a(x))))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.inner, self.head = (
            nn.Linear(10, 12),
            nn.Sequential(nn.Linear(12, 14), nn.Tanh(), nn.Linear(14, 12)),
            nn.Linear(12, 3),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + checkpoint(self.inner, x, use_reentrant=False))


class Frozen(nn.Module):
    """A frozen trunk run without gradients, a head that learns."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 8)).requires_grad_(False)
        self.hidden, self.head = nn.Linear(8, 11), nn.Linear(11, 3)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.trunk(x)
        return self.head(F.relu(self.hidden(x)))


class Momentum(nn.Module):
    """A slow copy of the encoder, as in self-supervised learning."""

    def __init__(self):
        super().__init__()
        self.fast = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6))
        self.slow = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6)).requires_grad_(False)
        self.predictor = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            target = self.slow(x)
        return (self.predictor(self.fast(x)) - target).square().mean(1)


class Counter(nn.Module):
    """Counts its batches and keeps an average of its input in buffers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 12), nn.Linear(12, 3)
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
        self.register_buffer("average", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.steps += 1
            self.average.lerp_(x.detach().mean(0), 0.1)
        return self.b(torch.tanh(self.a(x - self.average)))


class Ensemble(nn.Module):
    """The same module twice, a stack of others, their mean and spread."""

    def __init__(self):
        super().__init__()
        shared = nn.Linear(10, 12)
        self.members = nn.ModuleList([nn.Sequential(shared, nn.Tanh(), nn.Linear(12, 3)) for _ in range(3)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.stack([member(x) for member in self.members])
        return y.mean(0), y.std(0)


class PositionTable(nn.Module):
    """A sinus table in a buffer, added to the stream."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(61, 16)
        angle = torch.arange(32)[:, None] / 10000 ** (torch.arange(0, 16, 2) / 16)
        self.register_buffer("pe", torch.stack([angle.sin(), angle.cos()], -1).flatten(1))
        self.inner, self.head = nn.Linear(16, 20), nn.Linear(20, 3)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) * 4.0 + self.pe[: ids.size(1)]
        return self.head(torch.relu(self.inner(x)).mean(1))


def batch() -> tuple[dict[str, Tensor]]:
    return ({"x": vector(), "weight": torch.rand(4)},)


ENTRIES = (
    Entry("dispatch by name", Dispatch, batch, grows=(("encoder.in", 12), ("encoder.mid", 9))),
    Entry("caching", Caching, lambda: torch.randn(2, 5, 6), grows=(("a", 12), ("b", 9))),
    Entry(
        "stale cache",
        StaleCache,
        lambda: vector(6),
        grows=(("a", 12),),
        notes="grows if the cache is emptied with the edit",
    ),
    Entry(
        "branch on a mean",
        BranchOnMean,
        vector,
        grows=(("a", 12), ("b", 9)),
        notes="the mean over units decides, which copies leave alone",
    ),
    Entry("branch on the input", BranchOnInput, vector, grows=(("a", 12), ("b", 9))),
    Entry(
        "masked average",
        Masked,
        lambda: (tokens(3), torch.tensor([[1] * 7, [1] * 4 + [0] * 3, [1] + [0] * 6]).bool()),
        grows=(("embed", 12), ("fc1", 14)),
    ),
    Entry("named output", NamedOutput, vector, grows=(("a", 12),), refused={"b": "output"}),
    Entry("own class of output", OwnOutput, vector, grows=(("a", 12),), notes="a dictionary of an unregistered class"),
    Entry("dataclass output", DataclassOutput, vector, grows=(("a", 12),), notes="an unregistered class"),
    Entry("checkpointed", Checkpointed, vector, grows=(("stem", 12), ("inner.0", 14))),
    Entry(
        "frozen trunk",
        Frozen,
        vector,
        grows=(("hidden", 11),),
        refused={"trunk.0": "gradient"},
        notes="trunk.2 is read by a weight that learns: its new columns get gradients; trunk.0 is frozen on both sides",
    ),
    Entry("momentum encoder", Momentum, vector, grows=(("fast.0", 12),), refused={"slow.0": "gradient"}),
    Entry("counter", Counter, vector, grows=(("a", 12),)),
    Entry("ensemble", Ensemble, vector, grows=(("members.0.0", 12),)),
    Entry("position table", PositionTable, tokens, grows=(("inner", 20),), refused={"embed": "buffer"}),
)
