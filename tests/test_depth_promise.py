"""What a block promises, against slow truths."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from depth_cases import same, snapshot
from depth_growth_cases import start
from torch import Tensor, nn

from growkit.config.policies import LargestGainSettings
from growkit.growth.base import Prospects
from growkit.growth.promise import measure_blocks, spectrum_of_one
from growkit.surgery import Inputs, insert


def squared_gradient(model: nn.Module, batches: list[tuple[Inputs, Tensor]]) -> float:
    model.zero_grad()
    for inputs, targets in batches:
        (F.cross_entropy(model(*inputs.args), targets) / len(batches)).backward()
    return float(sum(one.grad.square().sum() for one in model.parameters() if one.grad is not None))


def four_batches() -> list[tuple[Inputs, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    return [
        (Inputs((torch.randn(6, 5, generator=generator),)), torch.randint(0, 3, (6,), generator=generator))
        for _ in range(4)
    ]


def test_the_promise_is_what_the_block_that_comes_adds_to_the_squared_gradient_norm():
    run, batches = start(), four_batches()
    before = snapshot(run.model, run.optimizer)
    found = measure_blocks(run.model, F.cross_entropy, batches, run.controller.depths.next_orders())
    assert same(snapshot(run.model, run.optimizer), before)
    for order in run.controller.depths.next_orders():
        model = copy.deepcopy(run.model)
        less = squared_gradient(model, batches)
        insert(model, order.place, seed=order.seeds[0])
        assert found[f"depth/{order.name}"].largest == pytest.approx(squared_gradient(model, batches) - less, rel=1e-4)


def test_noise_and_error_are_those_of_the_definitions():
    gradients = torch.randn(4, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gain, noise, error = spectrum_of_one(gradients)
    signs = [s for s in itertools.product([1.0, -1.0], repeat=4) if sum(s) == 0]
    chance = [(torch.tensor(s, dtype=torch.float64) @ gradients / 4).square().sum() for s in signs]
    left_out = torch.stack([gradients[[j for j in range(4) if j != i]].mean(0).square().sum() for i in range(4)])
    assert gain == pytest.approx(float(gradients.mean(0).square().sum()))
    assert noise == pytest.approx(float(torch.stack(chance).mean()))
    assert error == pytest.approx(float((3 * left_out.var(correction=0)).sqrt()))


def test_the_largest_gain_per_flop_decides_between_sites_and_places():
    run = start("both", where=LargestGainSettings(factor=1e-9))
    promised = measure_blocks(run.model, F.cross_entropy, four_batches(), run.controller.depths.next_orders())
    blocks = {name: prospect.largest / prospect.flops_per_unit for name, prospect in promised.items()}
    best = max(blocks, key=lambda name: blocks[name])
    run.controller.measure = lambda: Prospects(promised, 1.0, 24, 100)
    event = run.grow()
    assert [decision.site for decision in event.decisions] == [best]
    assert event.decisions[0].scores["score"] == pytest.approx(blocks[best])
