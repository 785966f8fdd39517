"""Growth by whole copies: what is exact where statistics run over units and no number of zeros would be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.config.growth import BudgetSettings, FixedSettings, GrowthSettings, ZeroSettings
from growkit.device import ComputePolicy
from growkit.errors import GrowthRefused, UserInputError
from growkit.graph import GrowthSite
from growkit.graph.dimensions import Atom, Product, Sum, copy_origins, index_map
from growkit.growth.base import Clock, History, SiteState
from growkit.growth.controller import GrowthController
from growkit.surgery import Inputs

CHANNELS = 6


class PostNorm(nn.Module):
    """A block of a post-norm transformer without its attention: the norm writes to the stream."""

    def __init__(self, channels: int = CHANNELS) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(channels, 10), nn.Linear(10, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.outer(self.inner(x).tanh()))


class Pooled(nn.Module):
    """Something that runs over all channels and gates them, in front of a head."""

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.embed, self.pool, self.head = nn.Linear(5, CHANNELS), pool, nn.Linear(CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).tanh()
        return self.head(x * self.pool(x).sigmoid())


class Statistic(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        if self.name == "max":
            return x.max(-1, keepdim=True)[0]
        if self.name == "argmax":
            return x.max(-1, keepdim=True)[1].float()
        if self.name in ("unbiased", "biased"):
            return x.var(-1, keepdim=True, unbiased=self.name == "unbiased")
        return getattr(x, self.name)(-1, keepdim=True)


class Shared(nn.Module):
    """The stages of a ConvNeXt: a norm and a depthwise convolution read one stream."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.mix = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
        self.norm, self.inner, self.outer = nn.LayerNorm(CHANNELS), nn.Linear(CHANNELS, 12), nn.Linear(12, CHANNELS)
        self.head = nn.Linear(CHANNELS, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(self.inner(self.norm(self.mix(x).permute(0, 2, 3, 1))).tanh()).permute(0, 3, 1, 2)
        return self.head(x.amax((2, 3)))


class Merged(nn.Module):
    """Patch merging: a norm over four tokens side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.block = nn.Linear(5, CHANNELS), PostNorm()
        self.norm, self.head = nn.LayerNorm(4 * CHANNELS), nn.Linear(4 * CHANNELS, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block(self.embed(x))
        return self.head(self.norm(x.reshape(len(x), -1, 4 * x.shape[-1])).mean(1))


def stacked() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, CHANNELS), PostNorm(), PostNorm(), nn.Linear(CHANNELS, 3)), torch.randn(8, 5)


def copied_site(model: nn.Module, x: Tensor) -> GrowthSite:
    (site,) = [site for site in growkit.find_sites(model, x) if site.by_copies]
    return site


def transformer(**settings: object) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True, **settings)  # type: ignore[arg-type]
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return nn.Sequential(nn.Linear(5, 16), encoder, nn.Linear(16, 3)), torch.randn(4, 7, 5)


# --- the mathematics


def test_a_copy_stands_where_the_expression_puts_it():
    width, heads = Atom(3), Atom(2)
    dim = Sum([Product([heads, width]), width])
    sizes = {width: 6}
    origins, index = copy_origins(dim, sizes, width), index_map(dim, sizes)
    assert origins.tolist() == [0, 1, 2, 0, 1, 2, 6, 7, 8, 6, 7, 8, 12, 13, 14, 12, 13, 14]
    assert ((origins == range(18)) == (index >= 0)).all()


@pytest.mark.parametrize("copies", [1, 2, 4])
def test_a_post_norm_stream_is_exact_in_float64(copies: int):
    model, x = stacked()
    model, x = model.double(), x.double()
    before, site = model(x), copied_site(model, x)
    growkit.widen(model, site, copies * CHANNELS)
    assert site.width == (1 + copies) * CHANNELS
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-14)


def test_new_units_copy_and_nothing_reads_them():
    model, x = stacked()
    old = {name: value.clone() for name, value in model.state_dict().items()}
    growkit.widen(model, copied_site(model, x), CHANNELS)
    new = model.state_dict()
    assert torch.equal(new["0.weight"], old["0.weight"].repeat(2, 1))
    assert torch.equal(new["1.norm.weight"], old["1.norm.weight"].repeat(2))
    assert torch.equal(new["1.inner.weight"][:, :CHANNELS], old["1.inner.weight"])
    assert not new["1.inner.weight"][:, CHANNELS:].any()


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_all_copies_of_a_unit_part_when_they_learn(copies: int):
    model, x = stacked()
    growkit.widen(model, copied_site(model, x), copies * CHANNELS)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
    of_a_unit = model.get_parameter("0.weight").reshape(1 + copies, CHANNELS, -1)
    apart = (of_a_unit[:, None] - of_a_unit).abs().amax((2, 3)) + torch.eye(1 + copies)
    assert apart.min() > 1e-4


def test_several_copies_of_a_unit_are_read_by_shares_that_add_up_to_nothing():
    model, x = stacked()
    old = model.get_parameter("1.inner.weight").clone()
    growkit.widen(model, copied_site(model, x), 3 * CHANNELS)
    first, *copies = model.get_parameter("1.inner.weight").reshape(10, 4, CHANNELS).unbind(1)
    assert torch.equal(first, old) and not sum(copies).any()
    torch.testing.assert_close(copies[0], -old / 3)


def test_optimizer_state_of_copies_is_zero_and_that_of_the_old_stays():
    model, x = stacked()
    optimizer = torch.optim.Adam(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    weight = model.get_parameter("0.weight")
    before = optimizer.state[weight]["exp_avg"].clone()
    growkit.widen(model, copied_site(model, x), CHANNELS, optimizer=optimizer)
    after = optimizer.state[weight]["exp_avg"]
    assert torch.equal(after[:CHANNELS], before) and not after[CHANNELS:].any()


def test_undo_is_exact_to_the_last_bit():
    model, x = stacked()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    growkit.widen(model, copied_site(model, x), 2 * CHANNELS).undo()
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


# --- what bears copies


@pytest.mark.parametrize("name", ["mean", "amax", "amin", "max", "biased"])
def test_what_does_not_count_the_units_bears_copies(name: str):
    torch.manual_seed(0)
    model, x = Pooled(Statistic(name)), torch.randn(6, 5)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    assert [site.name for site in verdict.sites] == ["embed"]


def compared(h: Tensor) -> Tensor:
    return h * (h == h.amax(-1, keepdim=True))


def masked(h: Tensor) -> Tensor:
    return h.masked_fill(h < h.max(-1, keepdim=True)[0], 0.0)


@pytest.mark.parametrize("gate", [compared, masked, lambda h: (h - h.amax(-1, keepdim=True)).sign()])
def test_units_that_are_compared_with_the_largest_one_do_not(gate: Callable[[Tensor], Tensor]):
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(5, CHANNELS), nn.Linear(CHANNELS, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(gate(self.embed(x)))

    assert not list(growkit.find_sites(Gated(), torch.randn(6, 5)))


def test_running_variances_of_a_batch_norm_over_units_count_them():
    class Tokens(nn.Module):
        def __init__(self, *, tracks: bool) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(5, CHANNELS), nn.Linear(CHANNELS, 3)
            self.norm = nn.BatchNorm1d(7, track_running_stats=tracks)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.embed(x)).tanh())

    assert [len(growkit.find_sites(Tokens(tracks=tracks), torch.randn(3, 7, 5))) for tracks in (False, True)] == [1, 0]


@pytest.mark.parametrize("name", ["sum", "argmax", "unbiased", "logsumexp"])
def test_what_counts_them_does_not(name: str):
    torch.manual_seed(0)
    sites = growkit.find_sites(Pooled(Statistic(name)), torch.randn(6, 5))
    assert not [site for site in sites if site.by_copies]


@pytest.mark.parametrize("model", [Merged(), Shared()], ids=["patch merging", "depthwise"])
def test_streams_that_no_zeros_leave_alone(model: nn.Module):
    torch.manual_seed(0)
    x = torch.randn(3, 8, 5) if isinstance(model, Merged) else torch.randn(3, 3, 6, 6)
    sites = growkit.find_sites(model, x)
    verdict = growkit.verify_sites(model, sites)
    stream = next(site for site in verdict.sites if site.width == CHANNELS)
    assert stream.by_copies and not verdict.refusals
    before = model(x)
    growkit.widen(model, stream, CHANNELS)
    torch.testing.assert_close(model(x), before, rtol=0, atol=2e-6)


class ChannelAttention(nn.Module):
    """Channels of a head attend to one another (El-Nouby et al. 2021): soft-max over units, and units are weighed."""

    def __init__(self, how: str = "matmul") -> None:
        super().__init__()
        self.how, self.embed = how, nn.Linear(5, 8)
        self.qkv, self.out, self.head = nn.Linear(8, 6 * CHANNELS), nn.Linear(2 * CHANNELS, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 4, 1).unbind(0)  # [B, heads, C, N] each
        if self.how == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        else:
            weights = (q @ k.transpose(-2, -1)).softmax(-1)
            mixed = weights @ v if self.how == "matmul" else weights @ v + weights.amax(-1, keepdim=True)
        return self.head(x + self.out(mixed.permute(0, 3, 1, 2).flatten(2)).tanh()).mean(1)


@pytest.mark.parametrize("how", ["matmul", "fused"])
def test_channels_that_attend_to_channels_bear_copies(how: str):
    torch.manual_seed(0)
    model, x = ChannelAttention(how).double(), torch.randn(3, 7, 5).double()
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    (copied,) = [site for site in verdict.sites if site.by_copies]
    assert copied.width == CHANNELS
    before = model(x)
    growkit.widen(model, copied, CHANNELS)
    assert model.out.in_features == 4 * CHANNELS
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-14)


def test_weights_of_a_softmax_that_are_read_elsewhere_do_not():
    torch.manual_seed(0)
    sites = growkit.find_sites(ChannelAttention("read"), torch.randn(3, 7, 5))
    assert not [site for site in sites if site.by_copies]


def test_a_norm_over_several_widths_does_not_bear_copies_of_one():
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.norm, self.head = nn.Linear(5, 6), nn.Linear(5, 4), nn.LayerNorm(10), nn.Linear(10, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(torch.cat([self.a(x), self.b(x)], -1).tanh()))

    assert not list(growkit.find_sites(Joined(), torch.randn(3, 5)))


def test_a_tied_embedding_makes_the_copies_and_would_read_them():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.block = nn.Embedding(9, CHANNELS), PostNorm()

        def forward(self, tokens: Tensor) -> Tensor:
            return self.block(self.embed(tokens)) @ self.embed.weight.t()

    sites = growkit.find_sites(Tied(), torch.randint(0, 9, (3, 4)))
    assert [site.name for site in sites] == ["block.inner"]


def test_a_post_norm_transformer_of_torch_grows_by_heads_and_by_their_size():
    model, x = transformer(dropout=0.1)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    streams = [site for site in verdict.sites if site.by_copies]
    assert [(site.channels, site.width, site.grows_by) for site in streams] == [(16, 2, 2), (8, 8, 8)]
    model.eval()
    before = model(x)
    growkit.widen(model, streams[0], 2)
    assert model[0].out_features == 32 and model[1].layers[0].self_attn.num_heads == 4  # type: ignore[union-attr]
    torch.testing.assert_close(model(x), before, rtol=0, atol=2e-6)


# --- what it means for growth


def test_anything_but_whole_copies_is_refused():
    model, x = stacked()
    with pytest.raises(
        GrowthRefused, match="'0' can only grow by whole copies of its 6 units, .* 6, got 4; this width"
    ):
        growkit.widen(model, copied_site(model, x), 4)


def test_costs_are_those_of_a_unit_on_average():
    model, x = stacked()
    site = copied_site(model, x)
    more = sum(p.numel() for p in stacked_at(2 * CHANNELS).parameters()) - sum(p.numel() for p in model.parameters())
    assert site.params_per_unit * CHANNELS == more


def stacked_at(channels: int) -> nn.Module:
    return nn.Sequential(nn.Linear(5, channels), PostNorm(channels), PostNorm(channels), nn.Linear(channels, 3))


@pytest.mark.parametrize(
    ("width", "target", "wished", "units"),
    [(6, 12, 1, 6), (6, 24, 1, 6), (6, 24, 7, 18), (6, 18, 1, 12), (6, 36, 7, 12), (6, 36, 99, 30), (12, 12, 3, 0)],
)
def test_whole_copies_are_rounded_up_and_always_lead_to_the_target(width: int, target: int, wished: int, units: int):
    assert SiteState("a", 6, width, target, by_copies=True).possible(wished) == units


def controller(target: object, **more: Any) -> GrowthController:
    model, x = stacked()
    settings = GrowthSettings(initializer=ZeroSettings(), target=target, how_many=FixedSettings(units=2), **more)  # type: ignore[arg-type]
    sites = growkit.find_sites(model, x)
    compute = ComputePolicy("cpu", "fp32", False, "a test")
    made = GrowthController(model, sites, settings, lambda y, t: (y - t).square().mean(), compute, torch.Generator())
    made.prepare(Inputs((x,)))
    return made


def test_a_budget_that_no_copy_fits_leaves_the_other_sites_growing():
    made = controller(4.0, budget=BudgetSettings(params=600))
    plan = made.plan(Clock(10, 100))
    assert plan is not None and plan.final_widths["0"] == CHANNELS and plan.final_widths["1.inner"] > 10


def test_a_run_grows_it_by_whole_copies_and_keeps_the_function():
    made = controller(2.0)
    model, x = made.model, torch.randn(8, 5)
    optimizer = torch.optim.Adam(model.parameters())
    event = made.grow(optimizer, Inputs((x,)), torch.zeros(8, 3), History(Clock(1, 10)))
    assert {one.site: (one.old_width, one.new_width) for one in event.grown}["0"] == (6, 12)
    assert event.change.worst < 1e-5


def test_a_target_below_one_copy_is_said():
    refusals = {refusal.name: refusal.reason for refusal in controller(1.5).refusals}
    assert refusals["0"] == "can only grow by whole copies of its units, and growth.target 1.5 asks for less than one"


def test_a_final_width_between_two_copies_is_refused_with_the_nearest():
    with pytest.raises(UserInputError, match=r"growth.target.0: 0 can only grow .* got 8; the nearest are 6 and 12"):
        controller({"0": 8})
