"""AdaBound on weights in half precision, whose means are kept in fp32."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import nn

import growkit
from growkit.errors import UserInputError
from growkit.optim import SAM, AdaBound, AMSBound

HALVES = (torch.float16, torch.bfloat16)


def trained(optimizer: torch.optim.Optimizer, weight: nn.Parameter, first: int, last: int, size: float = 1e-4) -> None:
    for t in range(first, last):
        generator = torch.Generator().manual_seed(t)
        weight.grad = (size * (1.0 + 0.1 * torch.randn(weight.shape, generator=generator))).to(weight.dtype)
        optimizer.step()


@pytest.mark.parametrize("kind", [AdaBound, AMSBound])
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("size", [1e-2, 1e-3])
def test_small_gradients_step_as_in_fp32(kind: Any, dtype: torch.dtype, size: float) -> None:
    ways = []
    for chosen in (dtype, torch.float32):
        weight = nn.Parameter(torch.zeros(64, dtype=chosen))
        trained(kind([weight]), weight, 0, 50, size)
        ways.append(weight.detach().float().mean().item())
    assert ways[0] == pytest.approx(ways[1], rel=0.05)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize("dtype", HALVES)
def test_loading_goes_on_bit_for_bit(dtype: torch.dtype, wrapped: bool) -> None:
    def made(weight: nn.Parameter) -> tuple[Any, torch.optim.Optimizer]:
        holder = nn.Module()
        holder.weight = weight
        whole = SAM([weight], AMSBound, model=holder) if wrapped else AMSBound([weight])
        return whole, whole.base if isinstance(whole, SAM) else whole

    weights = [nn.Parameter(torch.ones(7, 3, dtype=dtype)) for _ in range(2)]
    trained(made(weights[0])[1], weights[0], 0, 30)
    optimizer, base = made(weights[1])
    trained(base, weights[1], 0, 20)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer, base = made(weights[1])
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    trained(base, weights[1], 20, 30)
    assert torch.equal(*weights) and base.state[weights[1]]["exp_avg_sq"].dtype == torch.float32


def test_hooks_may_change_what_is_loaded() -> None:
    weight = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = AdaBound([weight])
    trained(optimizer, weight, 0, 2)
    state = optimizer.state_dict()
    larger = {0: {**state["state"][0], "exp_avg": torch.full((3,), 1.0 + 1e-6)}}
    optimizer.register_load_state_dict_pre_hook(lambda one, taken: {**taken, "state": larger})
    optimizer.load_state_dict(state)
    assert torch.equal(optimizer.state[weight]["exp_avg"], torch.full((3,), 1.0 + 1e-6))


def test_the_means_grow_in_their_type() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).bfloat16(), torch.randn(8, 4).bfloat16()
    optimizer = AdaBound(model.parameters())
    model(x).square().sum().backward()
    optimizer.step()
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    growkit.widen(model, growkit.find_sites(model, x)[0], 3, optimizer=optimizer)
    after = optimizer.state[model[0].weight]["exp_avg"]
    assert after.dtype == torch.float32 and torch.equal(after[:6], before) and not after[6:].any()


def test_parameters_without_numbers_are_refused() -> None:
    meta, real = nn.Parameter(torch.ones(2, device="meta")), nn.Parameter(torch.ones(2))
    with pytest.raises(UserInputError, match="AdaBound: parameters must hold numbers, got some on the meta device"):
        AdaBound([meta])
    optimizer = AdaBound([real])
    with pytest.raises(UserInputError, match="must hold numbers"):
        optimizer.add_param_group({"params": [meta]})
    assert len(optimizer.param_groups) == 1
