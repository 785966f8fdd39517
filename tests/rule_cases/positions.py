"""Pooling, resampling, patches, reductions, distances and losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_cases.kit import ByCopies, image, images, pair, series, tokens, tokens2, vector, volume, weight

RUNS = "runs over it"
COPIES = ByCopies(RUNS)
SLID = "is slid over as if it were positions"


def _warped(h: Tensor, theta: Tensor) -> Tensor:
    return F.grid_sample(h, F.affine_grid(theta, list(h.shape), False), align_corners=False)


POOLS = {
    "avg_pool1d": series(lambda m, h: F.avg_pool1d(h, 2), 8),
    "avg_pool2d": image(lambda m, h: F.avg_pool2d(h, 3, 2, 1, count_include_pad=False), 8),
    "avg_pool3d": volume(lambda m, h: F.avg_pool3d(h, 2), 8),
    "max_pool1d": series(lambda m, h: F.max_pool1d(h, 2), 8),
    "max_pool2d": image(lambda m, h: F.max_pool2d(h, 2, ceil_mode=True), 8),
    "max_pool3d": volume(lambda m, h: F.max_pool3d(h, 2), 8),
    "max_pool_channels": image(lambda m, h: F.max_pool3d(h[:, None], (2, 1, 1))[:, 0], SLID),
    "maxout": image(lambda m, h: h.view(h.shape[0], 2, -1, *h.shape[2:]).amax(1), {"a": 4}),
    "lp_pool1d": series(lambda m, h: F.lp_pool1d(h, 2, 3), 8),
    "lp_pool2d": image(lambda m, h: F.lp_pool2d(h, 2, 2), 8),
    "adaptive_avg": image(lambda m, h: F.adaptive_avg_pool2d(h, 3), 8),
    "adaptive_max": image(lambda m, h: F.adaptive_max_pool2d(h, (2, 3)), 8),
    "adaptive_1d": series(lambda m, h: F.adaptive_avg_pool1d(h, 3) + F.adaptive_max_pool1d(h, 3), 8),
    "adaptive_3d": volume(lambda m, h: F.adaptive_avg_pool3d(h, 1) + F.adaptive_max_pool3d(h, 1), 8),
    "fractional": image(
        lambda m, h: F.fractional_max_pool2d(h, 2, output_size=3, _random_samples=torch.full((*h.shape[:2], 2), 0.3)),
        8,
    ),
    "unpool": image(lambda m, h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), 2), 8),
    "unpool1d": series(lambda m, h: F.max_unpool1d(*F.max_pool1d(h, 2, return_indices=True), 2), 8),
    **{
        f"interpolate_{mode}_{rank}d": family(lambda m, h, mode=mode: F.interpolate(h, scale_factor=2, mode=mode), 8)
        for rank, family, modes in (
            (1, series, ("nearest", "nearest-exact", "linear", "area")),
            (2, image, ("nearest", "nearest-exact", "bilinear", "bicubic", "area")),
            (3, volume, ("nearest", "nearest-exact", "trilinear", "area")),
        )
        for mode in modes
    },
    "interpolate_antialias": image(lambda m, h: F.interpolate(h, size=(3, 4), mode="bilinear", antialias=True), 8),
    "interpolate_bicubic_antialias": image(
        lambda m, h: F.interpolate(h, size=(3, 4), mode="bicubic", antialias=True), 8,
    ),
    "grid_sample": image(lambda m, h: F.grid_sample(h, m.g.expand(h.shape[0], -1, -1, -1), align_corners=False), 8,
                         g=lambda: torch.rand(1, 3, 3, 2)),
    "affine_grid": image(
        lambda m, h: _warped(h, m.w(h.mean((2, 3))).view(-1, 2, 3)),
        8, w=lambda: nn.Linear(8, 6),
    ),
    "unfold": image(lambda m, h: F.unfold(h, 3).transpose(1, 2), 8),
    "fold": image(lambda m, h: F.fold(F.unfold(h, 3).tanh(), (6, 6), 3), 8),
    "patches": image(lambda m, h: h.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4).mean(4), 8),
    "unfold_width": vector(lambda m, h: h.unfold(1, 3, 1).sum(2), SLID),
    "local_response": image(lambda m, h: F.local_response_norm(h, 3), {}),
}  # fmt: skip

REDUCTIONS = {
    "mean": tokens(lambda m, h: h.mean(1), 8),
    "global_pool": image(lambda m, h: h.mean((2, 3)), 8),
    "squeeze_excite": image(
        lambda m, h: h * m.w(h.mean((2, 3), keepdim=True)).sigmoid(), {"a": 8, "w.0": 3},
        w=lambda: nn.Sequential(nn.Conv2d(8, 3, 1), nn.ReLU(), nn.Conv2d(3, 8, 1)),
    ),
    "spatial_attention": image(
        lambda m, h: h * m.w(torch.cat([h.mean(1, keepdim=True), h.amax(1, keepdim=True)], 1)).sigmoid(), COPIES,
        w=lambda: nn.Conv2d(2, 1, 3, padding=1),
    ),
    "sum_width": vector(lambda m, h: h + h.sum(1, keepdim=True), RUNS),
    "max_width": vector(lambda m, h: h - h.max(1, keepdim=True)[0], COPIES),
    "max_all": vector(lambda m, h: h - h.max(), COPIES),
    "argmax_width": vector(lambda m, h: h * h.argmax(1, keepdim=True), RUNS),
    "max_positions": tokens(lambda m, h: h.max(1)[0] + h.max(1)[1] + h.argmin(1), 8),
    "median_width": vector(lambda m, h: h - h.median(1, keepdim=True)[0], RUNS),
    "order_statistics": tokens(
        lambda m, h: h.median(1)[0] + h.kthvalue(2, 1)[0] + h.mode(1)[0] + h.quantile(0.3, 1), 8,
    ),
    "kthvalue_width": vector(lambda m, h: h - h.kthvalue(2, 1, True)[0], RUNS),
    "quantile_width": vector(lambda m, h: h - h.quantile(0.5, 1, True), RUNS),
    "moments": tokens(
        lambda m, h: h.var(1) + h.std(1, keepdim=True)[:, 0] + h.logsumexp(1) + h.prod(1) + h.norm(dim=1), 8,
    ),
    "moments_all": vector(lambda m, h: h / h.std(), RUNS),
    "aminmax": tokens(lambda m, h: torch.sub(*h.aminmax(dim=1)), 8),
    "any_all": tokens(lambda m, h: ((h > 0).any(1) | (h > -1).all(1)).to(h.dtype) + h.count_nonzero(1), 8),
    "norms": vector(lambda m, h: h / torch.linalg.norm(h), RUNS),
    "matrix_norm": tokens(lambda m, h: h / torch.linalg.matrix_norm(h, keepdim=True), RUNS),
    "softmax": vector(lambda m, h: h.softmax(1), "softmax runs over it"),
    "softmin": vector(lambda m, h: F.softmin(h, 1), "softmax runs over it"),
    "log_softmax": vector(lambda m, h: h.log_softmax(1), "log_softmax runs over it"),
    "softmax_positions": tokens(lambda m, h: h.softmax(1), 8),
    "channel_attention": pair(lambda m, h, g: h * g.softmax(1), {"a": "softmax runs over it"}),
    "normalize": vector(lambda m, h: F.normalize(h, dim=1), 8),
    "normalize_positions": tokens(lambda m, h: F.normalize(h, dim=1), 8),
    "cosine": pair(lambda m, h, g: F.cosine_similarity(h, g)[:, None], "cosine_similarity runs over it"),
    "cosine_positions": tokens2(lambda m, h, g: F.cosine_similarity(h, g, dim=1), 8),
    "pairwise": pair(lambda m, h, g: F.pairwise_distance(h, g, keepdim=True), "pairwise_distance runs over it"),
    "cdist": vector(lambda m, h: torch.cdist(h, m.c), "cdist runs over it", c=weight(3, 8)),
    "pdist": vector(lambda m, h: F.pdist(h).mean() * h, "is taken as a whole by pdist"),
    "mse": pair(lambda m, h, g: h * F.mse_loss(h, g), "mse_loss runs over it"),
    "mse_each": pair(lambda m, h, g: F.mse_loss(h, g, reduction="none"), 8),
    "cross_entropy": vector(
        lambda m, h: h * F.cross_entropy(h, torch.zeros(len(h), dtype=torch.long)), "is a number of classes",
    ),
    "cross_entropy_inside": vector(
        lambda m, h: h * F.cross_entropy(m.w(h), torch.zeros(len(h), dtype=torch.long), reduction="none")[:, None], 8,
        w=lambda: nn.Linear(8, 3),
    ),
    "two_images": images(lambda m, h, g: h * g.mean((2, 3), keepdim=True), 8),
}  # fmt: skip
