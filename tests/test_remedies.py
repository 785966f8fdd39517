"""Widths that norms and attention products depend on: grown exactly, in float64, or refused with the reason."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import growkit
from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite, Sites, find_sites
from growkit.surgery import Edit, Extension, Growth, Inputs, function_change, grow, lookup, new_entries, observe

EXACT = 1e-12


class WrittenRMSNorm(nn.Module):
    """As Llama's authors write it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(width)), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        variance = x.to(torch.float64).pow(2).mean(-1, keepdim=True)
        return self.weight * (x * torch.rsqrt(variance + self.variance_epsilon))


class WrittenLayerNorm(nn.Module):
    """Mean and variance spelled out."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width)), 1e-6

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(-1, keepdim=True)
        variance = (x - mean).pow(2).mean(-1, keepdim=True)
        return self.weight * ((x - mean) / torch.sqrt(variance + self.eps)) + self.bias


class LiteralLayerNorm(nn.Module):
    """Its eps stands in the forward, as in nanoGPT."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-3)


class Attention(nn.Module):
    """Fused q, k and v; subclasses differ in how sizes reach the forward and how products are scaled."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class KeptScale(Attention):
    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.scale = self.head_dim**-0.5

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        weights = (q @ k.transpose(-2, -1) * self.scale).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class ComputedScale(Attention):
    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5).softmax(-1)
        return self.proj(torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).flatten(2))


class SeparateParts(Attention):
    def __init__(self, width: int, heads: int):
        super().__init__(width, heads)
        self.qkv = nn.ModuleList(nn.Linear(width, width, bias=i > 0) for i in range(3))  # type: ignore[assignment]

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(f(x).unflatten(-1, (self.heads, self.head_dim)).transpose(1, 2) for f in self.qkv)


class TiedToStream(Attention):
    """Heads times their size must be the width of the stream."""

    def parts(self, x: Tensor) -> tuple[Tensor, ...]:
        batch, tokens, width = x.shape
        shape = batch, tokens, 3, self.heads, width // self.heads
        return self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.parts(x)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


class TorchAttention(nn.MultiheadAttention):
    def __init__(self, width: int, heads: int):
        super().__init__(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x, x, need_weights=False)[0]


class Block(nn.Module):
    def __init__(self, width: int, norm: Callable[[int], nn.Module], attention: Callable[[int, int], nn.Module]):
        super().__init__()
        self.norm1, self.norm2 = norm(width), norm(width)
        self.attention = attention(width, 2)
        self.up, self.down = nn.Linear(width, 10), nn.Linear(10, width)
        self.gain = nn.Parameter(1e-4 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.gain * self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Pre-norm: patches, a class token, positions, two blocks, a last norm, a head."""

    def __init__(
        self,
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        attention: Callable[[int, int], nn.Module] = Attention,
        width: int = 8,
    ):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 2, 2)
        self.token, self.positions = (nn.Parameter(torch.randn(1, n, width)) for n in (1, 5))
        self.blocks = nn.ModuleList(Block(width, norm, attention) for _ in range(2))
        self.norm, self.head = norm(width), nn.Linear(width, 3)

    def embedded(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


IMAGE = torch.randn(3, 3, 4, 4, generator=torch.Generator().manual_seed(3))


def prepared(model: nn.Module) -> tuple[nn.Module, Sites]:
    """The model with weights far from their initial values, in float64, and its sites."""
    sites = find_sites(model, IMAGE)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.double(), sites


def widened(model: nn.Module, site: GrowthSite, num_new: int, **options: Any) -> Edit:
    """Random units wherever the site does not ask for zeros."""
    generator, values = torch.Generator().manual_seed(1), {}
    for edit in site.tensor_edits(num_new):
        for dim, index in enumerate(edit.index_maps):
            if index is not None and dim not in edit.silent_dims and not edit.pass_through:
                shape = list(lookup(model, edit.names[0], edit.kind).shape)
                shape[dim] = int((index < 0).sum())
                values[edit.names[0], dim] = torch.randn(shape, generator=generator, dtype=torch.float64)
    return grow(model, [Growth(site, num_new, Extension(values), **options)])


def assert_exact(model: nn.Module, site: GrowthSite, num_new: int = 3) -> Edit:
    inputs = Inputs((IMAGE.double(),))
    before = observe(model, inputs)
    edit = widened(model, site, num_new)
    assert function_change(before, observe(model, inputs)).worst < EXACT
    return edit


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm,
        lambda width: nn.RMSNorm(width, eps=1e-5),
        nn.RMSNorm,
        WrittenRMSNorm,
        WrittenLayerNorm,
        LiteralLayerNorm,
    ],
    ids=["layer", "rms", "rms without eps", "written rms", "written layer", "eps in the forward"],
)
def test_a_residual_stream_that_norms_read_grows_exactly_and_again(norm: Callable[[int], nn.Module]):
    model, sites = prepared(Transformer(norm))
    assert_exact(model, sites["patches"])
    assert_exact(model, sites["patches"], 2)
    assert model.positions.shape[-1] == model.head.in_features == 13
    assert model(IMAGE.double()).shape == (3, 3)


def test_without_the_remedy_the_stream_would_compute_something_else():
    model, sites = prepared(Transformer())
    inputs = Inputs((IMAGE.double(),))
    before = observe(model, inputs)
    widened(model, sites["patches"], 3, remedied=False)
    assert function_change(before, observe(model, inputs)).worst > 1e-3


def test_new_channels_of_a_stream_receive_a_gradient_at_the_first_step():
    model, sites = prepared(Transformer())
    edit = assert_exact(model, sites["patches"])
    model(IMAGE.double()).square().sum().backward()
    masks = {id(parameter): mask for parameter, mask in new_entries(model, edit)["patches"]}
    for writer in (model.patches.weight, model.positions, model.blocks[1].down.weight):
        assert bool((writer.grad[masks[id(writer)]] != 0).any())


def test_a_gain_close_to_zero_is_raised_and_its_weights_make_up_for_it():
    model, sites = prepared(Transformer())
    with torch.no_grad():
        model.blocks[0].gain[2] = 1e-9
    assert_exact(model, sites["patches"])
    assert bool((model.blocks[0].gain[:8].abs() > 0.01).all())
    assert bool((model.blocks[0].down.weight.abs() < 100).all())


@pytest.mark.parametrize("attention", [Attention, KeptScale, ComputedScale, SeparateParts])
def test_heads_and_their_size_grow_exactly(attention: Callable[[int, int], nn.Module]):
    model, sites = prepared(Transformer(attention=attention))
    verdict = growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE)
    assert verdict.refusals == () and len(verdict.sites) == 7
    for site in verdict.sites:
        assert_exact(model, site)
        assert_exact(model, site, 1)


def test_the_first_product_after_wider_heads_lets_new_keys_learn():
    model, sites = prepared(Transformer(attention=SeparateParts))
    verdict = growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE)
    size = next(site for site in verdict.sites if site.remedies and "attention" in site.name)
    assert_exact(model, size)
    model(IMAGE.double()).square().sum().backward()
    key = model.blocks[0].attention.qkv[1].weight
    fresh = [head * 7 + entry for head in range(2) for entry in (4, 5, 6)]
    assert not key.data[fresh].any() and bool(key.grad[fresh].any())


@pytest.mark.parametrize("attention", [TiedToStream, TorchAttention])
def test_a_stream_that_must_be_heads_times_their_size_grows_by_whole_heads(attention: Callable[[int, int], nn.Module]):
    model, sites = prepared(Transformer(attention=attention))
    verdict = growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE)
    stream = next(site for site in verdict.sites if site.name == "patches")
    assert stream.width == 2 and [*stream.steps.values()] == [1, 1] and len(stream.ties) == 1
    assert sites["patches"] is stream
    assert_exact(model, stream, 1)
    assert_exact(model, stream, 2)
    assert model.head.in_features == 5 * 4
    heads = {getattr(block.attention, "heads", None) or block.attention.num_heads for block in model.blocks}
    assert heads == {5}


@pytest.mark.parametrize("attention", [TiedToStream, TorchAttention])
def test_the_same_stream_also_grows_by_the_size_of_heads_in_any_order(attention: Callable[[int, int], nn.Module]):
    model, sites = prepared(Transformer(attention=attention))
    verdict = growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE)
    by_heads, by_size = [site for site in verdict.sites if site.ties]
    assert (by_heads.width, by_size.width, verdict.refusals) == (2, 4, ())
    values = copy.deepcopy(model.state_dict())
    edits = [assert_exact(model, site, number) for site, number in ((by_size, 1), (by_heads, 2), (by_size, 2))]
    assert model.head.in_features == (2 + 2) * (4 + 1 + 2)
    before = sites.graph.params()
    assert sites.graph.params({by_heads.name: 5}) - before == by_heads.params_per_unit
    for edit in reversed(edits):
        edit.undo()
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())
    assert (by_heads.width, by_size.width, model.head.in_features) == (2, 4, 8)


class SharedHeads(nn.Module):
    """One configuration object for all blocks, as in Hugging Face's code; sizes in a tuple beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(heads=2, unrelated=2)
        self.stem = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(self.Block(self.config) for _ in range(2))
        self.head = nn.Linear(8, 3)

    class Block(nn.Module):
        def __init__(self, config: Any):
            super().__init__()
            self.config, self.sizes = config, (4, 7)
            self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
            self.wide = nn.Linear(8, 11)
            self.narrow = nn.Linear(4, 8)

        def forward(self, x: Tensor) -> Tensor:
            q, k, v = (f(x).unflatten(-1, (self.config.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
            x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
            used, _ = self.wide(x).split(self.sizes, -1)
            return x + self.narrow(torch.tanh(used))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x)
        return self.head(x).mean(1)


def test_heads_that_share_one_number_grow_together_and_only_needed_attributes_change():
    model, sites = prepared(SharedHeads())
    verdict = growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE)
    heads = next(site for site in verdict.sites if len(site.atoms) == 2)
    edit = assert_exact(model, heads, 1)
    assert (model.config.heads, model.config.unrelated) == (3, 2)
    changes = {(change.name, change.old, change.new) for change in edit.record.attributes if "config" in change.name}
    assert changes == {("config.heads", 2, 3)}
    edit.undo()
    assert model.config.heads == 2


def test_sizes_in_a_tuple_follow():
    model, sites = prepared(SharedHeads())
    verdict = growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE)
    used = next(site for site in verdict.sites if site.name == "blocks.1.wide" and site.width == 4)
    assert_exact(model, used)
    assert model.blocks[1].sizes == (7, 7) and model.blocks[0].sizes == (4, 7)


def test_undo_takes_back_remedies_to_the_last_bit():
    model, sites = prepared(Transformer())
    values = copy.deepcopy(model.state_dict())
    eps = [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)]
    edits = [assert_exact(model, site) for site in sites if not site.attributes]
    assert any(module.eps != eps[0] for module in model.modules() if isinstance(module, nn.LayerNorm))
    for edit in reversed(edits):
        edit.undo()
    assert all(torch.equal(values[name], tensor) for name, tensor in model.state_dict().items())
    assert eps == [module.eps for module in model.modules() if isinstance(module, nn.LayerNorm)]


class PostNorm(Transformer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block.norm1(x + block.attention(x))
            x = block.norm2(x + block.gain * block.down(F.gelu(block.up(x))))
        return self.head(self.norm(x)[:, 0])


class SecondReader(Transformer):
    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0]) + self.head(torch.tanh(x[:, 0]))


class ScaledStream(Transformer):
    """The mean over channels before a gain says nothing of that behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x * self.gain)
        return self.head(self.norm(x)[:, 0])


class Merged(Transformer):
    """A norm over two tokens side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embedded(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(torch.cat([x[:, 0], x[:, 1]], -1)))


class WithoutGain(Transformer):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (PostNorm, "is read by norms and by linear, so its writers cannot be centred unseen"),
        (ScaledStream, "is read by norms and by mul, so its writers cannot be centred unseen"),
        (Merged, "is normalised together with other widths or positions"),
        (WithoutGain, "is normalised without a weight that could take up the change"),
    ],
)
def test_a_stream_that_cannot_take_single_channels_says_why_and_takes_whole_copies(kind: type[nn.Module], reason: str):
    model, sites = prepared(kind())
    assert not growkit.verify_sites(copy.deepcopy(model).float(), sites, example=IMAGE).refusals
    with pytest.raises(GrowthRefused, match=reason):
        sites["patches"].grown(3)
    assert_exact(model, sites["patches"], 8)
    assert_exact(model, sites["patches"], 32)


def test_a_stream_that_layer_norms_and_others_read_grows_by_channels_with_the_mean_of_the_old_ones():
    model, sites = prepared(SecondReader())
    old = copy.deepcopy(model)
    assert_exact(model, sites["patches"])
    assert torch.equal(model.patches.weight[:8], old.patches.weight)
    torch.testing.assert_close(model.patches.weight[8], old.patches.weight.mean(0))
    assert not model.head.weight[:, 8:].any() and model.blocks[0].up.weight[:, 8:].all()
    assert_exact(model, sites["patches"])


def test_root_mean_square_streams_may_have_other_readers_that_keep_zeros():
    model, sites = prepared(type("Tanh", (SecondReader,), {})(lambda width: nn.RMSNorm(width, eps=1e-5)))
    assert_exact(model, sites["patches"])


def test_a_rescaled_norm_keeps_the_optimizer_state_of_old_entries():
    model, sites = prepared(Transformer())
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(IMAGE.double()).square().sum().backward()
    optimizer.step()
    moments = optimizer.state[model.norm.weight]["exp_avg"].clone()
    grow(model, [Growth(sites["patches"], 3)], optimizer=optimizer)
    grown = optimizer.state[model.norm.weight]["exp_avg"]
    assert torch.equal(grown[:8], moments) and not grown[8:].any()


class NearbyNumber(nn.Module):
    """An attribute that happens to equal the eps in the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.gain = nn.Linear(12, 16), nn.Linear(16, 3), nn.Parameter(torch.ones(16))
        self.threshold = 1e-3

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x[:, 0, :3].flatten(1))
        return self.head(x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-3) * self.gain)


class SharedEps(nn.Module):
    """One eps for norms of two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(12, 16), nn.Linear(12, 24), nn.Linear(16, 3), nn.Linear(24, 3)
        self.v, self.w, self.eps = nn.Parameter(torch.ones(16)), nn.Parameter(torch.ones(24)), 1e-3

    def forward(self, x: Tensor) -> Tensor:
        def norm(x: Tensor, gain: Tensor) -> Tensor:
            return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * gain

        x = x[:, 0, :3].flatten(1)
        return self.c(norm(self.a(x), self.v)) + self.d(norm(self.b(x), self.w))


@pytest.mark.parametrize(("kind", "name"), [(NearbyNumber, "stem"), (SharedEps, "a"), (SharedEps, "b")])
def test_an_eps_that_is_not_the_norms_own_stays_and_small_activations_stay_exact(kind: type[nn.Module], name: str):
    model, sites = prepared(kind())
    inputs = Inputs((1e-3 * IMAGE.double(),))
    with torch.no_grad():
        for layer in (module for module in model.modules() if isinstance(module, nn.Linear)):
            layer.bias.zero_()
    before = observe(model, inputs)
    widened(model, sites[name], 3)
    assert function_change(before, observe(model, inputs)).worst < 1e-10
    assert getattr(model, "threshold", 1e-3) == getattr(model, "eps", 1e-3) == 1e-3


def test_a_gain_of_zeros_is_raised_to_one():
    model, sites = prepared(Transformer())
    with torch.no_grad():
        model.blocks[0].gain.zero_()
    assert_exact(model, sites["patches"])
    assert bool((model.blocks[0].gain == 1).all())
