"""Whatever a module holds and its forward writes to: looking, refusing and undoing leave it as it was."""

from __future__ import annotations

import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from misfits import Net, X
from torch import Tensor, nn
from zoo.truth import call

import growkit
from growkit.errors import GrowkitError, ModelError, SurgeryError
from growkit.surgery import Edit, Inputs, observe, replay, untouched
from growkit.surgery.records import AttributeChange
from growkit.surgery.undo import UndoLog


def through_all(model: nn.Module, x: Any) -> None:
    """Find, look, try, widen and undo."""
    sites = growkit.find_sites(model, x)
    observe(model, Inputs((x,)))
    verdict = growkit.verify_sites(model, sites, example=x)
    for site in verdict.sites:
        growkit.widen(model, site, 2, example=x).undo()


# values that a forward writes to


class Renormed(nn.Module):
    """Rows that are looked up are shortened in place."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 6, max_norm=0.1)
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.b(torch.tanh(self.a(self.table(tokens))))


class WithTarget(Net):
    """A frozen target follows the weights at each forward."""

    def __init__(self, write: Callable[[Tensor, Tensor], None]) -> None:
        super().__init__()
        self.target, self.write = nn.Linear(6, 8).requires_grad_(False), write
        self.steps, self.table = torch.zeros(()), torch.ones(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.write(self.target.weight, self.a.weight)
            self.steps += 1
            self.table[1].mul_(0.5)
        return super().forward(x) + 0.0 * self.target(x).sum()


def exchange(target: Tensor, source: Tensor) -> None:
    target.data = 0.9 * target.data + 0.1 * source.data


WRITES: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "in place": lambda target, source: target.lerp_(source, 0.1),
    "behind autograd": lambda target, source: target.data.lerp_(source, 0.1),
    "a list": lambda target, source: torch._foreach_lerp_([target], [source], 0.1),
    "new data": exchange,
    "into out": lambda target, source: torch.mul(source, 0.5, out=target),
}


@pytest.mark.parametrize("name", WRITES)
def test_values_that_a_forward_writes_are_put_back(name: str) -> None:
    model, x = WithTarget(WRITES[name]), torch.randn(*X)
    weight, pointer = model.target.weight.detach().clone(), model.target.weight.data_ptr()
    with untouched(model):
        model(x).sum().backward()
    observe(model, Inputs((x,)))
    assert torch.equal(model.target.weight, weight) and model.target.weight.data_ptr() == pointer
    assert float(model.steps) == 0.0 and torch.equal(model.table, torch.ones(3, 2))
    model(x)
    assert not torch.equal(model.target.weight, weight)


def test_rows_that_a_lookup_shortens_keep_their_length() -> None:
    model, tokens = Renormed(), torch.randint(0, 9, (4, 5))
    weight = model.table.weight.detach().clone()
    through_all(model, tokens)
    assert torch.equal(model.table.weight, weight)


def test_a_write_that_no_operation_makes_is_said() -> None:
    def behind(target: Tensor, source: Tensor) -> None:
        torch.autograd.graph.increment_version(target)

    with pytest.raises(ModelError, match=r"one of shape \(8, 6\) was written to in another way"):
        observe(WithTarget(behind), Inputs((torch.randn(*X),)))


def test_nested_blocks_put_back_each_its_own() -> None:
    model = Net()
    with untouched(model):
        model.a.weight.data.fill_(1.0)
        with untouched(model):
            model.a.weight.data.fill_(2.0)
        assert bool((model.a.weight == 1.0).all())
    assert not bool((model.a.weight == 1.0).any())


# containers, records, streams


@dataclass
class Counts:
    calls: int = 0
    each: list[int] = field(default_factory=list)


class Slotted:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0


HELD: dict[str, tuple[Callable[[], Any], Callable[[Any], Any], Callable[[Any], Any]]] = {
    "lists in a dictionary": (lambda: {"a": [[1]]}, lambda h: h["a"][0].append(2), lambda h: list(h["a"][0])),
    "dictionaries in a list": (lambda: [{"n": 0}], lambda h: h[0].update(n=h[0]["n"] + 1), lambda h: dict(h[0])),
    "deque": (lambda: deque([1], maxlen=3), lambda h: h.append(2), list),
    "ordered": (lambda: OrderedDict(a=1, b=2), lambda h: h.move_to_end("a"), list),
    "default": (lambda: defaultdict(list), lambda h: h["x"].append(1), dict),
    "counter": (Counter, lambda h: h.update("ab"), dict),
    "set": (lambda: {1}, lambda h: h.add(len(h) + 5), sorted),
    "namespace": (lambda: SimpleNamespace(n=0), lambda h: setattr(h, "n", h.n + 1), lambda h: h.n),
    "dataclass": (Counts, lambda h: h.each.append(len(h.each)), lambda h: list(h.each)),
    "slots": (Slotted, lambda h: setattr(h, "calls", h.calls + 1), lambda h: h.calls),
    "in a tuple": (lambda: ([],), lambda h: h[0].append(1), lambda h: list(h[0])),
    "array": (lambda: np.zeros(3), lambda h: np.add(h, 1.0, out=h), lambda h: h.tolist()),
    "torch stream": (torch.Generator, lambda h: torch.rand(1, generator=h), lambda h: h.get_state().tolist()),
    "numpy stream": (lambda: np.random.default_rng(0), lambda h: h.random(), lambda h: str(h.bit_generator.state)),
    "python stream": (lambda: random.Random(0), lambda h: h.random(), lambda h: h.getstate()),
    "module in a list": (lambda: [nn.BatchNorm1d(6)], lambda h: h[0](torch.randn(4, 6)), lambda h: str(vars(h[0]))),
}


class Holding(Net):
    def __init__(self, held: Any, write: Callable[[Any], Any]) -> None:
        super().__init__()
        self.held, self.write = held, write

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.held)
        return super().forward(x)


@pytest.mark.parametrize("name", HELD)
def test_what_a_forward_does_to_what_a_module_holds_is_undone(name: str) -> None:
    build, write, look = HELD[name]
    held = build()
    model, before = Holding(held, write), look(held)
    through_all(model, torch.randn(*X))
    assert model.held is held and look(held) == before
    write(held)
    assert look(held) != before


class Drawing(Net):
    """Chance from outside torch."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * (1.0 + random.random() + float(np.random.rand()))


def test_global_random_states_are_as_before_and_replayed() -> None:
    model, x = Drawing(), torch.randn(*X)
    before = random.getstate(), np.random.get_state()[1].tolist()
    through_all(model, x)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before
    assert [site.name for site in growkit.verify_sites(model, growkit.find_sites(model, x)).sites] == ["a"]


class Lazily(Net):
    """Builds what it needs at the first call."""

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.full((), 2.0))
        return super().forward(x) * self.get_buffer("scale")


def test_what_a_first_call_registers_is_gone_again() -> None:
    model = Lazily()
    observe(model, Inputs((torch.randn(*X),)))
    assert dict(model.named_buffers()) == {}


# the order of undo, shared holders


class Reader(nn.Module):
    """Views its width as heads, whose number stands in a configuration."""

    def __init__(self, config: Any, read: Callable[[Any], int]) -> None:
        super().__init__()
        self.config, self.read = config, read
        self.up, self.down = nn.Linear(6, read(config) * 4), nn.Linear(read(config) * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(len(x), self.read(self.config), 4)
        return self.down(y.softmax(2).flatten(1))


CONFIGS: dict[str, tuple[Callable[[], Any], Callable[[Any], int]]] = {
    "nested": (lambda: {"model": {"heads": 3}}, lambda c: c["model"]["heads"]),
    "quotes and dots": (lambda: {'it\'s a "model".x': 3}, lambda c: c['it\'s a "model".x']),
    "tuple keys": (lambda: {(1, "heads"): 3}, lambda c: c[1, "heads"]),
    "other letters": (lambda: SimpleNamespace(größe=3), lambda c: c.größe),
    "no name": (lambda: SimpleNamespace(**{"a b": 3}), lambda c: getattr(c, "a b")),
    "record in a record": (lambda: SimpleNamespace(of=[SimpleNamespace(heads=3)]), lambda c: c.of[0].heads),
    "slots": (lambda: Slotted3(), lambda c: c.calls),
}


class Slotted3(Slotted):
    __slots__ = ()

    def __init__(self) -> None:
        self.calls = 3


@pytest.mark.parametrize("name", CONFIGS)
def test_a_number_in_a_configuration_of_any_make_grows_for_one_model_alone(name: str) -> None:
    build, read = CONFIGS[name]
    config, x = build(), torch.randn(*X)
    model, other = Reader(config, read), Reader(config, read)
    y = call(model, x)
    edit = growkit.widen(model, growkit.find_sites(model, x)["up"], 1)
    assert read(model.config) == 4 and torch.allclose(call(model, x), y, atol=1e-6)
    assert other.config is config and read(config) == 3
    twin = Reader(build(), read)
    replay(twin, edit.records)
    assert read(twin.config) == 4
    edit.undo()
    assert model.config is config and read(config) == 3


class Two(nn.Module):
    """Both parts read one configuration; each may also have units of its own."""

    def __init__(self) -> None:
        super().__init__()
        config = SimpleNamespace(heads=3)
        self.parts = nn.ModuleList(Reader(config, lambda c: c.heads) for _ in range(2))
        self.parts[1].down = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.parts[0](self.parts[1](x))


def test_parts_that_share_a_configuration_share_it_afterwards() -> None:
    model, x = Two(), torch.randn(*X)
    y = call(model, x)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    joint = next(site for site in verdict.sites if len(site.atoms) > 1)
    growkit.widen(model, joint, 1)
    assert model.parts[0].config is model.parts[1].config and model.parts[0].config.heads == 4
    assert torch.allclose(call(model, x), y, atol=1e-6)


def test_an_edit_is_not_undone_before_a_later_one_of_the_same_number() -> None:
    model = Net()
    model.eps = 0.1

    def edit(old: float, new: float) -> Edit:
        log = UndoLog(model)
        log.set([AttributeChange("", "eps", old, new)])
        return Edit([], [log])

    first, second = edit(0.1, 0.2), edit(0.2, 0.4)
    with pytest.raises(SurgeryError, match=r"last first, and eps of the model is 0.4 where the edit left 0.2"):
        first.undo()
    second.undo()
    first.undo()
    assert model.eps == 0.1


# caches


class Cached(nn.Module):
    """Heads with a table for each that is made once, somewhere."""

    def __init__(self, make: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.up, self.down, self.heads, self.make = nn.Linear(6, 12), nn.Linear(12, 3), 3, make
        self.bias = nn.Parameter(torch.randn(3))
        self.tables: Any = {}
        self.constants = {"scale": torch.full((4,), 2.0)}
        self.shift = torch.ones(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x).view(len(x), self.heads, 4)
        y = (y + self.make(self)[:, None]) * self.constants["scale"] + self.shift
        return self.down(y.tanh().flatten(1))


def fresh(model: Any) -> Tensor:
    with torch.no_grad():
        return model.bias * 2.0


def by_length(model: Any) -> Tensor:
    if 7 not in model.tables:
        model.tables[7] = fresh(model)
    return model.tables[7]


def by_device(model: Any) -> Tensor:
    key = (torch.device("cpu"), 1)
    if key not in model.tables:
        model.tables[key] = (fresh(model), fresh(model))
    return model.tables[key][0]


def in_list(model: Any) -> Tensor:
    if not isinstance(model.tables, list):
        model.tables = []
    if not model.tables:
        model.tables.append(fresh(model))
    return model.tables[0]


def alone(model: Any) -> Tensor:
    if not isinstance(model.tables, Tensor):
        model.tables = fresh(model)
    return model.tables


def lazily(model: Any) -> Tensor:
    if not hasattr(model, "late"):
        model.late = fresh(model)
    return model.late


@pytest.mark.parametrize("make", [by_length, by_device, in_list, alone, lazily])
def test_caches_are_made_again_after_growth_and_put_back_by_undo(make: Callable[[Any], Tensor]) -> None:
    model, x = Cached(make), torch.randn(*X)
    sites = growkit.find_sites(model, x)
    with torch.no_grad():
        y = model(x)
    constants, shift, tables = model.constants["scale"], model.shift, make(model)
    edit = growkit.widen(model, sites["up"], 1)
    assert torch.allclose(call(model, x), y, atol=1e-6) and len(make(model)) == 4
    assert model.constants["scale"] is constants and model.shift is shift
    edit.undo()
    assert make(model) is tables


def test_a_constant_that_no_forward_makes_again_is_kept_and_the_site_refused() -> None:
    model, x = Cached(lambda m: m.table), torch.randn(*X)
    model.table = fresh(model)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    assert "up" not in [site.name for site in verdict.sites] and len(model.table) == 3


# rows of padding, inference mode


def test_the_row_of_a_padding_token_stays_zero() -> None:
    model = nn.Sequential(nn.Embedding(7, 6, padding_idx=2), nn.Linear(6, 3))
    tokens = torch.randint(0, 7, (4, 5))
    growkit.widen(model, growkit.find_sites(model, tokens)["0"], 2, initializer="random")
    weight = model[0].weight
    assert not bool(weight[2].any()) and bool(weight[torch.arange(7) != 2].all())


def test_inside_inference_mode_all_is_as_outside() -> None:
    model = Net()
    with torch.inference_mode():
        x = torch.randn(*X)
        sites = growkit.find_sites(model, x)
        verdict = growkit.verify_sites(model, sites, example=x)
        growkit.widen(model, verdict.sites[0], 2, example=x)
        observe(model, Inputs((x,)))
    assert model.a.out_features == 10 and not model.a.weight.is_inference()
    F.mse_loss(model(torch.randn(*X)), torch.zeros(4, 3)).backward()


def test_weights_made_in_inference_mode_are_refused() -> None:
    with torch.inference_mode():
        model = Net()
    with pytest.raises(GrowkitError, match=r"made inside torch.inference_mode.*'a.weight'"):
        growkit.verify_sites(model, growkit.find_sites(model, torch.randn(*X)))
