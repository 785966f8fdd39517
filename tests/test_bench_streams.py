"""Which widths count as residual streams of transformers, and how the benchmark counts them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.bench.streams import streams_of, verified_streams
from growkit.bench.summary import render, summarise
from growkit.graph import Sites


class Block(nn.Module):
    def __init__(self, width: int, *, attends: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 20), nn.GELU(), nn.Linear(20, width))
        self.attends = attends

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        value = self.v(h)
        if self.attends:
            value = nn.functional.scaled_dot_product_attention(self.q(h), self.k(h), value)
        x = x + self.out(value)
        return x + self.mlp(self.norm2(x))


class Stack(nn.Module):
    def __init__(self, depth: int, *, attends: bool = True):
        super().__init__()
        self.embed, self.positions = nn.Linear(5, 12), nn.Parameter(torch.randn(1, 7, 12))
        self.blocks = nn.Sequential(*(Block(12, attends=attends) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.embed(x) + self.positions)).mean(1))


def sites_of(model: nn.Module) -> Sites:
    return growkit.find_sites(model, torch.randn(2, 7, 5))


def test_the_width_that_all_blocks_add_to_is_a_stream():
    sites = sites_of(Stack(2))
    streams = streams_of(sites.graph)
    assert list(streams.values()) == [12]
    assert verified_streams(streams, list(sites)) == list(streams)
    assert verified_streams(streams, [site for site in sites if site.width == 20]) == []


@pytest.mark.parametrize("model", [Stack(2, attends=False), Stack(0), nn.Sequential(nn.Linear(5, 4), nn.LayerNorm(4))])
def test_without_attention_or_without_branches_there_is_none(model: nn.Module):
    assert streams_of(sites_of(model).graph) == {}


def test_a_stream_that_is_the_models_output_is_none_that_could_grow():
    model = Stack(2)
    model.head = nn.Identity()
    assert streams_of(sites_of(model).graph) == {}


def test_the_summary_counts_transformers_by_their_streams():
    def row(name: str, **facts: Any) -> dict[str, Any]:
        common = {"stage": "done", "seconds": {}, "wall_seconds": 1.0, "found": 2, "verified": 2, "reach_verified": 1.0}
        return {"model": name, **common, **facts}

    rows = [
        row("a", streams=[8], streams_verified=[8], streams_by_copies=[8]),
        row("b", streams=[8, 16], streams_verified=[16]),
        row("c", streams=[8], streams_verified=[]),
        row("d", streams=[], streams_verified=[]),
    ]
    summary = summarise(rows)
    assert summary["streams"] == {
        "models": 3,
        "models_some_verified": 2,
        "models_all_verified": 1,
        "streams": 4,
        "streams_verified": 2,
        "streams_by_copies": 1,
    }
    assert "| transformers whose residual streams all grow | 1 / 3 (33.3 %) |" in render(summary)


@pytest.mark.parametrize(
    "errors, wrong",
    [
        ({"error_eval": 1e-7, "error_train": 3e-4}, True),
        ({"error_eval": 1e-7, "error_train": 3e-4, "error_exact": 1e-13}, False),
        ({"error_eval": 1e-7, "error_train": 2e-5, "error_exact": 1e-6}, True),
        ({"error_eval": 1e-7, "error_train": 2e-5}, False),
    ],
)
def test_float64_tells_rounding_from_a_wrong_edit(errors: dict[str, float], wrong: bool):
    row = {"model": "a", "stage": "done", "seconds": {}, "wall_seconds": 1.0, "found": 1, "verified": 1, **errors}
    assert summarise([row])["grown_wrong"] == (["a"] if wrong else [])
