"""Rates of their own for the parts of a weight, beside optimizers that hold each part as a parameter."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from controller_cases import Chain
from torch import Tensor, nn
from torch.func import functional_call

from growkit.config import config_from_overrides
from growkit.errors import UserInputError
from growkit.graph import GrowthSite, find_sites
from growkit.optim import SAM, AdaBound, PartRates
from growkit.pipeline import RunResult, run
from growkit.report import Observer
from growkit.surgery import Edit, EditRecord, Extension, Growth, IndexMap, grow
from growkit.surgery.tensors import grow_values, is_new

Make = Callable[[Any, nn.Module], torch.optim.Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda params, model: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "fused sgd": lambda params, model: torch.optim.SGD(params, lr=0.1, momentum=0.9, fused=True),
    "adam": lambda params, model: torch.optim.Adam(params, lr=0.02),
    "adamw": lambda params, model: torch.optim.AdamW(params, lr=0.02, weight_decay=0.1),
    "adabound": lambda params, model: AdaBound(params, lr=0.02, weight_decay=1e-2),
    "sam over sgd": lambda params, model: SAM(params, torch.optim.SGD, rho=0.2, model=model, lr=0.1, momentum=0.9),
    "sam over adam": lambda params, model: SAM(params, torch.optim.Adam, rho=0.2, model=model, lr=0.02),
}


def patient() -> tuple[nn.Module, Sequence[GrowthSite], Tensor, Tensor]:
    torch.manual_seed(0)
    model = Chain().double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.arange(12) % 3
    return model, list(find_sites(model, x)), x, y


def widened(model: nn.Module, sites: Sequence[GrowthSite], optimizer: Any = None, seed: int = 1) -> Edit:
    """All given sites by two units, with random values on both sides."""
    stream = torch.Generator().manual_seed(seed)
    growths = []
    for site in sites:
        values = {}
        for edit in site.tensor_edits(2):
            old = model.get_parameter(edit.names[0])
            for dim, index in enumerate(edit.index_maps):
                if index is not None:
                    shape = [2 if d == dim else size for d, size in enumerate(old.shape)]
                    values[edit.names[0], dim] = torch.randn(shape, generator=stream, dtype=old.dtype)
        growths.append(Growth(site, 2, Extension(values)))
    return grow(model, growths, optimizer=optimizer)


def changes(model: nn.Module, records: Sequence[EditRecord]) -> list[tuple[nn.Parameter, Sequence[IndexMap | None]]]:
    return [(model.get_parameter(c.names[0]), c.index_maps) for record in records for c in record.tensors]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, steps: int) -> None:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    for _ in range(steps):
        optimizer.step(closure)


class Pieces(nn.Module):
    """The truth: every part of every weight is a parameter of its own, with a group and a rate of its own."""

    def __init__(self, model: nn.Module, make: Make):
        super().__init__()
        self.frame, self.make = [copy.deepcopy(model)], make  # in a list, so that its parameters are not ours
        self.labels = {name: torch.zeros(p.shape, dtype=torch.int64) for name, p in model.named_parameters()}
        self.parts = nn.ParameterDict()
        self._cut({name: p.detach() for name, p in model.named_parameters()}, {})

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.frame[0], self.whole(), (x,))

    def whole(self) -> dict[str, Tensor]:
        found = {}
        for name, labels in self.labels.items():
            weight = torch.zeros(labels.shape, dtype=torch.float64)
            for part in range(int(labels.max()) + 1):
                weight = weight.masked_scatter(labels == part, self.parts[_key(name, part)])
            found[name] = weight
        return found

    def grow(self, model: nn.Module, records: Sequence[EditRecord]) -> None:
        """Take over structure and values, not memory, from a model that was grown."""
        states: dict[str, dict[str, Any]] = {}
        for name, labels in self.labels.items():
            for part in range(int(labels.max()) + 1):
                vector = self.parts[_key(name, part)]
                for key, value in self.optimizer.state.get(vector, {}).items():
                    whole = states.setdefault(name, {})
                    if torch.is_tensor(value) and value.dim() > 0:
                        whole.setdefault(key, torch.zeros(labels.shape, dtype=value.dtype))[labels == part] = value
                    else:
                        whole[key] = value
        known = {name: int(labels.max()) + 1 for name, labels in self.labels.items()}
        for change in (c for record in records for c in record.tensors):
            name = change.names[0]
            self.labels[name] = grow_values(self.labels[name], change.index_maps)
            if len(change.new_shape) > 1:
                new = is_new(change.index_maps, change.new_shape, torch.device("cpu"))
                self.labels[name] = torch.where(new, known[name], self.labels[name])
            for key, value in states.get(name, {}).items():
                if torch.is_tensor(value) and value.dim() > 0:
                    states[name][key] = grow_values(value, change.index_maps)
        self.frame = [copy.deepcopy(model)]
        self._cut({name: p.detach() for name, p in model.named_parameters()}, states)

    def _cut(self, whole: dict[str, Tensor], states: dict[str, dict[str, Any]]) -> None:
        self.parts = nn.ParameterDict(
            {
                _key(name, part): whole[name][labels == part].clone()
                for name, labels in self.labels.items()
                for part in range(int(labels.max()) + 1)
            }
        )
        self.optimizer = self.make([{"params": [one]} for one in self.parts.values()], self)
        self.base_lr = self.optimizer.param_groups[0]["lr"]
        for name, labels in self.labels.items():
            for part in range(int(labels.max()) + 1):
                for key, value in states.get(name, {}).items():
                    mine = value[labels == part] if torch.is_tensor(value) and value.dim() > 0 else copy.deepcopy(value)
                    self.optimizer.state[self.parts[_key(name, part)]][key] = mine

    def train_steps(self, x: Tensor, y: Tensor, steps: int) -> None:
        for _ in range(steps):
            for (key, one), group in zip(self.parts.items(), self.optimizer.param_groups, strict=True):
                ratio = one.detach().norm() / self.parts[_key(key.split("@")[0], 0)].detach().norm()
                group["lr"] = self.base_lr * float(ratio)
            train(self, self.optimizer, x, y, 1)


def _key(name: str, part: int) -> str:
    return f"{name.replace('.', '/')}@{part}"


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_parts_move_as_parameters_with_rates_of_their_own(kind: str) -> None:
    """Through two growths, with momentum and moments carried."""
    model, sites, x, y = patient()
    make = OPTIMIZERS[kind]
    optimizer, truth = make(model.parameters(), model), Pieces(model, make)
    rates = PartRates(optimizer)
    train(model, optimizer, x, y, 3)
    truth.train_steps(x, y, 3)
    for seed, grown in ((1, sites), (2, sites[1:])):
        edit = widened(model, grown, optimizer, seed)
        assert rates.grew(changes(model, edit.records)) == []
        truth.grow(model, edit.records)
        train(model, optimizer, x, y, 4)
        truth.train_steps(x, y, 4)
        for name, weight in truth.whole().items():
            assert torch.allclose(model.get_parameter(name), weight, rtol=1e-9, atol=1e-12), (kind, name)
    assert [len(rates.of(model.get_parameter(f"{layer}.weight"))) for layer in (0, 2, 4, 6)] == [2, 3, 3, 3]


@pytest.mark.parametrize("kind", ["sgd", "adam", "sam over adam"])
def test_the_rates_matter(kind: str) -> None:
    """What the test above would not see if all rates were 1."""
    moved = []
    for with_rates in (False, True):
        model, sites, x, y = patient()
        optimizer = OPTIMIZERS[kind](model.parameters(), model)
        edit = widened(model, sites, optimizer)
        if with_rates:
            PartRates(optimizer).grew(changes(model, edit.records))
        before = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer, x, y, 1)
        moved.append([p.detach() - old for p, old in zip(model.parameters(), before, strict=True)])
    plain, scaled = (step[2] for step in moved)  # the weight between the first two hidden layers
    assert torch.equal(plain[:4, :4], scaled[:4, :4])  # what was there first, to the last bit
    ratio = (scaled / plain)[4:]
    assert torch.allclose(ratio, ratio[0, 0].expand_as(ratio)) and abs(float(ratio[0, 0]) - 1.0) > 0.1
    assert torch.equal(moved[0][1], moved[1][1])  # biases too


def test_a_rate_is_the_ratio_of_the_present_norms() -> None:
    weight = nn.Parameter(torch.tensor([[3.0, 1.0], [4.0, 1.0], [2.0, 2.0]]))
    rates = PartRates(torch.optim.SGD([weight], lr=0.1))
    rates.grew([(weight, (np.array([0, 1, -1]), np.array([0, -1])))])
    assert rates.of(weight).tolist() == [1.0, np.sqrt(1 + 1 + 4 + 4) / 5]
    weight.data *= torch.tensor([1.0, 2.0])
    assert rates.of(weight).tolist() == [1.0, np.sqrt(4 + 4 + 4 + 16) / 5]


def test_a_part_that_begins_at_zero_keeps_the_full_rate() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    rates = PartRates(optimizer)
    weight.data = torch.cat([weight.data, torch.zeros(1, 3)])
    assert rates.grew([(weight, (np.array([0, 1, -1]), None))]) == [weight]
    for _ in range(2):  # the second time it has a norm
        weight.grad = torch.ones(3, 3)
        optimizer.step()
    assert torch.equal(weight.detach()[2], torch.full((3,), -1.0))
    assert rates.of(weight).tolist() == [1.0, 1.0]


def test_undo_brings_back_the_parts_and_training_goes_on_as_if_nothing_had_been() -> None:
    model, sites, x, y = patient()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    rates = PartRates(optimizer)
    rates.grew(changes(model, widened(model, sites, optimizer).records))
    train(model, optimizer, x, y, 2)
    before, weights = (
        [rates.of(p).tolist() for p in model.parameters()],
        [p.detach().clone() for p in model.parameters()],
    )
    states = copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, x, y, 2)
    expected = [p.detach().clone() for p in model.parameters()]

    for p, old in zip(model.parameters(), weights, strict=True):
        p.data = old
    optimizer.load_state_dict(states)
    edit = widened(model, sites, optimizer, 2)
    rates.grew(changes(model, edit.records))
    assert [rates.of(p).tolist() for p in model.parameters()] != before
    edit.undo()
    rates.undo()
    assert [rates.of(p).tolist() for p in model.parameters()] == before
    train(model, optimizer, x, y, 2)
    assert all(map(torch.equal, model.parameters(), expected))


def test_growth_that_was_not_told_is_refused() -> None:
    model, sites, x, y = patient()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    rates = PartRates(optimizer)
    edit = widened(model, sites, optimizer)
    rates.grew(changes(model, edit.records))
    edit.undo()
    with pytest.raises(UserInputError, match=r"got one of shape \(4, 5\) known as \(6, 5\); call grew\(\) after each"):
        train(model, optimizer, x, y, 1)


# runs

QUICK = {
    "model": {"name": "mlp", "hidden": [8, 8]},
    "data.limit": 200,
    "train.epochs": 4,
    "train.batch_size": 64,
    "growth.when": {"name": "periodic", "start": 1, "every": 1, "events": 2},
    "growth.optimizer.part_rates": "norm_ratio",
}


class Told(Observer):
    """Keeps what a user is told."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warned(self, message: str) -> None:
        self.warnings.append(message)


def made(*observers: Observer, **settings: Any) -> RunResult:
    return run(config_from_overrides({**QUICK, **settings}), observers=observers, writes=False)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sam"])
def test_a_run_with_variance_transfer_learns(optimizer: str) -> None:
    settings = {"growth.initializer": "variance_transfer", "train.optimizer": {"name": optimizer}}
    rated, plain = made(**settings), made(**settings, **{"growth.optimizer.part_rates": "none"})
    losses = [record.train_loss for record in rated.history.epochs]
    assert rated.result["events"] == 2 and losses[-1] < losses[0]
    assert losses[:2] != [record.train_loss for record in plain.history.epochs][:2]
    assert losses[0] == plain.history.epochs[0].train_loss


def test_weights_that_keep_the_full_rate_are_named_once() -> None:
    told = Told()
    made(told, **{"growth.initializer": "random"})
    expected = "growth.optimizer.part_rates: new parts that are 0 keep the full learning rate: "
    assert [w for w in told.warnings if "part_rates" in w] == [expected + "hidden.0.linear.weight"]


def test_a_step_waits_for_no_value() -> None:
    """The meta device has shapes and no values: whatever asks for one fails there."""
    weight = nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    rates = PartRates(optimizer)
    rates.grew([(weight, (np.array([0, 1, -1]), None))])
    parts = rates._parts[weight]
    moved = type(parts)(parts.births, parts.labels.to("meta"), parts.full.to("meta"))
    assert moved.rates(weight.detach().to("meta")).shape == (2,)
