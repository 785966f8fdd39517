"""SAM with numbers of every kind: complex ones, those whose squares no type holds, climbing, clipping, overflows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from sam_cases import alone
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim import AMP, SAM, AdaBound


def moved_by(gradient: Tensor, **settings: Any) -> Tensor:
    """What a gradient moves weights of 0 by, as pairs of reals in float64."""
    weight = nn.Parameter(torch.zeros_like(gradient))
    optimizer, _ = alone(weight, lambda w: w.sum(), lr=0.1, **{"rho": 0.05, **settings})
    weight.grad = gradient
    assert optimizer.first_step()
    moved = weight.detach()
    return (torch.view_as_real(moved) if moved.is_complex() else moved).double()


SIZES = {
    torch.float32: [1e-44, 1e-38, 2.7e-23, 1e-22, 1e-21, 1e-18, 1.0, 1e20, 1e38],
    torch.float64: [1e-320, 1e-170, 1e-162, 1.0, 1e155, 1e300],
    torch.complex64: [1e-24j, 1e-24 * (1 + 1j), 1j, 1e20j, 1e20 * (1 + 1j)],
}


@pytest.mark.parametrize("entries", [4, 20_000])
@pytest.mark.parametrize(("dtype", "size"), [(dtype, size) for dtype, sizes in SIZES.items() for size in sizes])
def test_the_radius_is_rho_whatever_the_size_of_the_gradients(dtype: torch.dtype, size: complex, entries: int) -> None:
    moved = moved_by(torch.full((entries,), size, dtype=dtype))
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-5)


def test_entries_whose_squares_vanish_count_together() -> None:
    gradient = torch.full((16_000,), 1.8e-23)
    gradient[0] = 1e-21
    assert moved_by(gradient).norm().item() == pytest.approx(0.05, rel=1e-5)


@pytest.mark.parametrize("entries", [3, 20_000])
def test_scaled_weights_are_moved_alike_by_gradients_of_all_sizes(entries: int) -> None:
    moves = []
    for size in (1.0, 1e25, 1e-25):
        weight = nn.Parameter(torch.linspace(1.0, 2.0, entries))
        optimizer, _ = alone(weight, lambda w: w.sum(), lr=0.1, rho=0.5, adaptive=True)
        weight.grad = torch.linspace(2.0, 1.0, entries) * size
        optimizer.first_step()
        moves.append(weight.detach())
    torch.testing.assert_close(moves[1:], [moves[0]] * 2, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [1e-3, 1e20, 1e-44])
def test_adversarial_perturbation_stays_in_proportion(size: float) -> None:
    weight = nn.Parameter(torch.zeros(2))
    holder = nn.Module()
    holder.weight = weight
    optimizer = AMP([weight], torch.optim.SGD, model=holder, rho=0.5, inner_lr=0.1 / size, lr=0.1)
    weight.grad = torch.tensor([3.0, 4.0]) * size
    expected = 0.1 * weight.grad.double() / size
    optimizer.first_step()
    torch.testing.assert_close(weight.detach().double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("spoil", [complex(0, math.inf), complex(0, math.nan)])
def test_an_imaginary_part_that_is_not_finite_skips_the_step(spoil: complex) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    optimizer, closure = alone(weight, lambda w: w.abs().square().sum(), lr=0.1)

    def spoilt() -> Tensor:
        loss = closure()
        assert weight.grad is not None
        weight.grad[0] = spoil
        return loss

    with pytest.warns(UserWarning, match="skipped step 1"):
        optimizer.step(spoilt)
    assert optimizer.skipped == 1 and weight.tolist() == [1.0, 1.0]


@pytest.mark.parametrize(("settings", "rule"), [({"norm": math.inf}, "norm=inf"), ({"adaptive": "all"}, "adaptive")])
def test_what_complex_weights_do_not_have_is_refused(settings: dict[str, Any], rule: str) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(UserInputError, match=f"SAM: {rule} needs real parameters, got a complex one"):
        alone(weight, lambda w: w.abs().sum(), lr=0.1, **settings)


def test_second_order_on_complex_weights_is_that_on_their_pairs() -> None:
    start, gradients = torch.tensor([1.0 + 2.0j, 0.5 - 1.0j], dtype=torch.complex128), []

    def loss(w: Tensor) -> Tensor:
        return (w**3).abs().sum() + w.real.prod()

    for weight, of in (
        (nn.Parameter(start.clone()), loss),
        (nn.Parameter(torch.view_as_real(start).clone()), lambda w: loss(torch.view_as_complex(w))),
    ):
        optimizer, _ = alone(weight, of, lr=0.0, rho=0.1, second_order=True)
        optimizer.step(lambda weight=weight, of=of: of(weight))
        gradients.append(torch.view_as_real(weight.grad) if weight.is_complex() else weight.grad)
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)


@pytest.mark.parametrize("size", [1e-24, 1e-22, 1.0, 1e20, 1e38])
def test_second_order_measures_gradients_of_all_sizes(size: float) -> None:
    weight, seen = nn.Parameter(torch.ones(2)), []
    optimizer, _ = alone(weight, lambda w: w.sum(), lr=0.0, rho=0.1, second_order=True)

    def loss() -> Tensor:
        seen.append(weight.detach().clone())
        return (size * weight.square()).sum()

    optimizer.step(loss)
    assert (seen[1] - seen[0]).norm().item() == pytest.approx(0.1, rel=1e-5)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad / size, torch.full((2,), 2.0 + math.sqrt(0.02)), rtol=1e-5, atol=0)


@pytest.mark.parametrize("norm", [2, math.inf])
@pytest.mark.parametrize("spoil", [math.inf, math.nan])
def test_second_order_skips_what_is_not_finite(norm: float, spoil: float) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer, _ = alone(weight, lambda w: w.sum(), lr=0.1, second_order=True, norm=norm)
    with pytest.warns(UserWarning, match="skipped step 1"):
        optimizer.step(lambda: weight[0] * spoil + weight[1])
    assert weight.tolist() == [1.0, 1.0]


# --- climbing


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, AdaBound])
@pytest.mark.parametrize("settings", [{}, {"second_order": True}, {"norm": math.inf}, {"adaptive": "all", "eta": 0.0}])
def test_who_climbs_looks_at_the_lowest_place(base: Any, settings: dict[str, Any]) -> None:
    weight, seen = nn.Parameter(torch.ones(1, dtype=torch.float64)), []
    holder = nn.Module()
    holder.weight = weight
    optimizer = SAM([weight], base, model=holder, rho=0.1, lr=0.1, maximize=True, **settings)

    def closure() -> Tensor:
        seen.append(weight.item())
        height = -weight.square().sum()
        if not optimizer.second_order:
            height.backward()
        return height

    optimizer.step(closure)
    assert seen == pytest.approx([1.0, 1.1]) and weight.item() < 1.0
    if base is torch.optim.SGD and not settings:
        assert weight.item() == pytest.approx(0.78)


def test_one_group_climbs_while_another_descends() -> None:
    up, down = (nn.Parameter(torch.zeros(1)) for _ in range(2))
    holder = nn.Module()
    holder.up, holder.down = up, down
    groups: list[Any] = [{"params": [up], "maximize": True}, {"params": [down]}]
    optimizer = AMP(groups, torch.optim.SGD, model=holder, rho=1.0, inner_lr=0.1, lr=0.1)
    up.grad, down.grad = torch.ones(1), torch.ones(1)
    optimizer.first_step()
    assert [up.item(), down.item()] == pytest.approx([-0.1, 0.1])


# --- clipping


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float16])
@pytest.mark.parametrize("size", [2.0, 1e4, 1e20, 1e38])
def test_finite_gradients_are_clipped_to_their_direction(size: float, dtype: torch.dtype) -> None:
    if dtype == torch.float16 and size > 1e4:
        pytest.skip("no half is so large")
    weight = nn.Parameter(torch.zeros(4, dtype=dtype))
    optimizer, closure = alone(weight, lambda w: (w.real * size).sum(), lr=1.0, rho=0.0, clip=1.0)
    optimizer.step(closure)
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, -0.5), rtol=1e-3, atol=0)


def test_sparse_gradients_are_clipped_by_the_norm_of_their_sums() -> None:
    layer = nn.Embedding(5, 3, sparse=True)
    before = layer.weight.detach().clone()
    optimizer = SAM(layer.parameters(), torch.optim.SGD, model=layer, lr=1.0, rho=0.1, clip=1e-2)
    optimizer.step(lambda: layer(torch.tensor([0, 1, 1])).sum().backward())
    torch.testing.assert_close((before - layer.weight).norm().item(), 1e-2, rtol=1e-4, atol=0)


# --- a scaler and gradients in which nothing can be written


def spoilt_through(scaler: torch.amp.GradScaler, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    calls: list[None] = []

    def closure() -> Tensor:
        calls.append(None)
        value = loss()
        scaler.scale(value * (math.inf if len(calls) == 1 else 1.0)).backward()
        return value

    return closure


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("kind", ["sparse", "empty", "float16"])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaler_hears_of_an_overflow_of_any_gradients(kind: str, clip: float | None, unscaled: bool) -> None:
    if kind == "float16" and unscaled:
        pytest.skip("scalers do not unscale halves")
    if kind == "sparse":
        model: nn.Module = nn.Sequential(nn.Embedding(5, 3, sparse=True), nn.Linear(3, 1))
        inputs = torch.tensor([0, 1])
    elif kind == "empty":
        model = nn.Linear(3, 2)
        model.aside = nn.Parameter(torch.zeros(0))
        model._parameters = {"aside": model.aside, **model._parameters}
        model.register_forward_hook(lambda module, _, output: output + module.aside.sum())
        inputs = torch.ones(2, 3)
    else:
        model, inputs = nn.Linear(3, 2).half(), torch.ones(2, 3).half()
    before = [one.detach().clone() for one in model.parameters()]
    optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, momentum=0.0, clip=clip)
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    closure = spoilt_through(scaler, lambda: model(inputs).sum())
    if unscaled:
        closure()
        assert optimizer.first_step(scaler=scaler) is False
        closure()
        scaler.unscale_(optimizer.base)
        optimizer.second_step(scaler=scaler)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            optimizer.step(closure, scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == 32.0 and all(map(torch.equal, before, model.parameters()))
