"""Where a layer or a block may stand, and why not elsewhere."""

from __future__ import annotations

from typing import Any

import depth_cases
import pytest
import torch
import torch.nn.functional as F
from depth_cases import CASES, Block, fresh, images, outputs, refusals, residual, same, snapshot
from torch import Tensor, nn

from growkit.cost import count_flops, count_params
from growkit.errors import GrowthRefused, ModelError
from growkit.graph import find_places
from growkit.surgery import (
    deepen,
    insert,
)


@pytest.mark.parametrize("name", CASES)
def test_the_places_of_a_model(name: str) -> None:
    model, x = fresh(name)
    before = snapshot(model)
    assert [place.name for place in find_places(model, x)] == CASES[name][2]
    assert same(snapshot(model), before)


def test_a_place_says_what_it_costs() -> None:
    model, x = fresh("post-activation")
    layer, block, _ = find_places(model, x)
    assert (layer.kind, layer.container, layer.position) == ("layer", "", 2)
    assert (block.kind, block.container, block.position) == ("residual block", "", 3)
    assert layer.params_added == 4 * 4 * 9 + 4
    assert block.params_added == sum(p.numel() for p in model.get_submodule("2").parameters())
    # 16 positions; multiply and add; two convolutions in a block
    assert layer.flops_added == 2 * 16 * 4 * 4 * 9 and block.flops_added == 2 * layer.flops_added
    assert block.location is not None and block.location.rpartition(":")[0] == depth_cases.__file__


def test_the_end_of_a_branch_is_found_by_what_is_computed() -> None:
    def ends(name: str, place: str) -> Any:
        return find_places(*fresh(name))[place].branches

    assert ends("wrn", "blocks.1") == (("conv2.weight",),)
    assert ends("post-activation", "2") == (("bn2.weight", "bn2.bias"),)
    assert ends("transformer", "blocks.0") == (("out.weight", "out.bias"), ("mlp.2.weight", "mlp.2.bias"))
    assert ends("layer scale", "1") == (("gamma",),)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.branch(x), "its output comes from linear"),
        (lambda self, x: self.norm(x + self.branch(x)), "its output comes from layer_norm"),
        (lambda self, x: torch.tanh(x + self.branch(x)), "its output comes from tanh"),
        (lambda self, x: torch.relu(x) + self.branch(x), "applies relu to its stream but does not end in it"),
        (lambda self, x: 0.5 * x + self.branch(x), "has a shortcut that is not the identity"),
        (lambda self, x: torch.add(self.branch(x), x, alpha=2), "has a shortcut that is not the identity"),
        (lambda self, x: x + x, "adds its input more than once"),
        (lambda self, x: x + (x + self.branch(x)), "adds its input more than once"),
        (lambda self, x: F.dropout(x + self.branch(x), 0.5, self.training), "its output comes from dropout"),
        (lambda self, x: x + torch.relu(self.branch(x)), "ends in relu, which weights at zero do not silence or"),
        (lambda self, x: x + torch.sigmoid(self.branch(x)), "ends in sigmoid"),
        (lambda self, x: x + self.branch(x) + torch.exp(self.gain.sum()) * x, "nothing in it can silence"),
        (lambda self, x: x + F.layer_norm(self.branch(x), (4,)), "ends in layer_norm without weights of its own"),
        (lambda self, x: x.relu_() + self.branch(x), "applies relu to its stream"),
        (lambda self, x: x + self.branch(x.view(-1, 4).relu_()), "changes its input in place with relu_"),
    ],
)
def test_a_block_that_its_copy_would_not_leave_alone_is_refused(forward: Any, reason: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Block(forward), nn.Linear(4, 3))
    assert reason in refusals(model, torch.randn(3, 5))["2"]


@pytest.mark.parametrize(
    ("forward", "ends"),
    [
        (lambda self, x: torch.relu(torch.relu(x + self.branch(x))), ("outer.weight", "outer.bias")),
        (lambda self, x: torch.tanh(self.branch(x)) + x, ("outer.weight", "outer.bias")),
        (lambda self, x: x - 0.1 * self.branch(x), ("outer.weight", "outer.bias")),
        (lambda self, x: x + self.branch(x) * torch.sigmoid(x), ("outer.weight", "outer.bias")),
        (lambda self, x: x + torch.tanh(x @ self.inner.weight.T) @ self.outer.weight.T, ("outer.weight",)),
        (lambda self, x: x + self.gain * self.branch(x), ("gain",)),
        (lambda self, x: x + self.norm(self.branch(x)), ("norm.weight", "norm.bias")),
    ],
)
def test_forms_of_a_block_that_can_be_silenced(forward: Any, ends: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Block(forward), nn.Linear(4, 3))
    x = torch.randn(3, 5)
    place = find_places(model, x)["2"]
    assert place.branches == (ends,)
    before = outputs(model, x)
    deepen(model, place)
    assert torch.equal(outputs(model, x), before)


def test_frozen_branches_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4), residual())
    model.get_submodule("1").requires_grad_(False)
    assert "ends in frozen weights (1.outer.weight)" in refusals(model, torch.randn(3, 5))["1"]


def test_a_block_used_twice_is_refused() -> None:
    shared = residual()
    model = nn.Sequential(nn.Linear(5, 4), shared, nn.Tanh(), shared)
    assert "registered under several names (1, 3)" in refusals(model, torch.randn(3, 5))["1"]


class Auxiliary(nn.Module):
    """A block that only training sees, one that is called twice, and one whose weights another has too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([residual(), residual(), residual(), residual()])
        self.blocks[3].outer.weight = self.blocks[2].outer.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[1](self.blocks[1](x))
        x = self.blocks[3](self.blocks[2](x))
        return self.blocks[0](x) if self.training else x


def test_blocks_must_run_once_in_both_modes_and_share_nothing() -> None:
    found = refusals(Auxiliary(), torch.randn(3, 4))
    assert "is called 1 and 0" in found["blocks.0"] and "is called 2 and 2" in found["blocks.1"]
    assert "shares a parameter with blocks.3.outer.weight" in found["blocks.2"]


def test_blocks_that_number_themselves_are_refused() -> None:
    model = nn.Sequential(residual(), residual())
    for number, block in enumerate(model):
        block.layer_index = number
    assert "keeps its own number in the attribute layer_index" in refusals(model, torch.randn(3, 4))["0"]


def test_layers_that_have_no_identity_are_refused() -> None:
    even = images(nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.LeakyReLU())
    places = find_places(even, torch.randn(3, 2, 6, 6))
    assert [place.name for place in places] == ["0"]
    reasons = {refusal.name: refusal.reason for refusal in places.refusals}
    assert "a kernel without a centre, (2, 2)" in reasons["2"]
    assert "no idempotent activation" in reasons["4"]  # leaky: 0.01 twice is not 0.01 once
    with pytest.raises(GrowthRefused, match="nothing may be inserted after '2': it has a kernel without a centre"):
        places["2"]
    with pytest.raises(ModelError, match="no place after a module '00'; did you mean '0'"):
        places["00"]


def test_a_model_without_a_row_of_children_is_told_what_would_be_one() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x).relu())

    places = find_places(Plain(), torch.zeros(2, 4))
    assert not len(places)
    assert [(one.name, "nn.ModuleList" in one.reason) for one in places.refusals] == [("", True)]


@pytest.mark.parametrize("name", CASES)
def test_a_place_costs_the_parameters_and_flops_it_says(name: str) -> None:
    model, x = fresh(name)
    for place in find_places(model, x):
        params, flops = count_params(model), count_flops(model, x).total
        edit = insert(model, place)
        assert count_params(model) - params == place.params_added
        assert count_flops(model, x).total - flops == place.flops_added
        edit.undo()
