"""Products, convolutions and embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_cases.kit import image, net, pair, series, tokens, vector, volume, weight

ACTIVATIONS = "is contracted between two activations"


def numbers() -> Tensor:
    return torch.randint(0, 9, (4, 5))


PRODUCTS = {
    "mm": vector(lambda m, h: h @ m.w, {"a": 8, "w": 5}, w=weight(8, 5)),
    "mm_t": vector(lambda m, h: h @ m.w.t(), {"a": 8, "w": 5}, w=weight(5, 8)),
    "mm_T": vector(lambda m, h: h @ m.w.T, {"a": 8, "w": 5}, w=weight(5, 8)),
    "mv": vector(lambda m, h: (h @ m.w)[:, None], 8, w=weight(8)),
    "addmm": vector(lambda m, h: torch.addmm(m.s, h, m.w), {"a": 8, "w": 5}, w=weight(8, 5), s=weight(5)),
    "addmm_one": vector(lambda m, h: torch.addmm(m.s, h, m.w), {"a": 8, "w": 5}, w=weight(8, 5), s=weight(1)),
    "addmv": vector(lambda m, h: torch.addmv(h.mean(0)[:1], h, m.w)[:, None], "has single entries", w=weight(8)),
    "addmv_plain": vector(lambda m, h: torch.addmv(m.s, h, m.w)[:, None], 8, w=weight(8), s=weight(1)),
    "addr": vector(lambda m, h: torch.addr(h, m.w(h)[:, 0], m.g), 8, w=lambda: nn.Linear(8, 1), g=weight(8)),
    "bmm": tokens(lambda m, h: torch.bmm(h, m.w.expand(h.shape[0], -1, -1)), {"a": 8, "w": 5}, w=weight(8, 5)),
    "baddbmm": tokens(
        lambda m, h: torch.baddbmm(m.s, h, m.w.expand(h.shape[0], -1, -1)), {"a": 8, "w": 5}, w=weight(8, 5),
        s=weight(1, 1, 5),
    ),
    "addbmm": tokens(
        lambda m, h: torch.addbmm(m.s, h, m.w.expand(h.shape[0], -1, -1)), {"a": 8, "w": 7}, w=weight(8, 7),
        s=weight(5, 7),
    ),
    "inner": vector(lambda m, h: torch.inner(h, m.w), {"a": 8, "w": 5}, w=weight(5, 8)),
    "tensordot": tokens(lambda m, h: torch.tensordot(h, m.w, dims=([2], [1])), {"a": 8, "w": 7}, w=weight(7, 8)),
    "tensordot_two": tokens(
        lambda m, h: torch.tensordot(h.unflatten(2, (m.k, -1)), m.w, dims=([3, 2], [1, 0])), {"a": 2, "a#2": 4, "w": 7},
        w=weight(2, 4, 7), k=lambda: 2,
    ),
    "outer": vector(lambda m, h: torch.stack([torch.outer(m.g, r).sum(0) for r in h]), 8, g=lambda: torch.ones(3)),
    "multi_dot": vector(
        lambda m, h: torch.linalg.multi_dot([h, m.v, m.w]), {"a": 8, "v": 3, "w": 5}, v=weight(8, 3), w=weight(3, 5)
    ),
    "kron": vector(lambda m, h: torch.kron(h, m.w), {"a": 8, "w": 3}, w=weight(1, 3)),
    "vdot": vector(lambda m, h: torch.stack([torch.vdot(r, m.w) for r in h])[:, None], 8, w=weight(8)),
    "einsum": tokens(lambda m, h: torch.einsum("bti,oi->bto", h, m.w), {"a": 8, "w": 5}, w=weight(5, 8)),
    "einsum_dots": tokens(lambda m, h: torch.einsum("...i,io->...o", h, m.w), {"a": 8, "w": 5}, w=weight(8, 5)),
    "einsum_implicit": tokens(lambda m, h: torch.einsum("bti,iz", h, m.w), {"a": 8, "w": 5}, w=weight(8, 5)),
    "einsum_broadcast": vector(
        lambda m, h: torch.einsum("bi,oi->bo", h, m.w), {"a": ACTIVATIONS, "w": 5}, w=weight(5, 1),
    ),
    "einsum_sum": tokens(lambda m, h: torch.einsum("bti,t->bi", h, m.g), 8, g=weight(5)),
    "einsum_diagonal": vector(
        lambda m, h: torch.einsum("bi,ii->bi", h, m.w), "meets a form of aten.einsum", w=weight(8, 8)
    ),
    "einsum_three": vector(
        lambda m, h: torch.einsum("bi,ij,jo->bo", h, m.v, m.w), {"a": 8, "w": 3, "w#2": 5},
        v=weight(8, 3), w=weight(3, 5),
    ),
    "einsum_gain": tokens(lambda m, h: torch.einsum("bti,i->bti", h, m.w), 8, w=weight(8)),
    "bilinear": pair(lambda m, h, g: m.w(h, g), {"a": 8, "c": 8, "w": 5}, w=lambda: nn.Bilinear(8, 8, 5)),
    "hyper": vector(lambda m, h: F.linear(h, h.t() @ h), "is contracted with a weight that is computed"),
}  # fmt: skip

CONVOLUTIONS = {
    "conv_same": image(lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.Conv2d(8, 5, 3, padding="same")),
    "conv_valid": series(lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.Conv1d(8, 5, 3, padding="valid")),
    "conv_reflect": image(
        lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.Conv2d(8, 5, 3, padding=1, padding_mode="reflect")
    ),
    "conv_circular": series(
        lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.Conv1d(8, 5, 3, padding="same", padding_mode="circular")
    ),
    "conv3d": volume(lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.Conv3d(8, 5, 3, padding=1)),
    "conv_transpose1d": series(lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.ConvTranspose1d(8, 5, 3, stride=2)),
    "conv_transpose2d": image(lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.ConvTranspose2d(8, 5, 2, stride=2)),
    "conv_transpose3d": volume(lambda m, h: m.w(h), {"a": 8, "w": 5}, w=lambda: nn.ConvTranspose3d(8, 5, 2)),
    "conv_groups": image(lambda m, h: m.w(h), {"a": 2, "a#2": 4, "w": 3}, w=lambda: nn.Conv2d(8, 6, 3, groups=2)),
    "conv_transpose_groups": image(
        lambda m, h: m.w(h), {"a": 2, "a#2": 4, "w": 3}, w=lambda: nn.ConvTranspose2d(8, 6, 3, groups=2)
    ),
    "depthwise": series(lambda m, h: m.w(h), 8, w=lambda: nn.Conv1d(8, 8, 3, groups=8)),
    "depthwise_twice": image(lambda m, h: m.w(h), {"a": 8, "w": 2}, w=lambda: nn.Conv2d(8, 16, 3, groups=8)),
    "unbatched_conv": vector(lambda m, h: m.w(h.t()).t(), {"a": 8, "w": 5}, w=lambda: nn.Conv1d(8, 5, 1)),
}  # fmt: skip

EMBEDDINGS = {
    "embedding": net(lambda: nn.Sequential(nn.Embedding(9, 8), nn.Tanh(), nn.Linear(8, 3)), numbers, {"0": 8}),
    "embedding_max_norm": net(
        lambda: nn.Sequential(nn.Embedding(9, 8, max_norm=1.0), nn.Linear(8, 3)), numbers, {"0": "embedding_renorm_"}
    ),
    "embedding_bag": net(lambda: nn.Sequential(nn.EmbeddingBag(9, 8), nn.Tanh(), nn.Linear(8, 3)), numbers, {"0": 8}),
    "embedding_bag_max": net(
        lambda: nn.Sequential(nn.EmbeddingBag(9, 8, mode="max"), nn.Linear(8, 3)), numbers, {"0": 8}
    ),
}  # fmt: skip
