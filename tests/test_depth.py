"""A deeper model computes the same and learns."""

from __future__ import annotations

import pytest
import torch
from depth_cases import CASES, fresh, outputs, train
from torch import Tensor, nn

import growkit
from growkit.graph import find_places
from growkit.surgery import (
    DepthEdit,
    deepen,
    insert,
)


@pytest.mark.parametrize("name", CASES)
def test_a_deeper_model_computes_the_same_and_learns_at_every_place(name: str) -> None:
    model, x = fresh(name)
    for place in CASES[name][2]:
        before, known = outputs(model, x), dict(model.named_parameters())
        edit = growkit.deepen(model, growkit.find_places(model, x)[place])
        torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)
        new = {id(tensor) for child in edit.children for tensor in child.parameters()}
        assert {id(p) for p in model.parameters()} == new | {id(p) for p in known.values()}
        assert {edit.record.renamed(n): id(p) for n, p in known.items()}.items() <= {
            n: id(p) for n, p in model.named_parameters()
        }.items()
        ends = [edit.children[0].get_parameter(n) for n in edit.record.zeroed or ("weight",)]
        torch.stack([(model.train()(x) * torch.randn(4, 3)).sum() for _ in range(4)]).sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ends)
        assert any(bool(p.grad.any()) for p in ends if p.grad is not None)
        edit.undo()


def test_every_weight_of_a_copied_block_learns_from_the_second_step_on() -> None:
    model, x = fresh("transformer")
    edit = deepen(model, find_places(model, x)["blocks.0"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, x, 2)
    assert all(bool(p.grad.any()) for p in edit.children[0].parameters() if p.grad is not None)


def test_new_weights_come_from_the_seed_alone() -> None:
    def new(seed: int) -> Tensor:
        model, x = fresh("wrn")
        torch.manual_seed(torch.seed() % 1000)
        chance = torch.get_rng_state()
        edit = deepen(model, find_places(model, x)["blocks.1"], seed=seed)
        assert torch.equal(torch.get_rng_state(), chance)
        block = edit.children[0]
        assert not bool(block.get_parameter("conv2.weight").any())
        assert not torch.equal(block.get_parameter("conv1.weight"), model.get_parameter("blocks.1.conv1.weight"))
        return block.get_parameter("conv1.weight")

    assert torch.equal(new(1), new(1)) and not torch.equal(new(1), new(2))


def test_a_norm_between_layer_and_activation_is_not_repeated() -> None:
    model, x = fresh("vgg-like")
    edit = deepen(model, find_places(model, x)["2"])
    kinds = [type(child) for child in edit.children]
    assert kinds == [nn.Conv2d, nn.Hardtanh] and edit.children[0].bias is not None
    assert torch.equal(edit.children[0].get_parameter("weight"), nn.init.dirac_(torch.empty(4, 4, 3, 3)))


def test_hooks_are_not_copied() -> None:
    model, x = fresh("transformer")
    calls: list[int] = []
    model.get_submodule("blocks.0.out").register_forward_hook(lambda module, args, output: calls.append(1))
    deepen(model, find_places(model, x)["blocks.0"])
    calls.clear()
    model(x)
    assert calls == [1]


def test_layout_and_type_are_those_of_the_source() -> None:
    model, x = fresh("vgg-like")
    model = model.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    edit = deepen(model, find_places(model, x.double())["2"])
    weight = edit.children[0].get_parameter("weight")
    assert weight.dtype == torch.float64 and weight.is_contiguous(memory_format=torch.channels_last)


def test_a_raw_insertion_is_exact_too() -> None:
    model, x = fresh("wrn")
    before = outputs(model, x)
    edit = insert(model, find_places(model, x)["blocks.3"])
    assert isinstance(edit, DepthEdit) and torch.equal(outputs(model, x), before)
