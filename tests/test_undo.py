"""An edit is taken back to the last bit: when asked, when it fails and when it is interrupted."""

from __future__ import annotations

import copy
import dataclasses
import gc
from typing import Any

import pytest
import torch
from surgery_cases import CASES, OPTIMIZERS, fresh, same, snapshot, train, widen_all
from torch import Tensor, nn

from growkit.errors import SurgeryError
from growkit.graph import find_sites
from growkit.surgery import Extension, Growth, Inputs, grow, replay, transaction, undo, verify_sites


@pytest.mark.parametrize("name", CASES)
def test_undo_restores_every_bit(name: str) -> None:
    model, sites, x = fresh(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x, 2)
    before, widths = snapshot(model, optimizer), [site.width for site in sites]
    edit = widen_all(model, sites, 3, optimizer=optimizer)
    train(model, optimizer, x, 2)
    edit.undo()
    assert [site.width for site in sites] == widths
    after = snapshot(model, optimizer)
    assert after["attributes"] == before["attributes"] and after["layout"] == before["layout"]
    # training after the edit also moved what the edit did not change
    changed = {n for record in edit.records for change in record.tensors for n in change.names}
    assert same(
        {n: v for n, v in after["values"].items() if n in changed},
        {n: v for n, v in before["values"].items() if n in changed},
    )


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_undo_after_training_leaves_no_state_of_the_wrong_shape(optimizer_name: str) -> None:
    """State that came up after the edit has the wrong shape, and fused optimizers would not notice."""
    model, sites, x = fresh("mlp")
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), True)
    edit = grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    train(model, optimizer, x, 1)
    edit.undo()
    changed = (model[0].weight, model[0].bias, model[3].weight)
    assert not any(bool(value.any()) for p in changed for value in optimizer.state.get(p, {}).values())
    train(model, optimizer, x, 1)
    shapes = [(p.shape, v.shape) for p, s in optimizer.state.items() for v in s.values() if v.dim()]
    assert len(shapes) >= 4 and all(parameter == state for parameter, state in shapes)


def test_undo_after_training_restores_the_state_that_was() -> None:
    model, sites, x = fresh("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 2)
    changed = (model[0].weight, model[0].bias, model[3].weight)
    before = [copy.deepcopy(optimizer.state[p]) for p in changed]
    edit = grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    train(model, optimizer, x, 3)
    edit.undo()
    assert same([optimizer.state[p] for p in changed], before)
    assert int(optimizer.state[model[0].weight]["step"]) == 2


def test_undo_at_once_leaves_no_trace() -> None:
    model, sites, x = fresh("vgg-like")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 2)
    before = snapshot(model, optimizer)
    widen_all(model, sites, optimizer=optimizer).undo()
    assert same(snapshot(model, optimizer), before)
    train(model, optimizer, x, 1)


def test_an_edit_is_undone_once() -> None:
    model, sites, _ = fresh("mlp")
    edit = grow(model, [Growth(sites[0], 2)])
    edit.undo()
    with pytest.raises(SurgeryError, match="undone once"):
        edit.undo()


def test_edits_are_undone_last_first() -> None:
    model, sites, _ = fresh("vgg-like")
    first, second = grow(model, [Growth(sites[0], 2)]), grow(model, [Growth(sites[1], 2)])
    with pytest.raises(SurgeryError, match="last first"):
        first.undo()
    second.undo()
    first.undo()
    assert [site.width for site in sites] == [3, 4]


def interrupt_at(monkeypatch: pytest.MonkeyPatch, target: str, call: int) -> None:
    """Raise KeyboardInterrupt in place of the given call of a function of the transaction, once."""
    home = transaction if hasattr(transaction, target) else undo
    original, calls = getattr(home, target), [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(home, target, interrupted)


@pytest.mark.parametrize("target", ["replace_data", "grow_state", "set_attributes"])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_half_way_rolls_everything_back(target: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, x = fresh("vgg-like")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 1)
    before = snapshot(model, optimizer)
    interrupt_at(monkeypatch, target, call)
    with pytest.raises(KeyboardInterrupt):
        widen_all(model, sites, optimizer=optimizer)
    assert same(snapshot(model, optimizer), before) and [site.width for site in sites] == [3, 4]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupted_undo_comes_to_its_end(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, _ = fresh("vgg-like")
    before = snapshot(model)
    edit = widen_all(model, sites)
    interrupt_at(monkeypatch, "replace_data", call)
    with pytest.raises(KeyboardInterrupt):
        edit.undo()
    assert same(snapshot(model), before) and [site.width for site in sites] == [3, 4]
    edit.undo()
    assert edit.undone and same(snapshot(model), before)


def test_an_interrupted_replay_leaves_the_seed_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, _ = fresh("vgg-like")
    seed, records = copy.deepcopy(model), widen_all(model, sites).records
    before = snapshot(seed)
    interrupt_at(monkeypatch, "replace_data", 3)
    with pytest.raises(KeyboardInterrupt):
        replay(seed, records)
    assert same(snapshot(seed), before)


def test_a_failure_half_way_rolls_everything_back() -> None:
    model, sites, x = fresh("vgg-like")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 1)
    before = snapshot(model, optimizer)
    wrong = Extension({("4.weight", 1): torch.ones(2, 9, 1, 1)})
    with pytest.raises(SurgeryError, match=r"4.weight along dimension 1 must have shape \(2, 2, 1, 1\), got"):
        grow(model, [Growth(sites[0], 2), Growth(sites[1], 2, wrong)], optimizer=optimizer)
    assert same(snapshot(model, optimizer), before) and [site.width for site in sites] == [3, 4]


class Stubborn(nn.Linear):
    """A layer whose size cannot be set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "in_features" and value > 6:
            raise RuntimeError("read only")
        super().__setattr__(name, value)


def test_a_failure_of_user_code_is_named_and_rolled_back() -> None:
    model, sites, _ = fresh("mlp")
    model[3].__class__ = Stubborn
    before = snapshot(model)
    with pytest.raises(SurgeryError, match="rolled back: RuntimeError: read only"):
        grow(model, [Growth(sites[0], 2)])
    assert same(snapshot(model), before) and sites[0].width == 6


def test_an_attribute_that_cannot_be_written_is_rolled_back_without_harm() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sizes:
        count: int = 4

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sizes = nn.Linear(5, 4), nn.Linear(4, 3), Sizes()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)).view(len(x), self.sizes.count, -1).flatten(1))

    model, x = Fixed(), torch.randn(4, 5)
    sites = find_sites(model, x)
    verdict = verify_sites(model, list(sites), Inputs((x,)))
    assert [refusal.name for refusal in verdict.refusals] == ["a"]
    assert sites["a"].width == model.a.out_features == 4


def test_values_between_the_sites_of_an_edit_are_not_kept() -> None:
    model = nn.Sequential(nn.Linear(4, 37), nn.ReLU(), nn.Linear(37, 41), nn.ReLU(), nn.Linear(41, 2))
    first, second = find_sites(model, torch.zeros(2, 4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()

    edit = grow(model, [Growth(first, 3), Growth(second, 5)], optimizer=optimizer)

    alive = [one.shape for one in gc.get_objects() if type(one) in (Tensor, nn.Parameter)]
    assert (41, 40) not in alive  # the middle weight after the first site alone
    assert (46, 40) in alive and (41, 37) in alive
    assert not edit.undone
