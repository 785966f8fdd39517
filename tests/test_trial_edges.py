"""Trials of modules at the edge: caches in many places, forwards with a domain, sites that fail only as a whole."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import growkit
from growkit.surgery import Growth, Inputs, grow, observe


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


class Shifted(nn.Module):
    """Adds a table that it keeps, one for every width, where the others can see it."""

    def __init__(self, tables: dict[int, Tensor]):
        super().__init__()
        self.linear, self.tables = nn.Linear(8, 8), tables

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] not in self.tables:
            self.tables[x.shape[-1]] = torch.linspace(0, 1, x.shape[-1])
        return torch.tanh(self.linear(x) + self.tables[x.shape[-1]])


class Cached(nn.Module):
    """Keeps what it once made for its width."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.table = nn.Linear(6, 8), nn.Linear(8, 6), None

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x)
        if self.table is None:
            self.table = torch.ones(hidden.shape[-1])
        return x + self.down(torch.tanh(hidden * self.table))


class Reader(nn.Module):
    """Reads a number that another one reads too; the faulty one bounds by its width as well."""

    def __init__(self, config: Any, outputs: int, *, faulty: bool):
        super().__init__()
        self.config, self.faulty = config, faulty
        self.up, self.down = nn.Linear(6, config.heads * 4), nn.Linear(config.heads * 4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.up(x).view(len(x), self.config.heads, 4).softmax(2).flatten(1)
        return self.down(hidden.clamp(max=float(hidden.shape[-1])) if self.faulty else hidden)


class InDomain(nn.Module):
    """Wants inputs between 0 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x + F.binary_cross_entropy(x, x, reduction="none"))))


class Counter:
    __slots__ = ("__count",)

    def __init__(self) -> None:
        self.__count = 0

    def up(self) -> int:
        self.__count += 1
        return self.__count


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.counter, self.linear = Counter(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.counter.up()
        return self.linear(x)


def test_a_cache_that_two_modules_share_is_put_back_by_undo():
    tables: dict[int, Tensor] = {}
    model = nn.Sequential(nn.Linear(4, 8), Shifted(tables), Shifted(tables), nn.Linear(8, 2))
    example = torch.randn(3, 4)
    site = growkit.find_sites(model, example)[0]
    model(example)
    before = dict(tables)
    grow(model, [Growth(site, 2)]).undo()
    assert list(tables) == [8] and tables[8] is before[8]


def test_however_many_modules_keep_a_cache_their_widths_grow():
    model, example = nn.Sequential(*(Cached() for _ in range(20))), torch.randn(4, 6)
    sites = growkit.find_sites(model, example)
    model(example)
    assert len(growkit.verify_sites(model, sites).sites) == 20


def test_every_site_is_in_the_verdict_also_a_part_of_one_that_fails_as_a_whole():
    torch.manual_seed(0)
    config = SimpleNamespace(heads=3)
    model, example = nn.Sequential(Reader(config, 6, faulty=True), Reader(config, 3, faulty=False)), torch.randn(4, 6)
    sites = growkit.find_sites(model, example)
    names = {site.name for site in sites}
    verdict = growkit.verify_sites(model, sites)
    assert {"0.up", "1.up"} <= names
    assert names == {refusal.name for refusal in verdict.refusals} | {site.name for site in verdict.sites}


def test_a_forward_with_a_domain_is_tried_on_values_in_it():
    example = torch.rand(3, 4)
    example[0] = 1.0
    model = InDomain()
    verdict = growkit.verify_sites(model, growkit.find_sites(model, example))
    assert len(verdict.sites) == 1 and verdict.not_checked == ("other values",)


def test_the_verdict_says_what_the_model_does_not_bear():
    class Bound(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(4, 6))

    model, example = Bound(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(4, 6)
    assert growkit.verify_sites(model, growkit.find_sites(model, example)).not_checked == ("another batch size",)
    free = nn.Sequential(*model)
    assert growkit.verify_sites(free, growkit.find_sites(free, example)).not_checked == ()


def test_a_configuration_that_cannot_be_copied_is_no_holder_to_change():
    class Config:
        heads = 3

        def __init__(self) -> None:
            self.heads = 3

        def __copy__(self) -> Config:
            raise TypeError("there is one of me")

    config = Config()
    model, example = Reader(config, 3, faulty=False), torch.randn(4, 6)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, example))
    assert config.heads == 3 and not [site for site in verdict.sites if site.name == "up"]


def test_entries_of_one_list_are_read_or_not_each_for_itself():
    class Listed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sizes = [4, 4]
            self.first, self.second = nn.Linear(6, 12), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).view(len(x), self.sizes[1], 3).softmax(2).flatten(1))

    model, example = Listed(), torch.randn(4, 6)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, example))
    heads = next(site for site in verdict.sites if site.width == 4)
    growkit.widen(model, heads, 2)
    assert model.sizes == [4, 6]


def test_a_tensor_with_a_history_that_the_forward_does_not_make_is_no_cache():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.scale = nn.Linear(4, 8), nn.Linear(8, 3), nn.Parameter(torch.ones(3))
            self.kept = {"scale": self.scale * 2}

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x))) * self.kept["scale"]

    model, example = Scaled(), torch.randn(3, 4)
    growkit.widen(model, growkit.find_sites(model, example)["first"], 2)
    assert model.first.out_features == 10 and "scale" in model.kept


def test_private_slots_are_put_back():
    model = Counting()
    observe(model, Inputs((torch.randn(2, 4),)))
    assert model.counter.up() == 1


@pytest.mark.parametrize("first", [torch.randn(2, 5), torch.randn(2, 6)])
def test_what_is_a_cache_does_not_depend_on_what_was_asked_before(first: Tensor):
    from growkit.surgery.caches import caches_of

    model, example = Cached(), torch.randn(2, 6)
    model(example)
    caches_of(model, Inputs((first,)))
    assert len(caches_of(model, Inputs((example,)))) == 1
