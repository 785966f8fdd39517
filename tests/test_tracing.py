"""Tracing: what is accepted as a module and an example, and what is left as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from graph_cases import BranchOnValue, LoopMLP, SmallVGG, image, vector
from torch import Tensor, nn

from growkit.errors import ModelError
from growkit.graph import find_sites


def test_tracing_leaves_the_module_as_it_was():
    model, example = SmallVGG(), image()
    model.train()
    model.features[1].eval()
    model.classifier[0].weight.grad = torch.ones_like(model.classifier[0].weight)
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    state, attributes = torch.get_rng_state(), [set(vars(module)) for module in model.modules()]
    find_sites(model, example)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [set(vars(module)) for module in model.modules()] == attributes
    assert torch.equal(torch.get_rng_state(), state)
    assert model.classifier[0].weight.grad.sum() == model.classifier[0].weight.numel()


def test_a_branch_on_values_is_followed_and_said(capfd):
    sites = find_sites(BranchOnValue(), vector())
    assert sites.graph.path_specialised
    assert [site.name for site in sites] == ["a"]
    assert capfd.readouterr() == ("", "")


def test_keyword_arguments_are_an_example():
    class TwoInputs(LoopMLP):
        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return super().forward(left + right)

    assert len(find_sites(TwoInputs(), {"left": vector(), "right": vector()})) == 2


def test_a_module_that_cannot_run_is_an_error_with_its_place():
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ValueError("a bug of the user")

    with pytest.raises(
        ModelError, match=r"Broken cannot be traced in train mode: .*a bug of the user.*test_tracing.py:\d+"
    ):
        find_sites(Broken(), vector())


def test_an_example_must_be_a_tensor_a_tuple_or_a_dictionary():
    with pytest.raises(ModelError, match="got list"):
        find_sites(LoopMLP(), [vector()])
