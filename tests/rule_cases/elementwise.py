"""Activations, and parameters that act entry by entry or make a weight."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rule_cases.kit import vector, weight

COMPUTED = "is contracted with a weight that is computed in the forward"

FUNCTIONS = {
    "celu": F.celu, "elu": F.elu, "gelu": F.gelu, "hardshrink": F.hardshrink, "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish, "hardtanh": F.hardtanh, "leaky_relu": F.leaky_relu, "logsigmoid": F.logsigmoid,
    "mish": F.mish, "relu": F.relu, "relu6": F.relu6, "selu": F.selu, "silu": F.silu, "softplus": F.softplus,
    "softshrink": F.softshrink, "softsign": F.softsign, "tanhshrink": F.tanhshrink, "erf": torch.erf,
    "square": torch.square, "sin": torch.sin, "nan_to_num": torch.nan_to_num,
    "threshold": lambda h: F.threshold(h, 0.1, 0.3), "threshold_": lambda h: F.threshold_(h * 1, 0.0, 0.0),
    "relu_": lambda h: F.relu_(h * 1), "elu_": lambda h: F.elu(h * 1, inplace=True),
    "clamp": lambda h: h.clamp(-0.5, 0.5), "where": lambda h: torch.where(h > 0, h, 0.1 * h),
    "masked_fill": lambda h: h.masked_fill(h < 0, 0.5), "masked_fill_": lambda h: (h * 1).masked_fill_(h < 0, 0.5),
    "comparison": lambda h: (h > 0.8).to(h.dtype), "dropout": lambda h: F.dropout(h, 0.5, training=False),
    "type_as": lambda h: h.type_as(h[:, 0]), "maximum": lambda h: torch.maximum(h, -h),
    "lerp": lambda h: torch.lerp(h, h.tanh(), 0.3), "half_turn": lambda h: h.to(torch.cdouble).conj().abs(),
}  # fmt: skip

ACTIVATIONS = {
    name: vector(lambda m, h, f=function: f(h), 8 if name != "type_as" else "is taken apart by number (select")
    for name, function in FUNCTIONS.items()
}


def _bumped(w: Tensor) -> Tensor:
    return w.clone().add_(1)


def _bumped_view(w: Tensor) -> Tensor:
    w = w * 1
    w[:, :] += 1
    return w


def _bumped_quietly(w: Tensor) -> Tensor:
    w = w.clone()
    with torch.no_grad():
        w.add_(1)
    return w


PARAMETERS = {
    "gain": vector(lambda m, h: h * m.g, 8, g=weight(8)),
    "shift": vector(lambda m, h: h + m.g, 8, g=weight(8)),
    "divisor": vector(lambda m, h: h / (1 + m.g.abs()), 8, g=weight(8)),
    "log_scale": vector(lambda m, h: h * m.g.exp(), 8, g=weight(8)),
    "inverse": vector(lambda m, h: h * m.g.square().rsqrt(), 8, g=weight(8)),
    "clamp_by_tensors": vector(lambda m, h: torch.clamp(h, -m.g.abs(), m.g.abs()), 8, g=weight(8)),
    "addcmul": vector(lambda m, h: torch.addcmul(m.g, h, m.k), 8, g=weight(8), k=weight(8)),
    "addcdiv": vector(lambda m, h: torch.addcdiv(m.g, h, m.k.exp()), 8, g=weight(8), k=weight(8)),
    "addcdiv_raw": vector(lambda m, h: torch.addcdiv(m.g, h, m.k), 8, g=weight(8), k=weight(8)),
    "prelu": vector(lambda m, h: F.prelu(h, m.g), 8, g=weight(8)),
    "prelu_one": vector(lambda m, h: F.prelu(h, m.g), 8, g=weight(1)),
    "scaled_weight": vector(lambda m, h: F.linear(h, m.w * 0.5), {"a": 8, "w": 5}, w=weight(5, 8)),
    "gated_weight": vector(lambda m, h: F.linear(h, m.w * m.g), {"a": 8, "w": 5}, w=weight(5, 8), g=weight(5, 1)),
    "squashed_weight": vector(lambda m, h: F.linear(h, m.w.sigmoid()), {"a": COMPUTED, "w": 5}, w=weight(5, 8)),
    "standardised_weight": vector(
        lambda m, h: F.linear(h, m.w - m.w.mean(1, keepdim=True)), {"a": "mean runs over it", "w": 5}, w=weight(5, 8)
    ),
    "written_weight": vector(lambda m, h: F.linear(h, _bumped(m.w)), {"a": COMPUTED, "w": 5}, w=weight(5, 8)),
    "weight_written_through_a_view": vector(
        lambda m, h: F.linear(h, _bumped_view(m.w)), {"a": COMPUTED, "w": 5}, w=weight(5, 8)
    ),
    "weight_written_without_gradient": vector(
        lambda m, h: F.linear(h, _bumped_quietly(m.w)), {"a": COMPUTED, "w[0]": "has no weight that makes"},
        w=weight(5, 8),
    ),
    "weight_scaled_in_place": vector(lambda m, h: F.linear(h, m.w.clone().mul_(2)), {"a": 8, "w": 5}, w=weight(5, 8)),
    "weight_turned_in_place": vector(lambda m, h: h @ m.w.clone().t_(), {"a": 8, "w": 5}, w=weight(5, 8)),
    "sliced_weight": vector(lambda m, h: F.linear(h, m.w[: m.k]), {"a": 8, "w": 5}, w=weight(7, 8), k=lambda: 5),
    "selected_weight": vector(lambda m, h: F.linear(h, m.w[1]), {"a": 8, "w": 5}, w=weight(2, 5, 8)),
    "unbound_weights": vector(
        lambda m, h: sum(F.linear(h, w) for w in m.w.unbind()), {"a": 8, "w": 5}, w=weight(2, 5, 8)
    ),
    "chunked_weight": vector(
        lambda m, h: F.linear(F.linear(h, m.w.chunk(2)[0]), m.w.chunk(2)[1]), {"a": 8}, w=weight(16, 8)
    ),
    "low_rank_weight": vector(
        lambda m, h: F.linear(h, m.w @ m.v), {"a": COMPUTED, "w": 5, "v": 3}, w=weight(5, 3), v=weight(3, 8)
    ),
    "two_uses": vector(lambda m, h: h @ m.w.sigmoid() + h @ m.w, {"a": COMPUTED, "w": 5}, w=weight(8, 5)),
}  # fmt: skip
