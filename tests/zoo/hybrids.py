"""Convolutions and attention in one stream, and attention with more between the weights and the product."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportArgumentType=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, image


class RelativeBias(nn.Module):
    """Its forward never runs: the attention calls a method."""

    def __init__(self, area: int, heads: int):
        super().__init__()
        self.table = nn.Parameter(torch.randn(2 * area - 1, heads))
        self.bias_shape = (area, area, heads)
        steps = torch.arange(area)
        self.register_buffer("steps", (steps[:, None] - steps + area - 1).view(-1))

    def bias(self) -> Tensor:
        return self.table[self.steps].view(self.bias_shape).permute(2, 0, 1).unsqueeze(0)


class BiasedAttention(nn.Module):
    """On images, with a bias for every pair of positions and head."""

    def __init__(self, dim: int, heads: int, area: int):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.qkv, self.proj = nn.Conv2d(dim, 3 * dim, 1), nn.Conv2d(dim, dim, 1)
        self.places = RelativeBias(area, heads)

    def forward(self, x: Tensor) -> Tensor:
        b, _, h, w = x.shape
        q, k, v = self.qkv(x).view(b, self.num_heads, self.head_dim * 3, -1).transpose(2, 3).chunk(3, dim=3)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.places.bias())
        return self.proj(out.transpose(-1, -2).reshape(b, -1, h, w))


class LayerNormOfImages(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvAndAttention(nn.Module):
    """A stream that a layer norm, a batch norm and a convolution read; a branch behind gains and a drop path."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.norm, self.attention = LayerNormOfImages(12), BiasedAttention(12, 3, 16)
        self.gain, self.drop = nn.Parameter(torch.full((12, 1, 1), 0.1)), 0.0
        self.conv = nn.Sequential(nn.BatchNorm2d(12), nn.Conv2d(12, 20, 1), nn.SiLU(), nn.Conv2d(20, 12, 1))
        self.down, self.head = nn.Conv2d(12, 9, 2, 2), nn.Linear(9, 5)

    def dropped(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * x.new_empty(len(x), 1, 1, 1).bernoulli_(1.0 - self.drop)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.dropped(self.gain * self.attention(self.norm(x)))
        x = x + self.conv(x)
        return self.head(self.down(x).relu().mean((2, 3)))


class NormedParts(nn.Module):
    """Queries, keys and values of unequal sizes through a batch norm, as fast vision transformers have them."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.key, self.value, self.scale = 2, 4, 6, 0.5
        self.embed = nn.Conv2d(3, 10, 4, 4)
        self.qkv, self.norm = nn.Linear(10, 2 * (4 + 4 + 6), bias=False), nn.BatchNorm1d(28)
        self.proj, self.head = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        parts = self.qkv(x)
        parts = self.norm(parts.flatten(0, 1)).reshape_as(parts).view(len(x), x.shape[1], self.heads, -1)
        q, k, v = (one.transpose(1, 2) for one in parts.split([self.key, self.key, self.value], dim=3))
        out = (q @ k.transpose(-2, -1) * self.scale).softmax(-1) @ v
        return self.head(self.proj(F.hardswish(out.transpose(1, 2).flatten(2))).mean(1))


class PooledQueries(nn.Module):
    """The largest of neighbouring queries asks, zeros stand around the keys."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.head_dim = 2, 6
        self.embed = nn.Conv2d(3, 10, 4, 4)
        self.q, self.kv = nn.Linear(10, 12), nn.Linear(10, 24)
        self.proj, self.head = nn.Linear(12, 10), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        q = self.q(x).view(len(x), 4, -1, self.heads, self.head_dim).amax(dim=1).transpose(1, 2)
        kv = F.pad(self.kv(x), (0, 0, 1, 1)).view(len(x), -1, 2, self.heads, self.head_dim)
        k, v = kv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.head(self.proj(out.transpose(1, 2).flatten(2)).mean(1))


class Lambda(nn.Module):
    """Keys become weights over positions, and the queries read the summary of the values."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 10, 4, 4)
        self.q, self.k, self.v = nn.Conv2d(10, 8, 1), nn.Conv2d(10, 8, 1), nn.Conv2d(10, 7, 1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q = self.norm(self.q(x)).flatten(2).transpose(1, 2)
        summary = self.k(x).flatten(2).softmax(-1) @ self.v(x).flatten(2).transpose(1, 2)
        return self.head((q @ summary).mean(1))


ENTRIES = (
    Entry(
        "convolutions and attention",
        ConvAndAttention,
        image,
        grows=(("stem", 12), ("attention.qkv", 3), ("attention.qkv*", 4), ("conv.1", 20), ("down", 9)),
        notes="new channels of the stream carry the mean of the old ones, which the layer norm does not see; the batch "
        "norm and the convolution do not read them",
    ),
    Entry(
        "attention behind a batch norm",
        NormedParts,
        image,
        grows=(("embed", 10), ("qkv*", 2), ("qkv*", 4), ("qkv*", 6), ("proj", 10)),
        notes="new keys are zero behind the norm; the scale is kept in an attribute",
    ),
    Entry(
        "attention of pooled queries",
        PooledQueries,
        image,
        grows=(("embed", 10), ("q", 2), ("q*", 6), ("proj", 10)),
        notes="the largest of several takes out the factor that makes up for the scale",
    ),
    Entry(
        "lambda",
        Lambda,
        image,
        grows=(("embed", 10), ("q", 8), ("v", 7)),
        notes="softmax leaves no zeros in the keys, so the queries are zero",
    ),
)
