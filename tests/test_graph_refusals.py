"""Widths that may not grow, and why."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from graph_cases import LoopMLP, OwnBuffer, traced, vector
from torch import Tensor, nn

from growkit.errors import GrowthRefused, ModelError
from growkit.graph import find_sites


def test_every_refusal_says_why_and_where():
    refusals = {refusal.name: refusal for refusal in traced("refused")[2].refusals}
    reasons = {name: refusal.reason for name, refusal in refusals.items()}
    assert len(traced("refused")[2]) == 0
    assert reasons["a"] == "softmax runs over it, and new entries would change its result"
    assert reasons["b"] == "is transformed by fft_fft"
    assert reasons["c"] == "is the model's output"
    assert reasons["a.weight[1]"] == "is the model's input"
    file, _, line = refusals["b"].location.rpartition(":")
    assert "no rule for this one" in Path(file).read_text().splitlines()[int(line) - 1]


class SlidOver(nn.Module):
    """The middle width is treated as positions by a pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.max_pool1d(self.a(x)[:, None], 2)[:, 0])


class PickedFrom(nn.Module):
    """A tensor of indices with a width of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.table[self.a(x).long().clamp(0, 4)])


@pytest.mark.parametrize(
    ("model", "name", "reason"),
    [
        (SlidOver(), "a", "is slid over as if it were positions"),
        (PickedFrom(), "a", "has single entries picked from it"),
        (OwnBuffer(), "layers.0", "is the width of the buffer 'mask'"),
    ],
    ids=["slid_over", "picked_from", "buffer"],
)
def test_a_width_with_another_reader_than_a_weight_is_refused(model, name, reason):
    sites = find_sites(model, vector())
    assert name not in {site.name for site in sites}
    assert next(refusal.reason for refusal in sites.refusals if refusal.name == name).startswith(reason)


class CastAndSummed(nn.Module):
    """A cast comes with an assertion, which reads the new units first."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.a(x))
        return self.b(hidden) + (hidden >= hidden.mean(0)).to(hidden.dtype).sum(1, keepdim=True)


def test_assertions_are_no_readers():
    reason = next(one.reason for one in find_sites(CastAndSummed(), vector()).refusals if one.name == "a")
    assert reason == "sum runs over it, and new units are not 0 where sum reads them"


def test_rows_and_columns_of_a_flattened_image_are_listed_once():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 3))
    names = [refusal.name for refusal in find_sites(model, torch.randn(4, 1, 8, 8)).refusals]
    assert sorted(names) == ["1.weight[1]", "3"]


def test_a_hidden_width_of_one_is_told_and_no_other_one():
    model = nn.Sequential(nn.Linear(5, 1), nn.Tanh(), nn.Linear(1, 4), nn.ReLU(), nn.Linear(4, 1), nn.Sigmoid())
    refusals = [refusal for refusal in find_sites(model, torch.randn(3, 5)).refusals if refusal.width == 1]
    assert [refusal.name for refusal in refusals] == ["0"] and "at least 2" in refusals[0].reason


def test_kernel_and_spatial_sizes_are_not_listed():
    assert {refusal.name for refusal in traced("vgg")[2].refusals} == {"classifier.3", "features.0.weight[1]"}


def test_asking_for_a_refused_or_unknown_site_explains():
    with pytest.raises(GrowthRefused, match=r"'a' \(width 8\) may not grow: it softmax runs over it.*cases.py:\d+"):
        traced("refused")[2]["a"]
    with pytest.raises(ModelError, match=r"No growth site is named 'layer.0'; did you mean 'layers.0'"):
        traced("mlp")[2]["layer.0"]


def test_growing_by_nothing_is_refused():
    with pytest.raises(GrowthRefused, match="at least one unit, got num_new=0"):
        traced("mlp")[2][0].tensor_edits(0)


def test_parameters_that_share_their_memory_are_refused():
    model = LoopMLP()
    model.layers[2].weight.data = model.layers[2].weight.data.clone()
    assert "layers.0" in {site.name for site in find_sites(model, vector())}
    twin = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 6))
    twin[2].weight.data = twin[0].weight.data.t()
    sites = find_sites(twin, vector())
    assert len(sites) == 0
    assert "shares its memory with" in next(one.reason for one in sites.refusals if one.width == 8)
