"""Streams that a depthwise convolution reads: its channels are others, and no mean or shift passes through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.errors import GrowthRefused
from growkit.surgery import Inputs
from growkit.surgery.trial import Trial


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.info = {"width": width}  # nothing reads it
        self.spatial = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(self.norm(self.spatial(x).permute(0, 2, 3, 1)))
        return x + self.down(torch.tanh(hidden)).permute(0, 3, 1, 2)


class Stages(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 8, 2, 2), nn.Sequential(Block(8), Block(8))
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x)).mean((2, 3))))


class Heads(nn.Module):
    """Reads `heads`, and not `note`."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.note = 4, 4
        self.inner, self.outer = nn.Linear(5, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).view(2, self.heads, 3).tanh().flatten(1))


def test_the_stream_grows_by_whole_copies_and_the_widths_beside_it_by_units():
    torch.manual_seed(0)
    model = Stages()
    sites = growkit.find_sites(model, torch.randn(2, 3, 8, 8))
    assert [(site.width, site.by_copies) for site in sites] == [(8, True), (12, False), (12, False)]
    with pytest.raises(GrowthRefused, match=r"is written by conv2d, which cannot be centred, and read by a norm"):
        sites["stem"].grown(4)
    assert len(growkit.verify_sites(model, sites).sites) == 3


def test_attributes_that_the_forward_does_not_read_are_told_from_those_that_it_does():
    torch.manual_seed(0)
    model, example = Heads(), torch.randn(2, 5)
    site = next(iter(growkit.find_sites(model, example)))
    carriers = {one.path: one for one in site.graph.carriers_of(site.atoms)}
    trial = Trial(model, Inputs((example,)), 1e-5)
    assert {path: trial.reads([one]) for path, one in carriers.items()} == {"heads": True, "note": False}
    assert (model.heads, model.note) == (4, 4)
