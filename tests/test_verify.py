from __future__ import annotations

import copy
import functools
from collections.abc import Iterable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.models import MlpSettings
from growkit.graph import GrowthSite, Refusal, Sites, find_sites
from growkit.models import build_model
from growkit.surgery import (
    Extension,
    FunctionChange,
    Growth,
    Inputs,
    Observation,
    function_change,
    grow,
    new_entries,
    observe,
    untouched,
    verify_sites,
)


class HardCoded(nn.Module):
    """Its author wrote the width of the last map into the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 3, padding=1)
        self.head = nn.Linear(48, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.head(x.view(-1, 48))


class ZeroBranch(nn.Module):
    """A residual branch that starts at zero: any edit inside it keeps the outputs, right or wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer, self.head = (
            nn.Linear(5, 4),
            nn.Linear(4, 6),
            nn.Linear(6, 4),
            nn.Linear(4, 3),
        )
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = torch.tanh(self.inner(x))
        hidden = hidden / (1.0 + hidden.sum(1, keepdim=True).square()) if self.mixes else hidden
        return self.head(x + self.outer(hidden))

    mixes = False


class Attentive(nn.Module):
    """Dropout as module, as function and inside attention."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.inner, self.head = nn.Linear(5, 12), nn.Linear(4, 8), nn.Linear(8, 3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(len(x), 1, 12).chunk(3, -1)
        x = F.scaled_dot_product_attention(q, k, v, None, 0.5).squeeze(1)
        return self.head(F.dropout(self.drop(torch.tanh(self.inner(x))), 0.3, self.training))


class Transformer(nn.Module):
    """Attention with its own q, k and v, whose rows are heads times head size, and a feed-forward part."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(5, 8)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.up, self.down, self.head = nn.Linear(8, 6), nn.Linear(6, 8), nn.Linear(8, 3)
        self.heads = 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v))
        x = x + self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        x = x + self.down(torch.tanh(self.up(x)))
        return self.head(x)


class Limited(nn.Module):
    """Its two hidden widths may not grow both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        y = torch.tanh(self.second(x))
        if x.shape[1] > 8 and y.shape[1] > 6:
            raise ValueError("too wide")
        return self.head(y)


class Rebinding(nn.Module):
    """Counts its calls by putting a new tensor in the buffer's place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))
        self.norm, self.drop = nn.BatchNorm1d(5), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return self.drop(self.norm(x))


def refused(model: nn.Module, sites: Iterable[GrowthSite], x: Tensor) -> list[Refusal]:
    return list(verify_sites(model, list(sites), Inputs((x,))).refusals)


@functools.cache
def traced(kind: type[nn.Module]) -> tuple[nn.Module, Sites, Tensor]:
    torch.manual_seed(0)
    model = kind()
    x = torch.randn(*{HardCoded: (4, 2, 4, 4), Transformer: (4, 3, 5)}.get(kind, (6, 5)))
    return model, find_sites(model, x), x


def fresh(kind: type[nn.Module]) -> tuple[nn.Module, Sites, Tensor]:
    model, sites, x = traced(kind)
    return copy.deepcopy(model), sites, x


def test_a_hard_coded_width_is_refused_with_a_reason_and_the_others_stay() -> None:
    model, sites, x = fresh(HardCoded)
    refusals = refused(model, sites, x)
    assert [(refusal.name, refusal.width) for refusal in refusals] == [("second", 3)]
    assert "fails at another width" in refusals[0].reason and "test_verify.py" in str(refusals[0].location)


def test_a_site_that_is_safe_is_not_refused() -> None:
    model, sites, x = fresh(ZeroBranch)
    assert {site.name for site in sites} == {"stem", "inner"}
    assert refused(model, sites, x) == []


def test_heads_and_their_size_grow_in_one_event() -> None:
    """They are factors of the same rows: each of them has new positions in the slices of the other."""
    model, sites, x = fresh(Transformer)
    verdict = verify_sites(model, list(sites), Inputs((x,)))
    assert [(site.name, site.width) for site in verdict.sites] == [
        ("stem", 8),
        ("q", 2),
        ("q#2", 4),
        ("v", 4),
        ("up", 6),
    ]
    assert verdict.refusals == () and verdict.worst < 1e-5 < verdict.control


def test_where_two_sites_cannot_grow_together_only_the_later_one_is_given_up() -> None:
    model = Limited()
    x = torch.randn(4, 5)
    sites = find_sites(model, x)
    assert [(refusal.name, refusal.width) for refusal in refused(model, sites, x)] == [("second", 6)]
    assert "at the same events as first: the model fails" in refused(model, sites, x)[0].reason
    assert refused(model, [sites["second"]], x) == []


def test_a_branch_that_is_zero_does_not_make_the_check_vacuous() -> None:
    """The hidden sum mixes the units, behind the graph's back: only the perturbed copy shows that it matters."""
    model, sites, x = fresh(ZeroBranch)
    mixing: Any = copy.deepcopy(model)
    mixing.mixes = True
    before = observe(mixing, Inputs((x,)))
    edit = grow(mixing, [Growth(sites["inner"], 2, Extension({("inner.weight", 0): torch.ones(2, 4)}))])
    assert function_change(before, observe(mixing, Inputs((x,)))).worst == 0.0
    edit.undo()
    refusals = refused(mixing, sites, x)
    assert [refusal.name for refusal in refusals] == ["inner"]
    assert "changes the outputs by" in refusals[0].reason


def test_a_site_that_no_output_depends_on_is_refused() -> None:
    model, sites, x = fresh(ZeroBranch)

    class Silent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.inner, self.outer, self.head = model.stem, model.inner, model.outer, model.head

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.stem(x)) + 0.0 * self.outer(self.inner(self.stem(x))).sum()

    reasons = {r.name: r.reason for r in refused(Silent(), sites, x)}
    assert reasons == {"inner": "no gradient reaches its new units"}


def test_dropout_of_any_kind_does_not_disturb_the_check() -> None:
    model, sites, x = fresh(Attentive)
    assert "inner" in [site.name for site in sites]
    assert refused(model, [sites["inner"]], x) == []
    train = observe(model, Inputs((x,))).train
    assert torch.equal(train[0], observe(model, Inputs((x,)), seed=1).train[0])


def test_the_model_is_untouched_by_the_check() -> None:
    model, sites, x = fresh(HardCoded)
    model(x).sum().backward()
    model.first.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradients = [p.grad.clone() for p in model.parameters()]
    modes, stream = [m.training for m in model.modules()], torch.get_rng_state()
    refused(model, sites, x)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(a, p.grad) for a, p in zip(gradients, model.parameters(), strict=True))
    assert [m.training for m in model.modules()] == modes and torch.equal(torch.get_rng_state(), stream)
    assert [site.width for site in sites] == [4, 3]


def test_observing_leaves_buffers_modes_and_random_numbers_alone() -> None:
    model, x = Rebinding(), torch.randn(6, 5)
    calls, stream = model.calls, torch.get_rng_state()
    model.eval()
    observe(model, Inputs((x,)))
    assert model.calls is calls and float(calls) == 0.0
    assert not model.norm.running_mean.any() and int(model.norm.num_batches_tracked) == 0
    assert not model.training and torch.equal(torch.get_rng_state(), stream)


def test_untouched_puts_back_after_an_error() -> None:
    model = Rebinding()
    with pytest.raises(RuntimeError, match="user code"), untouched(model):
        model.eval()
        model(torch.randn(6, 5))
        raise RuntimeError("user code")
    assert float(model.calls) == 0.0 and model.training


def test_observations_are_fp32_or_better() -> None:
    model, x = nn.Linear(5, 3), torch.randn(4, 5)
    for dtype, seen in ((torch.bfloat16, torch.float32), (torch.float32,) * 2, (torch.float64,) * 2):
        assert observe(model.to(dtype), Inputs((x.to(dtype),))).eval[0].dtype == seen


def test_inputs_may_be_nested_and_by_name_and_outputs_any_tree() -> None:
    class Net(nn.Module):
        def forward(self, pair: tuple[Tensor, Tensor], *, shift: Tensor) -> dict[str, Any]:
            return {"sum": pair[0] + pair[1] + shift, "count": torch.ones((), dtype=torch.long)}

    inputs = Inputs(((torch.ones(2, 3), torch.ones(2, 3)),), {"shift": torch.tensor(1.0)})
    (output,) = inputs.one_more().call(Net())
    assert torch.equal(output, torch.full((3, 3), 3.0))


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ([2.0, -4.0], [2.0, -4.4], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([1.0, 1.0], [1.0, float("nan")], float("inf")),
        ([1.0, float("inf")], [1.0, 1.0], float("inf")),
        ([1.0, 1.0], [1.0], float("inf")),
        ([], [], 0.0),
    ],
)
def test_function_change_is_relative_to_the_largest_output(before: list, after: list, change: float) -> None:
    found = function_change(Observation([torch.tensor(before)], []), Observation([torch.tensor(after)], []))
    assert found.eval == pytest.approx(change) and found.train == 0.0
    assert FunctionChange(0.1, 0.3).worst == 0.3


def test_new_entries_mask_exactly_what_was_added() -> None:
    model, sites, _ = fresh(ZeroBranch)
    edit = grow(model, [Growth(sites["inner"], 2)])
    entries = {id(p): mask for p, mask in new_entries(model, edit)["inner"]}
    assert len(entries) == 3
    assert entries[id(model.inner.weight)].sum(1).tolist() == [0] * 6 + [4] * 2
    assert entries[id(model.inner.bias)].tolist() == [False] * 6 + [True] * 2
    assert entries[id(model.outer.weight)].sum(0).tolist() == [0] * 6 + [4] * 2
    edit.undo()


def test_a_relu_that_is_silent_on_a_small_batch_is_no_reason_to_refuse() -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(20, 5, bias=False), nn.ReLU(), nn.Linear(5, 10, bias=False))
        example = torch.randn(2, 20)
        assert refused(model, find_sites(model, example), example) == []


@pytest.mark.parametrize("weights", [True, False], ids=["with weights", "without"])
def test_dropout_inside_torch_attention_and_recurrent_layers_is_left_out(weights: bool) -> None:
    class Nested(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = nn.MultiheadAttention(4, 2, dropout=0.5, batch_first=True)
            self.memory = nn.LSTM(4, 4, num_layers=2, dropout=0.5, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.memory(self.heads(x, x, x, need_weights=weights)[0])[0]

    model, inputs = Nested(), Inputs((torch.randn(2, 3, 4),))
    assert torch.equal(observe(model, inputs).train[0], observe(model, inputs, seed=1).train[0])
    assert torch.allclose(observe(model, inputs).train[0], observe(model, inputs).eval[0], atol=1e-6)


@pytest.mark.parametrize("seed", [56, 62, 90, 96])
def test_units_that_happen_to_be_silent_on_a_small_batch_are_drawn_again(seed: int):
    torch.manual_seed(seed)
    model = build_model(MlpSettings(hidden=(6, 5), norm="batchnorm"), (4,), 3)
    sites = find_sites(model, torch.randn(2, 4))
    assert len(verify_sites(model, list(sites), Inputs(*sites.graph.inputs)).sites) == len(sites) == 2
