"""Records of edits rebuild what was built."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from depth_cases import MIXED, fresh, grow_all, outputs, residual, same, snapshot, through_json, train
from torch import Tensor, nn

import growkit
from growkit.checkpoint import Architecture, load_model, save_model
from growkit.errors import UserInputError
from growkit.graph import find_places
from growkit.surgery import (
    DepthRecord,
    deepen,
    edited_buffers,
    record_from_json,
    replay,
)


@pytest.mark.parametrize("name", MIXED)
def test_mixed_records_rebuild_the_structure(name: str) -> None:
    model, x = fresh(name)
    seed = copy.deepcopy(model)
    records = grow_all(model, x)
    replay(seed, through_json(records))
    assert [(n, str(m)) for n, m in seed.named_modules()] == [(n, str(m)) for n, m in model.named_modules()]
    seed.load_state_dict(model.state_dict())
    assert torch.equal(outputs(seed, x), outputs(model, x))


@pytest.mark.parametrize("name", MIXED)
def test_a_model_widened_deepened_and_widened_again_comes_back_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model, x = fresh(name)
    seed = copy.deepcopy(model)
    records = grow_all(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    save_model(tmp_path, model, Architecture(None, "Seed", tuple(x.shape[1:]), 3, False, records))
    loaded = load_model(tmp_path, seed_model=seed)
    assert torch.equal(outputs(loaded, x), outputs(model, x))
    assert same(loaded.state_dict(), model.state_dict()) and list(loaded.state_dict()) == list(model.state_dict())


class Table(nn.Module):
    """A block with a buffer that the state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("table", torch.randn(4), persistent=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.norm(self.inner(x * self.table))))


def test_buffers_outside_the_state_dict_come_back_under_their_new_names(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), Table(), Table(), nn.Linear(4, 3))

    model, x = make(), torch.randn(4, 5)
    wide = growkit.widen(model, growkit.find_sites(model, x)["2.inner"], 2).records
    deep = deepen(model, find_places(model, x)["1"]).records
    assert edited_buffers([*wide, *deep]) == [
        "3.norm.running_mean",
        "3.norm.running_var",
        "2.table",
        "2.norm.running_mean",
        "2.norm.running_var",
        "2.norm.num_batches_tracked",
    ]
    model.get_buffer("2.table").add_(1.0)
    save_model(tmp_path, model, Architecture(None, "Seed", (5,), 3, False, [*wide, *deep]))
    loaded = load_model(tmp_path, seed_model=make())
    assert torch.equal(outputs(loaded, x), outputs(model, x))


def test_a_record_of_another_kind_or_version_is_refused() -> None:
    model, x = fresh("mlp")
    record = deepen(model, find_places(model, x)["0"]).record.to_json()
    assert record["kind"] == "depth" and isinstance(record_from_json(record), DepthRecord)
    with pytest.raises(UserInputError, match="must have version 1, got 99"):
        record_from_json(record | {"version": 99})
    with pytest.raises(UserInputError, match="of kind 'depth' or have no kind, got 'prune'"):
        record_from_json(record | {"kind": "prune"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 4), residual()), "replaying the residual block after body.1: .*body"),
        (
            lambda: nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 4), residual().double().outer)}),
            "after body.1: .*outer",
        ),
        (lambda: nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 4))}), "after body.1: "),
        (
            lambda: nn.ModuleDict({"body": nn.ModuleDict({"0": nn.Linear(5, 4), "1": residual(), "x": nn.ReLU()})}),
            "body must have room for 2 at 2 of its children, got",
        ),
    ],
)
def test_replaying_on_a_wrong_seed_is_refused_and_leaves_it_as_it_was(wrong: Any, message: str) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 4), residual())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model, x = Body(), torch.randn(3, 5)
    wide = growkit.widen(model, growkit.find_sites(model, x)["body.1.inner"], 2).records
    records = deepen(model, find_places(model, x)["body.1"]).records
    seed = wrong()
    before = snapshot(seed)
    with pytest.raises(UserInputError, match=message):
        replay(seed, records)
    assert same(snapshot(seed), before)
    narrow = Body()
    before = snapshot(narrow)
    with pytest.raises(UserInputError, match=r"body.2.inner.weight must have shape \(8, 4\), got \(6, 4\)"):
        replay(narrow, records)
    with pytest.raises(UserInputError, match="must have shape"):
        replay(narrow, [*wide, *records, *wide, *wide])
    assert same(snapshot(narrow), before)
