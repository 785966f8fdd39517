"""A width that acts as a number on other inputs than those of the trial is refused: outputs that stay prove nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import growkit

Middle = Callable[[Tensor], Tensor]


class Two(nn.Module):
    """Two hidden widths; what happens between may read the second one."""

    def __init__(self, middle: Middle):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 8), nn.Linear(8, 10), nn.Linear(10, 3)
        self.middle, self.bound, self.eps = middle, torch.tensor([50.0]), 1e-5

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self.second(torch.tanh(self.first(x)))))


def verdict_of(middle: Middle) -> growkit.surgery.Verdict:
    torch.manual_seed(0)
    model, x = Two(middle), torch.randn(6, 5)
    return growkit.verify_sites(model, growkit.find_sites(model, x))


def other_path(h: Tensor) -> Tensor:
    if h.shape[-1] > 10:
        h = h.clamp(max=1e4)
    return h


def attend(h: Tensor, *probability: float, **named: float) -> Tensor:
    mask, keys = [None] if probability else [], torch.ones(h.shape[0], 4)
    return F.scaled_dot_product_attention(keys, keys, h, *mask, *probability, **named)


def thin(h: Tensor) -> Tensor:
    return torch.full((h.shape[0], 3), 1e-2)


def surrogate(h: Tensor) -> Tensor:
    return h + (h.round() - h).detach()


def beside(layer: nn.MultiheadAttention | nn.LSTM, h: Tensor) -> Tensor:
    layer.dropout, x = h.shape[-1] / 100, torch.ones(h.shape[0], 2, 4)
    outputs, _ = layer(x, x, x) if isinstance(layer, nn.MultiheadAttention) else layer(x)
    return h + outputs.detach().mean()


NUMBERS: dict[str, Middle] = {
    "clamp": lambda h: h.clamp(max=float(h.shape[-1])),
    "clamp in a tensor": lambda h: torch.minimum(h, torch.tensor(float(h.shape[-1]))),
    "where": lambda h: torch.where(h > h.shape[-1], -h, h),
    "threshold": lambda h: F.threshold(h, -float(h.shape[-1]), 0.0),
    "hardtanh": lambda h: F.hardtanh(h, -h.shape[-1], h.shape[-1]),
    "full": lambda h: torch.minimum(h, torch.full_like(h, h.shape[-1])),
    "beyond a bend": lambda h: h + torch.relu(h - h.shape[-1]),
    "function of the size": lambda h: h.clamp(max=5 * h.shape[-1] ** 0.5),
    "end of a slice from the start": lambda h: h[: h.shape[-1]],
    "end of a slice behind others": lambda h: h[None, ..., : h.shape[-1], :][0],
    "end of a slice of samples": lambda h: torch.cat([h, h])[: h.shape[0] * (h.shape[-1] + 3)][: h.shape[0]],
    "start of a slice of samples": lambda h: h[-h.shape[-1] :],
    "size of the pieces": lambda h: h.split(h.shape[-1])[0],
    "rounded down": lambda h: h.clamp(max=50.0 + h.shape[-1] // 8),
    "factor before a bend": lambda h: h + torch.relu(h / h.shape[-1] - 50.0),
    "factor before rounding": lambda h: h + (thin(h) / h.shape[-1]).round().sum(),
    "factor before a surrogate of rounding": lambda h: h + surrogate(thin(h) / h.shape[-1] ** 0.5).sum(),
    "factor before a comparison": lambda h: h * torch.where(h / h.shape[-1] > 50.0, 2.0, 1.0),
    "factor before an index": lambda h: h + torch.arange(4.0)[(thin(h) / h.shape[-1]).long()].sum(),
    "factor before a norm with eps": lambda h: h + F.normalize(thin(h) / h.shape[-1], eps=1e-6).sum(),
    "factor that is undone": lambda h: h * h.shape[-1] / torch.full([], float(h.shape[-1])),
    "factor that is undone behind a bend": lambda h: F.hardtanh(h / h.shape[-1]) * h.shape[-1],
    "bound of one number": lambda h: h * h.norm().clamp(max=5.0 * h.shape[-1]) / h.norm(),
    "factor in place": lambda h: h + torch.relu(h.clone().mul_(h.shape[-1]) - 1e4),
    "dropout": lambda h: F.dropout(h, h.shape[-1] / 100),
    "dropout in place": lambda h: F.dropout(h, p=h.shape[-1] / 100, inplace=True),
    "dropout of torch": lambda h: torch.dropout(h, h.shape[-1] / 100, True),
    "dropout of channels": lambda h: F.dropout1d(h[..., None], h.shape[-1] / 100)[..., 0],
    "alpha dropout": lambda h: F.alpha_dropout(h, h.shape[-1] / 100, training=True),
    "dropout of attention": lambda h: attend(h, h.shape[-1] / 100),
    "dropout of attention by name": lambda h: attend(h, dropout_p=h.shape[-1] / 100),
    "dropout of heads": lambda h: beside(nn.MultiheadAttention(4, 2), h),
    "dropout between layers": lambda h: beside(nn.LSTM(4, 4, num_layers=2), h),
}


@pytest.mark.parametrize("middle", NUMBERS.values(), ids=NUMBERS.keys())
def test_a_size_that_acts_as_a_number_is_refused_and_no_other(middle: Middle) -> None:
    verdict = verdict_of(middle)
    assert [site.name for site in verdict.sites] == ["first"]
    (refusal,) = verdict.refusals
    assert refusal.name == "second" and ("acts as a number" in refusal.reason or "bounds a slice" in refusal.reason)
    assert "test_verify_numbers.py" in str(refusal.location)


def test_the_refusal_names_the_number_before_and_after() -> None:
    (refusal,) = verdict_of(NUMBERS["clamp"]).refusals
    assert "'clamp': 10, then 18" in refusal.reason


def test_a_path_that_depends_on_the_width_is_refused() -> None:
    verdict = verdict_of(other_path)
    assert [site.name for site in verdict.sites] == ["first"]
    assert "another path" in verdict.refusals[0].reason
    assert str(other_path.__code__.co_firstlineno + 2) in str(verdict.refusals[0].location)


SIZES: dict[str, Middle] = {
    "view": lambda h: h.view(h.shape[0], h.shape[-1]).reshape(-1, 1, h.shape[-1])[:, 0],
    "mask of positions": lambda h: h * torch.ones(h.shape[-1]),
    "number of the data": lambda h: h.clamp(max=float(h.detach().max())),
    "number in the code": lambda h: h.clamp(max=10.0),
    "slice of the units": lambda h: torch.cat([h, h], -1)[:, : h.shape[-1]],
    "slice to the end": lambda h: h[:, 0:],
    "pieces of the units": lambda h: torch.cat([h, h], -1).split(h.shape[-1], -1)[0],
}


@pytest.mark.parametrize("middle", SIZES.values(), ids=SIZES.keys())
def test_sizes_and_numbers_that_act_on_every_input_are_no_reason_to_refuse(middle: Middle) -> None:
    assert verdict_of(middle).refusals == ()


def test_a_cache_that_is_made_anew_for_another_width_is_no_other_path() -> None:
    class Caching(Two):
        def forward(self, x: Tensor) -> Tensor:
            h = self.second(torch.tanh(self.first(x)))
            if self.__dict__.get("ones") is None or len(self.ones) != h.shape[-1]:
                self.ones = torch.ones(h.shape[-1])
            return self.head(h * self.ones)

    model, x = Caching(torch.tanh), torch.randn(6, 5)
    model(x)
    assert growkit.verify_sites(model, growkit.find_sites(model, x)).refusals == ()


def test_the_verdict_says_where_it_holds_for_one_path_only() -> None:
    class Branching(Two):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x if float(x.sum()) > -1e9 else -x)

    x = torch.randn(6, 5)
    for kind, specialised in ((Branching, True), (Two, False)):
        model = kind(torch.tanh)
        assert growkit.verify_sites(model, growkit.find_sites(model, x)).path_specialised is specialised


def test_a_number_that_steps_at_a_larger_width_than_the_trials_is_noticed_at_the_edit() -> None:
    torch.manual_seed(0)
    model, x = Two(lambda h: h.clamp(max=100.0 if h.shape[-1] < 64 else 50.0)), torch.randn(6, 5)
    _, site = growkit.verify_sites(model, growkit.find_sites(model, x)).sites
    with pytest.raises(growkit.SurgeryError, match="'clamp': 100, then 50.*test_verify_numbers.py"):
        growkit.widen(model, site, 54)
    assert growkit.widen(model, site, 53).records[0].new_width == 63


class Remembers(nn.Module):
    """Makes a scale of its width once, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head, self.scales = nn.Linear(5, 8), nn.Linear(8, 3), {}

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        if h.shape[-1] not in self.scales:
            self.scales[h.shape[-1]] = torch.ones(h.shape[-1]) * 0.5
        return self.head(h * self.scales[h.shape[-1]])


def test_what_a_model_makes_anew_for_a_new_width_is_no_other_path() -> None:
    model, x = Remembers(), torch.randn(6, 5)
    (site,) = growkit.verify_sites(model, growkit.find_sites(model, x)).sites
    model(x)
    assert growkit.widen(model, site, 3).records[0].new_width == 11


@dataclass(frozen=True)
class Frozen:
    width: int = 8


@dataclass
class Open:
    width: int = 8


class Configured(nn.Module):
    def __init__(self, config: Frozen | Open, middle: Callable[[Tensor, int], Tensor]):
        super().__init__()
        self.config, self.middle = config, middle
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(x)).view(-1, self.config.width)
        return self.head(self.middle(hidden, self.config.width))


@pytest.mark.parametrize(
    ("config", "middle", "reason"),
    [
        (Frozen(), lambda x, n: x, "Frozen is a frozen dataclass.*leave out frozen=True"),
        (Open(), lambda x, n: x / n, "with 'config.width' of the model changed along, .*read as another number too"),
    ],
    ids=["frozen", "two roles"],
)
def test_a_number_that_cannot_change_along_is_named(config, middle, reason) -> None:
    torch.manual_seed(0)
    model = Configured(config, middle)
    (refusal,) = growkit.verify_sites(model, growkit.find_sites(model, torch.randn(4, 5))).refusals
    assert re.search(reason, refusal.reason)
