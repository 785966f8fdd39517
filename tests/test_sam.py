"""SAM, ASAM and their kin: against closed forms, the formulas written out, and a reference."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import pytorch_optimizer
import torch
from sam_cases import alone, batch, closure_of, net, sam, same, state_of, train
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim import AMP, AdaBound


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- closed forms


def test_on_a_parabola_every_step_is_known():
    curvature, w = torch.tensor([1.0, 3.0]), torch.tensor([1.0, -0.5])
    weight = nn.Parameter(w.clone())
    optimizer, closure = alone(weight, lambda w: 0.5 * (curvature * w * w).sum(), rho=0.1, lr=0.2)
    for _ in range(30):
        optimizer.step(closure)
        gradient = curvature * w
        w = w - 0.2 * curvature * (w + 0.1 * gradient / gradient.norm())
    torch.testing.assert_close(weight.detach(), w, rtol=0, atol=1e-14)


def test_in_one_dimension_it_ends_in_the_two_cycle():
    lr, h, rho = 0.3, 2.0, 0.1
    weight = nn.Parameter(torch.tensor([0.7]))
    optimizer, closure = alone(weight, lambda w: 0.5 * h * (w * w).sum(), rho=rho, lr=lr)
    for _ in range(400):
        optimizer.step(closure)
    before = weight.item()
    optimizer.step(closure)
    assert weight.item() == pytest.approx(-before, abs=1e-12)
    assert abs(before) == pytest.approx(lr * h * rho / (2 - lr * h), abs=1e-10)


def test_asam_is_invariant_under_a_rescaling_that_keeps_the_function():
    scale = torch.tensor([3.0, 1 / 3])

    def loss(w: Tensor) -> Tensor:
        return (w[0] * w[1] - 1.0) ** 2

    values = []
    for factor in (torch.ones(2), scale):
        weight = nn.Parameter(torch.tensor([0.4, 1.0]) * factor)
        optimizer, closure = alone(weight, loss, adaptive=True, eta=0.0, rho=0.3, lr=0.1)
        closure()
        optimizer.first_step()
        values.append(loss(weight).item())
        optimizer.restore()
    assert values[0] == pytest.approx(values[1], rel=1e-12) and values[0] != pytest.approx(loss(torch.tensor([0.4, 1])))


FORMS: dict[str, dict[str, Any]] = {
    "SAM": {},
    "infinity": {"norm": math.inf, "rho": 0.01},
    "ASAM": {"adaptive": True, "rho": 0.5},
    "ASAM, all": {"adaptive": "all", "eta": 0.1, "rho": 0.5},
    "ASAM, filters": {"adaptive": True, "by": "filter", "rho": 0.5},
    "ASAM, infinity": {"adaptive": True, "norm": math.inf, "rho": 0.05},
}


def moved_by_hand(model: nn.Module, form: dict[str, Any]) -> dict[str, Tensor]:
    """The perturbation of each parameter, from its gradient, entry by entry as the papers have it."""
    rho, eta, kind = form.get("rho", 0.05), form.get("eta", 0.01), form.get("adaptive", False)
    t = {}
    for name, w in model.named_parameters():
        size = w.detach().abs() + eta
        if form.get("by") == "filter" and w.dim() > 2:
            size = torch.stack([torch.full_like(f, f.norm()) for f in w.detach()]) + eta
        t[name] = size if kind == "all" or (kind and "weight" in name) else torch.ones_like(w)
    g = {name: w.grad for name, w in model.named_parameters()}
    if form.get("norm") == math.inf:
        return {name: rho * t[name] * g[name].sign() for name in g}
    length = torch.sqrt(sum((t[name] * g[name]).square().sum() for name in g))
    return {name: rho * t[name] ** 2 * g[name] / length for name in g}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_the_weights_are_moved_as_the_papers_have_it(form: dict[str, Any]):
    model = net()
    optimizer = sam(model, **form)
    closure_of(model, *batch())()
    before, moved = state_of(model), moved_by_hand(model, form)
    optimizer.first_step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] + moved[name], rtol=0, atol=1e-14)
    optimizer.restore()
    assert same(before, state_of(model))


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, AdaBound])
def test_a_trajectory_is_two_gradients_and_a_step_of_the_base(base: Any):
    model, other = net(), net()
    optimizer = sam(model, base, rho=0.2)
    plain = base(other.parameters(), **{"lr": 0.1, "momentum": 0.9} if base is torch.optim.SGD else {"lr": 0.01})
    train(optimizer, model, 8)
    for t in range(8):
        closure = closure_of(other, *batch(t))
        torch.manual_seed(t)
        plain.zero_grad()
        closure()
        moved = moved_by_hand(other, {"rho": 0.2})
        kept, statistics = state_of(other), {k: v.clone() for k, v in other.named_buffers()}
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                parameter.add_(moved[name])
        torch.manual_seed(t)
        plain.zero_grad()
        closure()
        other.load_state_dict(kept)
        assert statistics.keys() == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
        plain.step()
    for name, value in state_of(model).items():
        torch.testing.assert_close(value, state_of(other)[name], rtol=0, atol=1e-12)


PEERS = {"SAM": ({}, {}), "ASAM": ({"adaptive": "all", "eta": 0.0}, {"adaptive": True})}


def difference(ours: dict[str, Any], theirs: dict[str, Any], steps: int) -> float:
    """The largest difference of a weight after some steps of growkit's SAM and of pytorch_optimizer's."""
    torch.manual_seed(0)
    one, other = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(2))
    other.load_state_dict(one.state_dict())
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    optimizer = sam(one, rho=0.1, **ours)
    peer = pytorch_optimizer.SAM(other.parameters(), torch.optim.SGD, rho=0.1, lr=0.1, momentum=0.9, **theirs)
    for _ in range(steps):
        optimizer.step(closure_of(one, x, y))
        peer.zero_grad()
        closure_of(other, x, y)()
        peer.first_step(zero_grad=True)
        closure_of(other, x, y)()
        peer.second_step(zero_grad=True)
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max((mine - yours).abs().max().item() for mine, yours in pairs)


@pytest.mark.parametrize(("ours", "theirs"), PEERS.values(), ids=PEERS)
def test_a_trajectory_is_that_of_pytorch_optimizer(ours: dict[str, Any], theirs: dict[str, Any]):
    assert difference(ours, theirs, steps=20) < 1e-8


@pytest.mark.parametrize(("ours", "theirs"), PEERS.values(), ids=PEERS)
def test_what_differs_in_long_trajectories_is_the_float32_norm_of_pytorch_optimizer(
    ours: dict[str, Any], theirs: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    def norm_in_float64(groups: list[dict[str, Any]], weight_adaptive: bool = False) -> Tensor:
        of = [(p.abs() if group["adaptive"] else 1.0) * p.grad for group in groups for p in group["params"]]
        return torch.cat([one.flatten() for one in of]).square().sum().reshape(1)

    monkeypatch.setattr("pytorch_optimizer.optimizer.sam.get_global_gradient_norm", norm_in_float64)
    assert difference(ours, theirs, steps=200) < 1e-10


@pytest.mark.parametrize("form", [*FORMS.values(), {"scope": "group"}], ids=[*FORMS, "each group"])
def test_second_order_is_the_exact_gradient_of_the_loss_at_the_moved_weights(form: dict[str, Any]):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 2))
    x, y = batch()
    optimizer = sam(model, second_order=True, lr=1.0, momentum=0.0, **form)
    weights = {name: w.detach().clone().requires_grad_() for name, w in model.named_parameters()}

    def loss_at(values: dict[str, Tensor]) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(model, values, (x,)), y)

    first = torch.autograd.grad(loss_at(weights), list(weights.values()), create_graph=True)
    gradients = dict(zip(weights, first, strict=True))
    moved = dict(zip(weights, moves_of(weights, gradients, form), strict=True))
    objective = loss_at({name: weights[name] + moved[name] for name in weights})
    exact = torch.autograd.grad(objective, list(weights.values()))
    loss = optimizer.step(lambda: nn.functional.cross_entropy(model(x), y))
    assert loss.item() == pytest.approx(loss_at(weights).detach().item(), abs=1e-14)
    for name, gradient in zip(weights, exact, strict=True):
        torch.testing.assert_close(model.get_parameter(name), weights[name] - gradient, rtol=0, atol=1e-12)


def moves_of(weights: dict[str, Tensor], gradients: dict[str, Tensor], form: dict[str, Any]) -> list[Tensor]:
    """The perturbations as one expression of the weights, for autograd."""
    rho, eta, kind = form.get("rho", 0.05), form.get("eta", 0.01), form.get("adaptive", False)
    t = []
    for name, w in weights.items():
        filters = form.get("by") == "filter" and w.dim() > 2
        size = w.flatten(1).norm(dim=1).view(-1, 1, 1, 1) * torch.ones_like(w) if filters else w.abs()
        t.append(size + eta if kind == "all" or (kind and "weight" in name) else torch.ones_like(w))
    g = list(gradients.values())
    if form.get("norm") == math.inf:
        return [rho * a * b.sign() for a, b in zip(t, g, strict=True)]
    length = torch.sqrt(torch.stack([(a * b).square().sum() for a, b in zip(t, g, strict=True)]).sum())
    return [rho * a * a * b / length for a, b in zip(t, g, strict=True)]


def test_second_order_wants_the_loss_alone():
    model = net()
    with pytest.raises(UserInputError, match=r"second_order needs a closure that returns the loss, without backward"):
        sam(model, second_order=True).step(lambda: 1.0)
    with pytest.raises(UserInputError, match="takes no scaler with second_order"):
        sam(model, second_order=True).step(lambda: 1.0, scaler=torch.amp.GradScaler("cpu"))


def test_second_order_serves_chunks_and_plain_steps_too():
    model, x = nn.Linear(3, 2).double(), torch.randn(4, 3).double()
    optimizer = sam(model, second_order=True, interval=2, m=2, lr=1.0, momentum=0.0)
    for parts in ((slice(0, 2), slice(2, 4)), None):
        before, ends = state_of(model), []
        for part in parts or ():
            twin = copy.deepcopy(model)
            sam(twin, second_order=True, lr=1.0, momentum=0.0).step(lambda t=twin, p=part: t(x[p]).square().mean())
            ends.append(twin.weight.detach())
        if parts is None:  # a plain step
            (gradient,) = torch.autograd.grad(model(x).square().mean(), [model.weight])
            ends.append(before["weight"] - gradient)
        optimizer.step(lambda part: model(x[part]).square().mean(), samples=4)
        torch.testing.assert_close(model.weight.detach(), torch.stack(ends).mean(0), rtol=0, atol=1e-13)


@pytest.mark.parametrize(("inner_lr", "factor"), [(0.01, 0.01), (1.0, 0.1 / 5.0)])
def test_adversarial_perturbation_moves_by_its_rate_but_no_further_than_the_radius(inner_lr: float, factor: float):
    holder = nn.Module()
    holder.weight = weight = nn.Parameter(torch.ones(2))
    optimizer = AMP([weight], torch.optim.SGD, rho=0.1, inner_lr=inner_lr, model=holder, lr=0.1)
    weight.grad = torch.tensor([3.0, 4.0])
    optimizer.first_step()
    assert weight.tolist() == pytest.approx([1 + 3 * factor, 1 + 4 * factor], abs=1e-14)
    with pytest.raises(UserInputError, match="AMP moves along the gradient itself, so it takes no adaptive"):
        AMP([weight], torch.optim.SGD, adaptive=True, model=holder, lr=0.1)
