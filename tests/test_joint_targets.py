"""Targets of sites that can only grow together: in channels of the dimension that is named, whole units only."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from growkit.config.growth import FixedSettings, GrowthSettings, ZeroSettings
from growkit.device import ComputePolicy
from growkit.errors import UserInputError
from growkit.graph import GrowthSite, find_sites
from growkit.growth.base import Clock, History
from growkit.growth.controller import GrowthController
from growkit.growth.plan import joint_target
from growkit.surgery import Inputs, verify_sites


class Attention(nn.Module):
    """3 heads of 4 that must fill the stream of 12."""

    def __init__(self) -> None:
        super().__init__()
        self.dim, self.heads = 12, 3
        self.qkv, self.out = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads = self.qkv(x).reshape(batch, length, 3, self.heads, self.dim // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = heads.unbind(0)
        mixed = scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.attention = nn.Linear(5, 12), nn.LayerNorm(12), Attention()
        self.last, self.head = nn.LayerNorm(12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        return self.head(self.last(x + self.attention(self.norm(x))).mean(1))


def joint() -> dict[str, GrowthSite]:
    torch.manual_seed(0)
    model, x = Block(), torch.randn(4, 6, 5)
    sites = find_sites(model, x)
    return {site.name: site for site in verify_sites(model, list(sites), Inputs((x,))).sites}


def test_a_joint_site_counts_heads_and_knows_their_channels() -> None:
    stream, size = joint()["embed"], joint()["attention.qkv#2"]
    assert (stream.width, stream.channels, stream.channels_per_unit) == (3, 12, 4)
    assert (size.width, size.channels, size.channels_per_unit) == (4, 4, 1)


def test_a_plain_site_counts_channels() -> None:
    site = find_sites(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)), torch.randn(2, 4))[0]
    assert (site.channels, site.channels_per_unit) == (6, 1)


@pytest.mark.parametrize(
    ("targets", "heads"),
    [
        ({"embed": 24}, 6),
        ({"embed": 12}, 3),
        ({}, 3),
        ({"attention.qkv": 5}, 5),
        ({"embed": 20, "attention.qkv": 5}, 5),
    ],
)
def test_a_target_is_in_channels_of_what_is_named(targets: dict[str, int], heads: int) -> None:
    assert joint_target(joint()["embed"], targets) == heads


def test_the_stream_is_not_asked_for_twice() -> None:
    assert joint_target(joint()["attention.qkv#2"], {"embed": 24}) == 4


def test_a_target_between_two_steps_is_refused_with_the_nearest() -> None:
    with pytest.raises(UserInputError, match=r"embed grows by 4 channels at a time.*got 22; the nearest are 20 and 24"):
        joint_target(joint()["embed"], {"embed": 22})


def test_targets_that_disagree_are_refused() -> None:
    with pytest.raises(UserInputError, match=r"embed and attention.qkv can only grow together.*name one of them"):
        joint_target(joint()["embed"], {"embed": 24, "attention.qkv": 4})


@pytest.mark.parametrize(("target", "final"), [({"embed": 20}, 20), ({"attention.qkv#2": 5}, 15), (2.0, 48)])
def test_a_run_ends_at_the_channels_that_were_asked_for(target: float | dict[str, int], final: int) -> None:
    torch.manual_seed(0)
    model, x, labels = Block(), torch.randn(4, 6, 5), torch.arange(4) % 4
    settings = GrowthSettings(initializer=ZeroSettings(), how_many=FixedSettings(units=9), target=target)
    sites = find_sites(model, x)
    compute, generator = ComputePolicy("cpu", "fp32", False, "a test"), torch.Generator().manual_seed(0)
    controller = GrowthController(model, sites, settings, cross_entropy, compute, generator)
    controller.prepare(Inputs((x,)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    controller.grow(optimizer, Inputs((x,)), labels, History(Clock(1, 10), step=1))
    assert model.embed.out_features == final
    assert sites.graph.params(controller.targets) == sum(parameter.numel() for parameter in model.parameters())
