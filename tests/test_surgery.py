"""Widening in place: the function is kept, tensors stay the same objects, new entries land in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from surgery_cases import CASES, fresh, random_fan_in, widen_all
from torch import nn

from growkit.errors import GrowthRefused, SurgeryError
from growkit.surgery import Extension, Growth, Inputs, function_change, grow, observe


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_widening_with_zero_fan_out_keeps_outputs(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, sites, x = fresh(name, dtype)
    before = observe(model, Inputs((x,)))
    for site in sites:
        edit = grow(model, [Growth(site, 2, random_fan_in(model, site, 2))])
        change = function_change(before, observe(model, Inputs((x,))))
        assert change.worst <= tolerance, (site.name, change)
        edit.undo()
    widen_all(model, sites)
    assert function_change(before, observe(model, Inputs((x,)))).worst <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_a_random_fan_out_changes_the_outputs(name: str) -> None:
    model, sites, x = fresh(name)
    before = observe(model, Inputs((x,)))
    for site in sites:
        edit = grow(model, [Growth(site, 2, random_fan_in(model, site, 2, fan_out=True))])
        assert function_change(before, observe(model, Inputs((x,)))).worst > 1e-3, site.name
        edit.undo()


@pytest.mark.parametrize("name", CASES)
def test_parameters_stay_the_same_objects_under_all_their_names(name: str) -> None:
    model, sites, _ = fresh(name)
    before = {key: id(p) for key, p in model.named_parameters(remove_duplicate=False)}
    widen_all(model, sites)
    assert {key: id(p) for key, p in model.named_parameters(remove_duplicate=False)} == before


def test_new_entries_of_norms_and_slopes_are_neutral() -> None:
    model, sites, _ = fresh("functional")
    slope = float(model.slope.detach().mean())
    grow(model, [Growth(sites[0], 2)])
    assert model.shift[-2:].tolist() == [0, 0] and model.get_buffer("mean")[-2:].tolist() == [0, 0]
    assert model.get_buffer("var")[-2:].tolist() == [1, 1]
    assert model.slope[-2:].tolist() == pytest.approx([slope, slope])


def test_modules_know_their_new_sizes() -> None:
    model, sites, _ = fresh("depthwise")
    grow(model, [Growth(sites[0], 3)])
    stem, spread, norm, slope, group, head = (model[i] for i in (0, 1, 2, 3, 4, 6))
    assert stem.out_channels == norm.num_features == slope.num_parameters == group.num_channels == head.in_channels == 7
    assert spread.groups == spread.in_channels == spread.out_channels == group.num_groups == 7
    assert head.out_channels == 3


def test_a_site_grows_again_and_again() -> None:
    model, sites, x = fresh("conv and batch norm")
    before = observe(model, Inputs((x,)))
    for _ in range(3):
        grow(model, [Growth(sites[0], 1, random_fan_in(model, sites[0], 1))])
    assert sites[0].width == model[0].out_channels == 7
    assert function_change(before, observe(model, Inputs((x,)))).worst <= 1e-5


def test_the_next_backward_works_while_a_loss_of_an_earlier_step_is_alive() -> None:
    model, sites, x = fresh("mlp")
    alive = model(x).square().sum()
    alive.backward()
    grow(model, [Growth(sites[0], 2)])
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


def test_where_two_sites_cross_new_rows_and_columns_are_zero_and_values_land_in_place() -> None:
    model, sites, _ = fresh("vgg-like")
    first, second = sites["0"], sites["2"]
    old = model[2].weight.detach().clone()  # [4, 3, 3, 3]: rows of the second site, columns of the first
    columns, rows = torch.randn(4, 2, 3, 3), torch.randn(5, 3, 3, 3)
    for order in ((first, second), (second, first)):
        values = {first: {("2.weight", 1): columns}, second: {("2.weight", 0): rows}}
        units = {first: 2, second: 5}
        edit = grow(model, [Growth(site, units[site], Extension(values[site])) for site in order])
        weight = model[2].weight
        assert torch.equal(weight[:4, :3], old) and torch.equal(weight[:4, 3:], columns)
        assert torch.equal(weight[4:, :3], rows) and not weight[4:, 3:].any()
        edit.undo()


def test_a_square_weight_takes_both_of_its_new_sides() -> None:
    model, sites, _ = fresh("tied weights")
    rows, columns = torch.randn(2, 4), torch.randn(4, 2)
    grow(model, [Growth(sites[0], 2, Extension({("first.weight", 0): rows, ("first.weight", 1): columns}))])
    weight = model.second.weight
    assert weight is model.first.weight
    assert torch.equal(weight[4:, :4], rows) and torch.equal(weight[:4, 4:], columns) and not weight[4:, 4:].any()


def test_slices_for_tensors_that_do_not_change_are_refused() -> None:
    model, sites, _ = fresh("mlp")
    with pytest.raises(SurgeryError, match=r"got \[\('3.weight', 0\)\]; it changes"):
        grow(model, [Growth(sites[0], 2, Extension({("3.weight", 0): torch.ones(2, 6)}))])


def test_growing_by_nothing_is_refused() -> None:
    model, sites, _ = fresh("mlp")
    with pytest.raises(GrowthRefused, match="at least 1 unit, got 0"):
        grow(model, [Growth(sites[0], 0)])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models_are_refused(wrap: Any) -> None:
    model, sites, _ = fresh("mlp")
    wrapped = wrap(model)
    with pytest.raises(GrowthRefused, match=f"unwrapped before it grows, got {type(wrapped).__name__}"):
        grow(wrapped, [Growth(sites[0], 2)])
    with pytest.raises(GrowthRefused, match=f"got {type(wrapped).__name__} at 0"):
        grow(nn.Sequential(wrapped), [Growth(sites[0], 2)])
