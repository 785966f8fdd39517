"""Idioms of real models, made of several operations."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from rule_cases.kit import image, net, pair, series, tokens, vector, weight


def _pruned() -> nn.Module:
    return prune.l1_unstructured(nn.Linear(8, 5), "weight", 0.3)


def _dynamic_convolution(m: Any, h: Tensor) -> Tensor:
    """A kernel for every sample, mixed from those of four experts."""
    batch, channels, *size = h.shape
    gate = m.w(h.mean((2, 3))).sigmoid()
    kernels = torch.einsum("be,eoikl->boikl", gate, m.k).flatten(0, 1)
    return F.conv2d(h.reshape(1, batch * channels, *size), kernels, groups=batch).view(batch, -1, 4, 4)


def _experts(m: Any, h: Tensor) -> Tensor:
    """Every token through all experts, weighted."""
    hidden = torch.einsum("bti,eih->bteh", h, m.u).relu()
    return torch.einsum("bteh,eho,bte->bto", hidden, m.d, m.w(h).softmax(-1))


def _routed(m: Any, h: Tensor) -> Tensor:
    """The best expert only, chosen by number."""
    best = m.w(h.mean(1)).argmax(1)
    return torch.bmm(torch.bmm(h, m.u[best]).relu(), m.d[best])


def _codebook(m: Any, h: Tensor) -> Tensor:
    return F.embedding(torch.cdist(h, m.c).argmin(-1), m.c) + h


def _straight_through(m: Any, h: Tensor) -> Tensor:
    return h + (h.sign() - h).detach()


def _film(m: Any, h: Tensor, g: Tensor) -> Tensor:
    gain, shift = m.w(g).chunk(2, -1)
    return h * (1 + gain) + shift


def _causal_shift(m: Any, h: Tensor) -> Tensor:
    return torch.cat([h[:, :1] * 0, h[:, :-1]], 1) * m.g + h * (1 - m.g)


def _mixer(m: Any, h: Tensor) -> Tensor:
    h = h + m.t(h.transpose(1, 2)).transpose(1, 2)
    return h + m.w(h)


def _pixel_norm(m: Any, h: Tensor) -> Tensor:
    return h / (h.square().sum(1, keepdim=True) + 1e-6).sqrt()


def _instance_statistics(m: Any, h: Tensor) -> Tensor:
    return (h - h.mean((2, 3), keepdim=True)) / (h.std((2, 3), keepdim=True) + 1e-3)


def _blur(m: Any, h: Tensor) -> Tensor:
    kernel = torch.ones(1, 1, 3, 3) / 9
    return F.conv2d(h, kernel.expand(h.shape[1], -1, -1, -1), padding=1, groups=h.shape[1])


def _states(m: Any, h: Tensor) -> Tensor:
    """A linear recurrence by hand, one decay for each unit."""
    state, out = torch.zeros_like(h[:, 0]), []
    for step in h.unbind(1):
        state = torch.sigmoid(m.g) * state + step
        out.append(state)
    return torch.stack(out, 1)


def mlp(*widths: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(*widths[:2]), nn.GELU(), nn.Linear(*widths[1:]))


IDIOMS = {
    "pruned": vector(lambda m, h: m.w(h), "is the width of the buffer", w=_pruned),
    "dynamic_convolution": image(
        _dynamic_convolution, {"a": "is contracted with a weight that is computed", "w": 4, "k": 5},
        w=lambda: nn.Linear(8, 4), k=weight(4, 5, 8, 3, 3),
    ),
    "experts": tokens(
        _experts, {"a": 8, "u": 7, "d": 5}, u=weight(3, 8, 7), d=weight(3, 7, 5), w=lambda: nn.Linear(8, 3)
    ),
    "routed": tokens(
        _routed, {"a": 8, "u": 7, "d": 5}, u=weight(3, 8, 7), d=weight(3, 7, 5), w=lambda: nn.Linear(8, 3)
    ),
    "codebook": tokens(_codebook, "cdist runs over it", c=weight(9, 8)),
    "straight_through": vector(_straight_through, 8),
    "film": pair(_film, {"a": 8, "c": 8}, w=lambda: nn.Linear(8, 16)),
    "causal_shift": tokens(_causal_shift, 8, g=weight(8)),
    "mixer": tokens(_mixer, {"a": 8, "t.0": 7, "w.0": 9}, t=lambda: mlp(5, 7, 5), w=lambda: mlp(8, 9, 8)),
    "low_rank_adapter": vector(
        lambda m, h: m.w(h) + h @ m.u @ m.d, {"a": 8, "w": 5, "u": 3}, w=lambda: nn.Linear(8, 5), u=weight(8, 3),
        d=weight(3, 5),
    ),
    "pixel_norm": image(_pixel_norm, 8),
    "instance_statistics": image(_instance_statistics, 8),
    "blur": image(_blur, 8),
    "linear_recurrence": tokens(_states, 8, g=weight(8)),
    "highway": vector(
        lambda m, h: m.t(h).sigmoid() * m.w(h) + h, 8, t=lambda: nn.Linear(8, 8), w=lambda: nn.Linear(8, 8)
    ),
    "dense_block": series(
        lambda m, h: torch.cat([h, m.w(h), m.v(torch.cat([h, m.w(h)], 1))], 1), {"a": 8, "w": 3, "v": 4},
        w=lambda: nn.Conv1d(8, 3, 1), v=lambda: nn.Conv1d(11, 4, 1),
    ),
    "concatenated_relu": series(lambda m, h: torch.cat([h.relu(), (-h).relu()], 1), 8),
    "maxout_pairs": vector(lambda m, h: h.unflatten(1, (-1, 2)).amax(2), {"a": 4}),
    "power_pooling": image(lambda m, h: h.clamp(min=1e-3).pow(m.p).mean((2, 3)).pow(1 / m.p), 8, p=weight(1)),
    "power_each": vector(lambda m, h: h.abs().clamp(min=0.1).pow(m.p.abs()), 8, p=weight(8)),
    "space_to_depth": image(
        lambda m, h: torch.cat([h[..., ::2, ::2], h[..., 1::2, ::2], h[..., ::2, 1::2], h[..., 1::2, 1::2]], 1), 8
    ),
    "windows": image(
        lambda m, h: h.view(len(h), h.shape[1], 2, 3, 2, 3).permute(0, 2, 4, 3, 5, 1).reshape(-1, 9, h.shape[1]).mean(1)
        .view(len(h), 4, -1), 8,
    ),
    "embedded_numbers": net(
        lambda: nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(40, 7), nn.ReLU(), nn.Linear(7, 3)),
        lambda: torch.randint(0, 9, (4, 5)), {"0": 8, "2": 7},
    ),
    "time_beside": vector(
        lambda m, h: m.w(torch.cat([h, torch.full_like(h[:, :1], 0.5)], 1)) + h, 8, w=lambda: nn.Linear(9, 8)
    ),
    "size_one": vector(lambda m, h: h * m.w(h), {"a": 8}, w=lambda: nn.Linear(8, 1)),
}  # fmt: skip
