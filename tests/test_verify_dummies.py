"""Edits that are wrong, and look right on an example of equal values or where all widths grow alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import growkit


class Scaled(nn.Module):
    """The scale of attention follows the stream's width, not that of the head; distances are added to the scores."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed
        self.key, self.query, self.value = (nn.Linear(16, 8, bias=False) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.embed(x))
        scores = self.query(x) @ self.key(x).transpose(-2, -1) * x.shape[-1] ** -0.5
        place = torch.arange(x.shape[1])
        return self.head((scores - (place[:, None] - place).abs().to(x.dtype)).softmax(-1) @ self.value(x)).mean(1)


@pytest.mark.parametrize(
    "example",
    [
        torch.zeros(2, 6, dtype=torch.int64),
        torch.ones(2, 6, dtype=torch.int64),
        torch.zeros(2, 6, 3),
        torch.ones(2, 6, 3),
    ],
    ids=["token 0", "token 1", "zeros", "ones"],
)
def test_an_example_of_equal_values_does_not_hide_a_width_in_a_product(example: Tensor) -> None:
    torch.manual_seed(0)
    model = Scaled(nn.Linear(3, 16) if example.is_floating_point() else nn.Embedding(19, 16))
    verdict = growkit.verify_sites(model, growkit.find_sites(model, example))
    assert {site.width for site in verdict.sites} == {8}
    assert "embed" in {refusal.name for refusal in verdict.refusals}


class Shifted(nn.Module):
    """Two eighths of the channels move along time, as in the code of temporal shift modules."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        frames, channels, height, width = x.shape
        video, fold = x.view(frames // 2, 2, channels, height, width), channels // 8
        moved = torch.zeros_like(video)
        moved[:, :-1, :fold] = video[:, 1:, :fold]
        moved[:, 1:, fold : 2 * fold] = video[:, :-1, fold : 2 * fold]
        moved[:, :, 2 * fold :] = video[:, :, 2 * fold :]
        return self.head(self.b(moved.view(x.shape)).relu().mean((2, 3)))


def test_parts_that_fit_only_where_all_grow_alike_are_refused() -> None:
    torch.manual_seed(0)
    model, clip = Shifted(), torch.randn(4, 3, 5, 5)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, clip))
    assert [site.name for site in verdict.sites] == ["b"]
    assert {refusal.name for refusal in verdict.refusals} >= {"a", "a#2", "a#3"}


class Squeeze(nn.Module):
    """A gate of four units behind a ReLU, on means that are never negative."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 4), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        gate = self.b(self.a(x.mean((2, 3))).relu()).sigmoid()
        return self.head((x * gate[..., None, None]).mean((2, 3)))


@pytest.mark.parametrize("seed", range(6))
def test_a_narrow_squeeze_is_not_taken_for_dead(seed: int) -> None:
    torch.manual_seed(seed)
    model = Squeeze()
    sites = [site for site in growkit.find_sites(model, torch.randn(4, 3, 6, 6)) if site.name == "a"]
    assert [refusal.reason for refusal in growkit.verify_sites(model, sites).refusals] == []
