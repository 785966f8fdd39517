"""Copies of a model, such as an average of its weights, grow along with it and keep their own function."""

from __future__ import annotations

import copy

import pytest
import torch
from surgery_cases import fresh, random_fan_in, same, snapshot, train
from torch import nn
from torch.optim.swa_utils import AveragedModel

import growkit
from growkit.errors import GrowthRefused, SurgeryError
from growkit.surgery import Growth, Inputs, function_change, grow, new_entries, observe


@pytest.mark.parametrize("wrapped", [True, False], ids=["AveragedModel", "own copy"])
def test_an_average_of_the_weights_grows_along(wrapped: bool) -> None:
    model, sites, x = fresh("conv and batch norm")
    average = AveragedModel(model) if wrapped else copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, x, 2)
    inside = average.module if wrapped else average
    before, values = observe(inside, Inputs((x,))), copy.deepcopy(average.state_dict())
    edit = grow(model, [Growth(sites[0], 2, random_fan_in(model, sites[0], 2))], optimizer=optimizer, copies=[average])
    assert function_change(before, observe(inside, Inputs((x,)))).worst < 1e-5
    new = new_entries(model, edit)[sites[0].name]
    twins = dict(inside.named_parameters())
    for name, parameter in model.named_parameters():
        mask = next((mask for one, mask in new if one is parameter), None)
        assert mask is None or torch.equal(parameter[mask], twins[name][mask])
    if wrapped:
        average.update_parameters(model)
    edit.undo()
    assert all(tensor.shape == average.state_dict()[name].shape for name, tensor in values.items())
    assert wrapped or all(torch.equal(tensor, average.state_dict()[name]) for name, tensor in values.items())


def test_copies_that_share_parameters_and_what_is_no_module_are_refused() -> None:
    model, sites, _ = fresh("mlp")
    with pytest.raises(GrowthRefused, match="parameters of their own"):
        grow(model, [Growth(sites[0], 2)], copies=[model])
    with pytest.raises(GrowthRefused, match="copies must be modules, got str"):
        grow(model, [Growth(sites[0], 2)], copies=["ema"])  # type: ignore[list-item]


def grouped() -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 1), nn.GroupNorm(4, 4), nn.Tanh(), nn.Conv2d(4, 3, 1))


@pytest.mark.parametrize("drifted", [True, False])
def test_a_copy_that_computes_something_else_afterwards_takes_everything_back(drifted: bool) -> None:
    model, x = grouped(), torch.randn(3, 2, 5, 5)
    sites = growkit.find_sites(model, x)
    average = AveragedModel(model)
    if drifted:
        average.module[1].num_groups = 2  # it runs as well, but a new channel is no group of its own
    before = [snapshot(one) for one in (model, average.module)]
    if not drifted:
        growkit.widen(model, sites["0"], 2, initializer="random", copies=[average]).undo()
    else:
        with pytest.raises(SurgeryError, match=r"it changes the outputs of copies\[0\] by"):
            growkit.widen(model, sites["0"], 2, initializer="random", copies=[average])
    assert same([snapshot(one) for one in (model, average.module)], before) and sites["0"].width == 4


def test_a_copy_of_another_shape_is_refused_before_anything_runs() -> None:
    model, other, x = grouped(), copy.deepcopy(grouped()), torch.randn(3, 2, 5, 5)
    site = growkit.find_sites(model, x)["0"]
    growkit.widen(other, growkit.find_sites(other, x)["0"], 1)
    with pytest.raises(GrowthRefused, match="must have shape"):
        growkit.widen(model, site, 1, copies=[other])
    with pytest.raises(GrowthRefused, match="copies must be modules, got str"):
        growkit.widen(model, site, 1, copies=["ema"])  # type: ignore[list-item]
