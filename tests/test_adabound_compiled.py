"""AdaBound in one compiled kernel."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from naive_optimizers import NaiveAdaBound, not_naive
from torch import nn

import growkit
from growkit.errors import UserInputError
from growkit.optim import AdaBound, adabound, bounded_step
from growkit.optim.compiled import compiled_kernel

FORMS: dict[str, dict[str, Any]] = {
    "released": {"weight_decay": 0.03},
    "amsbound": {"amsbound": True, "weight_decay": 0.03, "decoupled": True, "maximize": True},
    "without bounds": {"gamma": 0.0},
}

pytestmark = pytest.mark.filterwarnings("default")  # those of a compiler are not ours


def trained(model: nn.Module | list[nn.Parameter], optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    for t in range(first, last):
        generator = torch.Generator().manual_seed(t)
        for parameter in model.parameters() if isinstance(model, nn.Module) else model:
            parameter.grad = torch.randn(parameter.shape, dtype=parameter.dtype, generator=generator)
        optimizer.param_groups[0]["lr"] = 0.01 * 0.9**t  # a schedule must not make a new kernel every step
        optimizer.step()


def graphs_since() -> int:
    """How many graphs were compiled since this was asked before."""
    count = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # pyright: ignore[reportAttributeAccessIssue]
    torch._dynamo.utils.counters.clear()  # pyright: ignore[reportAttributeAccessIssue]
    return count


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_trajectories_are_those_of_the_plain_steps_and_growth_makes_no_new_kernel(
    form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(bounded_step, "compiled_kernel", lambda *kind: asked.append(0) or compiled_kernel(*kind))
    ours, theirs = (nn.Sequential(nn.Linear(180, 200), nn.ReLU(), nn.Linear(200, 190)).double() for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    pairs = [
        (model, AdaBound(model.parameters(), lr=0.01, compile=compiled, **form))
        for model, compiled in ((ours, True), (theirs, False))
    ]
    graphs_since()
    for model, optimizer in pairs:
        trained(model, optimizer, 0, 8)
        site = growkit.find_sites(model, torch.randn(4, 180, dtype=torch.float64))[0]
        growkit.widen(model, site, 31, optimizer=optimizer)
        trained(model, optimizer, 8, 16)
    assert len(asked) == 16 and graphs_since() <= 1  # one, where it was not compiled yet
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-14)


@pytest.mark.parametrize("amsbound", [False, True])
def test_any_number_of_parameters_of_any_lengths_goes_through_the_same_kernel(amsbound: bool) -> None:
    trained(layers := weights([40_000], apart=True), AdaBound(layers, amsbound=amsbound, compile=True), 0, 1)
    graphs_since()
    for sizes in ([40_000] * 9, [40_000, 50_000, 50_000, 33_000], [50_000, 70_000]):
        for apart in (True, False):
            ours, theirs = weights(sizes, apart), weights(sizes, apart)
            trained(ours, AdaBound(ours, amsbound=amsbound, compile=True), 0, 5)
            trained(theirs, AdaBound(theirs, amsbound=amsbound), 0, 5)
            for mine, other in zip(ours, theirs, strict=True):
                torch.testing.assert_close(mine, other, rtol=0, atol=1e-14)
    assert graphs_since() == 0


def test_autograd_sees_that_a_step_has_written_to_the_weights() -> None:
    (weight,) = weights([40_000], apart=True)
    optimizer = AdaBound([weight], compile=True)
    loss = weight.square().sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def weights(sizes: list[int], apart: bool) -> list[nn.Parameter]:
    """Parameters with memory of their own, or as parts of one stretch."""
    whole = torch.linspace(-1.0, 1.0, sum(sizes), dtype=torch.float64)
    return [nn.Parameter(part.clone() if apart else part) for part in whole.split(sizes)]


@not_naive(AdaBound, NaiveAdaBound)
def test_inside_a_compiled_function_steps_make_no_new_graphs(make: Any) -> None:
    weight = nn.Parameter(torch.ones(5))
    optimizer = make([weight], lr=0.01)
    compiled = torch.compile(lambda: optimizer.step(), backend="eager")
    graphs_since()
    for _ in range(8):
        weight.grad = torch.ones(5)
        compiled()
    assert graphs_since() <= 2


def test_a_group_that_cannot_be_compiled_is_not_added(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*kind: Any) -> None:
        raise UserInputError("no compiler")

    monkeypatch.setattr(adabound, "compiled_kernel", missing)
    optimizer = AdaBound([nn.Parameter(torch.ones(3))])
    with pytest.raises(UserInputError, match="no compiler"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "compile": True})
    assert len(optimizer.param_groups) == 1


@pytest.mark.slow
def test_a_missing_compiler_is_an_error_that_says_so(tmp_path: Path) -> None:
    code = "import torch, growkit.optim as o; o.AdaBound([torch.nn.Parameter(torch.ones(3))], compile=True)"
    environment = {**os.environ, "CXX": "no-such-compiler", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert "compile=True needs a compiler for cpu that torch.compile can use" in run.stderr
    assert "no-such-compiler" in run.stderr
