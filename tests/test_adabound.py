"""AdaBound and AMSBound: against Adam in the limit, against the formulas written out, and in the traps of the field."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import pytorch_optimizer
import torch
from naive_optimizers import NaiveAdaBound, not_naive
from torch import Tensor, nn

import growkit
from growkit.errors import UserInputError
from growkit.optim import AdaBound, AMSBound

MOMENTS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
STEPS = 60


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def weights() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((3, 4), (5,), (2, 3, 2))]


def gradients(parameters: list[nn.Parameter], t: int) -> list[Tensor]:
    """Of a noisy problem, so that they differ in size by orders of magnitude."""
    generator = torch.Generator().manual_seed(t)
    return [p.detach() * 10.0 ** (i - 1) + torch.randn(p.shape, generator=generator) for i, p in enumerate(parameters)]


def trained(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], first: int = 1, last: int = STEPS
) -> None:
    for t in range(first, last + 1):
        for parameter, gradient in zip(parameters, gradients(parameters, t), strict=True):
            parameter.grad = gradient
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * (1.0 if t < STEPS // 2 else 0.1)
        optimizer.step()


def reference(
    parameters: list[nn.Parameter], *, amsbound: bool, paper: Any, root: bool, decay: float, how: Any
) -> None:
    """The algorithm, one weight tensor after the other, as it is printed or released."""
    beta1, beta2, final_lr, gamma, eps, base_lr = 0.9, 0.99, 0.1, 1e-2, 1e-8, 0.01
    mean, square, largest = ([torch.zeros_like(p) for p in parameters] for _ in range(3))
    for t in range(1, STEPS + 1):
        lr = 0.01 * (1.0 if t < STEPS // 2 else 0.1)
        for i, (w, g) in enumerate(zip(parameters, gradients(parameters, t), strict=True)):
            g = g + decay * w.data if how is False else g
            mean[i] = beta1 * mean[i] + (1 - beta1) * g
            square[i] = beta2 * square[i] + (1 - beta2) * g * g
            largest[i] = torch.maximum(largest[i], square[i])
            root_mean_square = (largest[i] if amsbound else square[i]).sqrt() + eps
            if paper:
                final, closing, step = final_lr, (1 - beta2) * t, lr
                upper = closing + 1 if paper == "slides" else closing
            else:
                final, closing, upper = final_lr * lr / base_lr, gamma * t, gamma * t
                step = lr * math.sqrt(1 - beta2**t) / (1 - beta1**t)
            size = (step / root_mean_square).clamp(final * (1 - 1 / (closing + 1)), final * (1 + 1 / upper))
            taken_off = {False: 0.0, True: lr * decay, "fixed": decay}[how] * w.data
            w.data = w.data - size * mean[i] / (math.sqrt(t) if root else 1) - taken_off


FORMS: dict[str, dict[str, Any]] = {
    "released": {},
    "amsbound": {"amsbound": True},
    "coupled decay": {"weight_decay": 0.03},
    "decoupled decay": {"weight_decay": 0.03, "decoupled": True},
    "decay as AdaBoundW": {"weight_decay": 0.003, "decoupled": "fixed"},
    "paper": {"paper": True},
    "paper, root": {"paper": True, "root_decay": True},
    "slides": {"paper": "slides", "amsbound": True, "weight_decay": 0.1},
}


WAYS: dict[str, dict[str, Any]] = {
    "together": {},
    "in blocks": {"bounded_step.SMALL": 4, "blocks.BLOCK": 10, "blocks.SCRATCH": threading.local()},
    "without Adam's kernel": {"bounded_step.are_even": lambda group: False},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_trajectories_are_those_of_the_formulas(
    form: dict[str, Any], way: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in way.items():
        monkeypatch.setattr(f"growkit.optim.{name}", value)
    ours, theirs = weights(), weights()
    trained(AdaBound(ours, lr=0.01, betas=(0.9, 0.99), gamma=1e-2, **form), ours)
    reference(
        theirs,
        amsbound=form.get("amsbound", False),
        paper=form.get("paper", False),
        root=form.get("root_decay", False),
        decay=form.get("weight_decay", 0.0),
        how=form.get("decoupled", False),
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_without_bounds_it_is_adam(amsgrad: bool) -> None:
    ours, theirs = weights(), weights()
    kind = AMSBound if amsgrad else AdaBound
    trained(kind(ours, lr=0.01, gamma=0.0, eps=0.0), ours)
    trained(torch.optim.Adam(theirs, lr=0.01, eps=0.0, amsgrad=amsgrad), theirs)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [AdaBound, AMSBound])
def test_trajectories_are_those_of_pytorch_optimizer(kind: type[AdaBound]) -> None:
    ours, theirs = weights(), weights()
    trained(kind(ours, lr=0.01, weight_decay=0.02), ours)
    ams = kind is AMSBound
    trained(
        pytorch_optimizer.AdaBound(theirs, lr=0.01, weight_decay=0.02, weight_decouple=False, ams_bound=ams), theirs
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-8)


class RootAlone(pytorch_optimizer.AdaBound):
    """That of pytorch_optimizer without the 1e-15 that it adds below the root."""

    apply_ams_bound = staticmethod(partial(pytorch_optimizer.AdaBound.apply_ams_bound, exp_avg_sq_eps=0.0))


@pytest.mark.parametrize("kind", [AdaBound, AMSBound])
def test_what_differs_where_gradients_vanish_is_the_number_below_the_root_of_pytorch_optimizer(
    kind: type[AdaBound],
) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(20, 6), torch.arange(20) % 3
    ours, theirs = (nn.Sequential(nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 3)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    same_form = {"weight_decouple": False, "ams_bound": kind is AMSBound, "foreach": False}
    optimizers = kind(ours.parameters(), lr=1e-3), RootAlone(theirs.parameters(), lr=1e-3, **same_form)
    for _ in range(200):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("form", "values"),
    [
        ({}, (0.999, 0.99000, 0.60714, 0.13383)),
        ({"paper": True, "root_decay": True}, (0.99684, 0.97437, 0.89378, 0.80308)),
        ({"paper": True}, (0.99684, 0.94483, 0.50308, 0.11089)),
    ],
)
def test_a_parabola_descends_as_worked_out_by_hand(form: dict[str, Any], values: tuple[float, ...]) -> None:
    weight = nn.Parameter(torch.ones(1))
    optimizer, seen = AdaBound([weight], **form), {}
    for t in range(1, 201):
        weight.grad = weight.detach().clone()
        optimizer.step()
        seen[t] = weight.item()
    assert [seen[t] for t in (1, 10, 100, 200)] == pytest.approx(values, abs=1.5e-5)


def test_the_bounds_close_in_on_the_final_rate() -> None:
    optimizer = AdaBound(weights())
    assert [optimizer.bounds(t) for t in (1, 1000)] == [
        pytest.approx((1e-4, 100.1), rel=1e-2),
        pytest.approx((0.05, 0.2)),
    ]
    optimizer.param_groups[0]["lr"] *= 0.1
    assert optimizer.bounds(1000) == pytest.approx((0.005, 0.02))


def test_climbing_is_descending_the_negative() -> None:
    up, down = weights(), weights()
    climber, descender = AdaBound(up, maximize=True, weight_decay=0.1), AdaBound(down, weight_decay=0.1)
    for parameters, optimizer, sign in ((up, climber, -1.0), (down, descender, 1.0)):
        for parameter in parameters:
            parameter.grad = sign * torch.ones_like(parameter)
        optimizer.step()
    assert all(map(torch.equal, up, down))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_weights_in_any_layout_take_the_same_step(layout: torch.memory_format) -> None:
    weight = nn.Parameter(torch.randn(96, 64, 5, 5).to(memory_format=layout))
    weight.grad = torch.randn(96, 64, 5, 5).to(memory_format=layout)
    parts = [nn.Parameter(part.clone()) for part in weight.detach()]
    for part, gradient in zip(parts, weight.grad, strict=True):
        part.grad = gradient.clone()
    AdaBound([weight]).step()
    AdaBound(parts).step()
    torch.testing.assert_close(weight.detach(), torch.stack([part.detach() for part in parts]), rtol=0, atol=1e-15)


def test_gradients_in_another_layout_take_the_same_step() -> None:
    ours, theirs = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    ours.grad = torch.arange(12.0).view(4, 3).t()
    theirs.grad = ours.grad.contiguous()
    AdaBound([ours]).step()
    AdaBound([theirs]).step()
    assert torch.equal(ours, theirs)


# --- groups, saving, joining


@not_naive(AdaBound, NaiveAdaBound)
def test_a_group_that_joins_late_trains_and_begins_as_all_others_did(make: Any) -> None:
    first, late = weights()[:1], nn.Parameter(torch.ones(3))
    optimizer = make(first, lr=0.01, eps=0.0)
    trained(optimizer, first)
    optimizer.add_param_group({"params": [late], "lr": 0.02})
    late.grad = torch.ones(3)
    optimizer.step()
    assert late.detach().tolist() == pytest.approx([0.98] * 3, abs=1e-12)  # a first step of Adam is as long as its rate


@not_naive(AdaBound, NaiveAdaBound)
def test_a_parameter_that_gets_its_gradients_late_begins_as_all_others_did(make: Any) -> None:
    early, late = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = make([early, late], lr=0.01, eps=0.0)
    trained(optimizer, [early])
    optimizer.param_groups[0]["lr"], late.grad = 0.01, torch.ones(3)
    optimizer.step()
    assert late.detach().tolist() == pytest.approx([0.99] * 3, abs=1e-12)


@not_naive(AdaBound, NaiveAdaBound, AttributeError, AssertionError)
def test_the_rate_that_bounds_belong_to_is_saved(make: Any) -> None:
    parameters = weights()
    optimizer = make(parameters, lr=0.01)
    other = make(parameters, lr=0.1)
    other.load_state_dict(optimizer.state_dict())
    assert other.bounds(10**9) == pytest.approx((0.1, 0.1)) == optimizer.bounds(10**9)


@not_naive(AdaBound, NaiveAdaBound, AttributeError)
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_alike(make: Any, copied: Any) -> None:
    parameters = weights()
    optimizer = make(parameters, lr=0.01, amsbound=True)
    trained(optimizer, parameters, last=10)
    twins, twin = copied((parameters, optimizer))
    trained(optimizer, parameters, 11, 50)
    trained(twin, twins, 11, 50)
    assert all(map(torch.equal, parameters, twins))


def test_loading_goes_on_bit_for_bit_also_while_the_rate_decays() -> None:
    whole, parts = weights(), weights()
    trained(AMSBound(whole, lr=0.01), whole)
    optimizer = AMSBound(parts, lr=0.01)
    trained(optimizer, parts, last=40)
    state = copy.deepcopy(optimizer.state_dict())
    optimizer = AMSBound(parts, lr=0.5)
    optimizer.load_state_dict(state)
    trained(optimizer, parts, 41, STEPS)
    assert all(map(torch.equal, whole, parts))


@not_naive(AdaBound, NaiveAdaBound, ZeroDivisionError)
def test_a_warm_up_from_zero_has_the_bounds_of_the_final_rate(make: Any) -> None:
    weight = nn.Parameter(torch.ones(2))
    optimizer = make([weight], lr=0.0)
    weight.grad = torch.ones(2)
    optimizer.step()
    assert weight.tolist() == [1.0, 1.0] and optimizer.bounds(1000) == (0.0, 0.0)
    optimizer.param_groups[0]["lr"] = 1e-3
    assert optimizer.bounds(1000) == pytest.approx((0.05, 0.2))
    optimizer.step()
    assert torch.isfinite(weight).all() and (weight < 1.0).all()


def test_state_grows_with_the_weights() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
    optimizer = AMSBound(model.parameters(), lr=0.01)
    model(x).square().sum().backward()
    optimizer.step()
    weight = model.get_parameter("0.weight")
    before = {key: optimizer.state[weight][key].clone() for key in MOMENTS}
    growkit.widen(model, growkit.find_sites(model, x)[0], 3, optimizer=optimizer)
    for key in MOMENTS:
        after = optimizer.state[weight][key]
        assert torch.equal(after[:6], before[key]) and not after[6:].any()
    model(x).square().sum().backward()
    optimizer.step()


@not_naive(AdaBound, NaiveAdaBound, RuntimeError, AssertionError)
def test_a_parameter_resized_without_its_state_is_refused_before_anything_moves(make: Any) -> None:
    other, weight = weights()[:2]
    optimizer = make([other, weight])
    trained(optimizer, [other, weight], last=2)
    weight.data = torch.ones(6)
    other.grad, weight.grad = torch.ones_like(other), torch.ones(6)
    before = other.detach().clone()
    with pytest.raises(UserInputError, match=r"got \(6,\) with a mean of \(5,\); resize parameters by growkit.widen"):
        optimizer.step()
    assert torch.equal(other, before)


def test_weights_without_a_gradient_stay_and_a_closure_gives_its_loss() -> None:
    still, moving = weights()[:2]
    moving.grad = torch.ones_like(moving)
    before = still.detach().clone()
    assert AdaBound([still, moving]).step(lambda: 7.0) == 7.0
    assert torch.equal(still, before)


# --- what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -0.1}, r"AdaBound: lr must be a number >= 0, got -0.1"),
        ({"betas": (1.0, 0.9)}, r"beta1 must be a number >= 0 and < 1, got 1.0"),
        ({"betas": (0.9, -0.1)}, r"beta2 must be a number >= 0 and < 1, got -0.1"),
        ({"betas": 0.9}, r"betas must be two numbers, got 0.9"),
        ({"final_lr": 0.0}, r"final_lr must be a number > 0, got 0.0"),
        ({"gamma": float("nan")}, r"gamma must be a number >= 0, got nan"),
        ({"eps": "small"}, r"eps must be a number >= 0, got 'small'"),
        ({"weight_decay": -1}, r"weight_decay must be a number >= 0, got -1"),
        ({"paper": "book"}, r"paper must be one of False, True, 'slides', got 'book'"),
        ({"decoupled": 1}, r"decoupled must be one of False, True, 'fixed', got 1"),
    ],
)
def test_a_value_out_of_its_range_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserInputError, match=message):
        AdaBound(weights(), **arguments)


def test_a_group_of_its_own_is_checked_too() -> None:
    with pytest.raises(UserInputError, match="gamma must be a number >= 0, got -1"):
        AdaBound([{"params": weights(), "gamma": -1}])


def test_a_state_must_be_a_dict() -> None:
    with pytest.raises(UserInputError, match=r"AdaBound: a state must be a dict that state_dict\(\) gave, got list"):
        AdaBound(weights()).load_state_dict([1])  # type: ignore[arg-type]


@not_naive(AdaBound, NaiveAdaBound, RuntimeError, pytest.fail.Exception)
@pytest.mark.parametrize("kind", ["sparse", "complex"])
def test_gradients_that_are_sparse_or_complex_are_refused(make: Any, kind: str) -> None:
    if kind == "sparse":
        module = nn.Embedding(4, 2, sparse=True)
        module(torch.tensor([1])).sum().backward()
        weight = module.weight
    else:
        weight = nn.Parameter(torch.ones(2, dtype=torch.complex128))
        weight.grad = torch.ones_like(weight)
    other = nn.Parameter(torch.ones(2))
    other.grad = torch.ones(2)
    with pytest.raises(UserInputError, match=f"AdaBound needs dense real gradients, got a {kind} one of shape"):
        make([other, weight]).step()
    assert other.tolist() == [1.0, 1.0]
