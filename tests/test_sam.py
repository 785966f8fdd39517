"""SAM and ASAM: against closed forms and the formulas written out, and in the traps of the field."""

from __future__ import annotations

import copy
import io
import math
import pickle
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import pytorch_optimizer
import torch
from torch import Tensor, nn

import growkit
from growkit.errors import UserInputError
from growkit.optim import AMP, ASAM, SAM, AdaBound

Closure = Callable[[], Tensor]


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, bias=False), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Dropout(0.4), nn.Linear(12, 2)
    )


def batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(6, 2, 4, 4, generator=generator), torch.arange(6) % 2


def closure_of(model: nn.Module, x: Tensor, y: Tensor) -> Closure:
    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def sam(model: nn.Module, base: Any = torch.optim.SGD, **settings: Any) -> SAM:
    settings = {"lr": 0.1, "momentum": 0.9, **settings} if base is torch.optim.SGD else {"lr": 0.01, **settings}
    return SAM(model.parameters(), base, model=model, **settings)


def train(optimizer: SAM, model: nn.Module, steps: int, first: int = 0) -> None:
    for t in range(first, first + steps):
        torch.manual_seed(t)
        optimizer.step(closure_of(model, *batch(t)))


def state_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def alone(weight: nn.Parameter, loss: Callable[[Tensor], Tensor], **settings: Any) -> tuple[SAM, Closure]:
    """SAM on one weight tensor and a loss of it."""
    holder = nn.Module()
    holder.weight = weight
    optimizer = SAM([weight], torch.optim.SGD, model=holder, **settings)

    def closure() -> Tensor:
        value = loss(weight)
        value.backward()
        return value

    return optimizer, closure


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


def test_a_trajectory_is_that_of_pytorch_optimizer():
    ours, theirs = (nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    x, y = torch.randn(6, 4), torch.arange(6) % 2
    optimizer = sam(ours)
    peer = pytorch_optimizer.SAM(theirs.parameters(), torch.optim.SGD, rho=0.05, lr=0.1, momentum=0.9)
    for _ in range(10):
        optimizer.step(closure_of(ours, x, y))
        peer.zero_grad()
        closure_of(theirs, x, y)()
        peer.first_step(zero_grad=True)
        closure_of(theirs, x, y)()
        peer.second_step(zero_grad=True)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)


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
    model = nn.Linear(3, 2)
    optimizer, x = sam(model, second_order=True, interval=2), torch.randn(4, 3)
    losses = [optimizer.step(lambda part: model(x[part]).square().mean(), samples=4, chunk=2) for _ in range(12)]
    assert losses[-1] < losses[0]


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


# --- what the two passes share


def test_statistics_and_masks_are_those_of_the_first_pass():
    model, seen = net(), []
    optimizer, (x, y) = sam(model), batch()

    def closure() -> Tensor:
        seen.append((random.random(), np.random.rand()))
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    statistics = copy.deepcopy(model)
    statistics(x)
    model[4].register_forward_hook(lambda module, args, output: seen.append(output == 0))
    optimizer.step(closure)
    for name, buffer in model.named_buffers():
        assert torch.equal(buffer, statistics.get_buffer(name)), name
    assert seen[0] == seen[2] and torch.equal(seen[1], seen[3])
    assert not torch.equal(model[4](torch.ones(6, 12)) == 0, seen[1])  # the stream of random numbers has gone on


def test_the_loss_is_that_at_the_weights_the_step_began_with():
    model = net().eval()
    before = nn.functional.cross_entropy(model(batch()[0]), batch()[1])
    assert sam(model, rho=0.5).step(closure_of(model, *batch())).item() == before.item()


def test_a_pass_under_one_outer_autocast_sees_the_moved_weights():
    torch.set_default_dtype(torch.float32)
    model, x = nn.Linear(8, 8), torch.randn(4, 8)
    outputs: list[Tensor] = []

    def closure() -> Tensor:
        output = model(x)
        outputs.append(output.detach())
        output.float().square().sum().backward()
        return output.sum()

    with torch.autocast("cpu", torch.bfloat16):
        sam(model, rho=2.0).step(closure)
    assert not torch.equal(*outputs)


# --- restoring


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_weights_come_back_exactly(dtype: torch.dtype):
    model = nn.Linear(50, 50).to(dtype)
    before, storage = state_of(model), model.weight.data_ptr()
    optimizer = sam(model, lr=0.0, momentum=0.0, rho=0.7)
    for _ in range(20):
        optimizer.step(lambda: model.weight.float().square().sum().backward() or model.weight.sum())
    assert same(before, state_of(model)) and model.weight.data_ptr() == storage


class Partly(nn.Module):
    """Uses one layer in the first pass and another in the second."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(3, 3) for _ in range(3))
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.c((self.a if self.calls % 2 else self.b)(x))


def test_gradients_that_only_one_pass_has_leave_nothing_moved():
    torch.manual_seed(0)
    model, x = Partly(), torch.randn(4, 3)
    optimizer = sam(model, rho=0.5, momentum=0.0)
    before = state_of(model)
    for _ in range(3):
        optimizer.step(lambda: model(x).square().sum().backward() or torch.zeros(()))
    after = state_of(model)
    assert torch.equal(before["a.weight"], after["a.weight"])  # no gradient in the second pass: the base leaves it
    assert not torch.equal(before["b.weight"], after["b.weight"])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
@pytest.mark.parametrize("norm", [2, math.inf])
def test_a_first_gradient_that_is_not_finite_skips_the_step_and_says_so(bad: float, norm: float):
    model = net()
    optimizer = sam(model, norm=norm)
    train(optimizer, model, 2)
    parameters, memory = [p.detach().clone() for p in model.parameters()], copy.deepcopy(optimizer.base.state_dict())

    def closure() -> Tensor:
        loss = closure_of(model, *batch())()
        model[0].weight.grad[0, 0, 0, 0] = bad
        return loss

    with pytest.warns(UserWarning, match="SAM skipped step 3: the gradient of its first pass is not finite"):
        optimizer.step(closure)
    assert optimizer.skipped == 1 and all(map(torch.equal, parameters, model.parameters()))
    assert str(memory) == str(optimizer.base.state_dict())


def test_an_exception_in_the_second_pass_leaves_the_weights():
    model, calls = net(), []
    optimizer = sam(model, rho=0.5)
    parameters = [p.detach().clone() for p in model.parameters()]

    def closure() -> Tensor:
        calls.append(None)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return closure_of(model, *batch())()

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert all(map(torch.equal, parameters, model.parameters())) and not optimizer.base.state
    train(optimizer, model, 1)


def test_large_gradients_in_half_precision_still_move_the_weights():
    weight = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer, _ = alone(weight, lambda w: w.sum(), rho=0.5, lr=0.1)
    weight.grad = torch.full((4,), 6e4, dtype=torch.float16)
    optimizer.first_step()
    assert weight.detach().float().norm().item() == pytest.approx(0.5, rel=1e-3)


def test_sparse_gradients_move_their_rows():
    model = nn.Embedding(5, 3, sparse=True)
    optimizer = sam(model, rho=0.5, momentum=0.0)
    before = model.weight.detach().clone()
    loss = optimizer.step(lambda: model(torch.tensor([1, 3])).square().sum().backward() or torch.ones(()))
    assert loss == 1.0
    changed = (model.weight != before).any(1)
    assert changed.tolist() == [False, True, False, True, False]


# --- precision, accumulation, clipping


def scaled_step(model: nn.Module, optimizer: SAM, scaler: torch.amp.GradScaler, blow: int | None = None) -> None:
    calls: list[int] = []
    x, y = batch()

    def closure() -> Tensor:
        calls.append(0)
        loss = nn.functional.cross_entropy(model(x), y)
        scaler.scale(loss * (math.inf if len(calls) == blow else 1.0)).backward()
        return loss

    optimizer.step(closure, scaler=scaler)
    scaler.update()


def test_a_scaled_step_is_the_plain_one():
    model, other = net().eval(), net().eval()
    scaled_step(model, sam(model), torch.amp.GradScaler("cpu", init_scale=1024.0))
    sam(other).step(closure_of(other, *batch()))
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-12)


@pytest.mark.parametrize("pass_that_overflows", [1, 2])
def test_an_overflow_in_either_pass_steps_not_and_halves_the_scale_once(pass_that_overflows: int):
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, before = sam(model), state_of(model)
    scaled_step(model, optimizer, scaler, blow=pass_that_overflows)
    assert same(before, state_of(model)) and scaler.get_scale() == 512.0 and not optimizer.base.state


def test_micro_batches_in_the_closure_are_the_whole_batch():
    model, other = net().eval(), net().eval()
    x, y = batch()
    sam(other).step(closure_of(other, x, y))

    def closure() -> Tensor:
        losses = [nn.functional.cross_entropy(model(a), b) / 3 for a, b in zip(x.split(2), y.split(2), strict=True)]
        for loss in losses:
            loss.backward()
        return torch.stack(losses).sum()

    sam(model).step(closure)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-13)


def test_only_the_final_gradient_is_clipped():
    model = net().eval()
    parameters = [p.detach().clone() for p in model.parameters()]
    sam(model, clip=1e-3, momentum=0.0, lr=1.0).step(closure_of(model, *batch()))
    gone = torch.cat([(a - b).flatten() for a, b in zip(parameters, model.parameters(), strict=True)]).norm()
    assert gone.item() == pytest.approx(1e-3, rel=1e-4)


def test_chunks_are_moved_by_their_own_gradients():
    model, other = net().eval(), net().eval()
    x, y = batch()
    sam(model, momentum=0.0).step(lambda part: closure_of(model, x[part], y[part])(), samples=6, chunk=4)
    total = [torch.zeros_like(p) for p in other.parameters()]
    for part, share in ((slice(0, 4), 4 / 6), (slice(4, 6), 2 / 6)):
        twin = copy.deepcopy(other)
        sam(twin, momentum=0.0, lr=1.0).step(closure_of(twin, x[part], y[part]))
        for gradient, old, new in zip(total, other.parameters(), twin.parameters(), strict=True):
            gradient += share * (old - new).detach()
    for mine, old, gradient in zip(model.parameters(), other.parameters(), total, strict=True):
        torch.testing.assert_close(mine, old - 0.1 * gradient, rtol=0, atol=1e-13)


# --- groups, schedules, saving


def test_a_group_that_is_not_moved_does_not_count_in_the_norm():
    still, moved = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = SAM([{"params": [still], "rho": 0.0}, {"params": [moved]}], torch.optim.SGD, rho=0.1, lr=0.1)
    still.grad, moved.grad = torch.full((2,), 1e6), torch.tensor([3.0, 4.0])
    optimizer.first_step()
    assert still.tolist() == [1.0, 1.0] and moved.tolist() == pytest.approx([1.06, 1.08])


@pytest.mark.parametrize(("scope", "lengths"), [("all", [0.06, 0.08]), ("group", [0.1, 0.1])])
def test_a_norm_is_over_all_groups_or_over_each(scope: Any, lengths: list[float]):
    one, other = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = SAM([{"params": [one]}, {"params": [other]}], torch.optim.SGD, rho=0.1, scope=scope, lr=0.1)
    one.grad, other.grad = torch.tensor([3.0]), torch.tensor([4.0])
    optimizer.first_step()
    assert [one.item(), other.item()] == pytest.approx(lengths)


def test_the_radius_follows_a_schedule():
    for schedule, expected in ((lambda t: 0.5**t, [0.1, 0.05, 0.025]), ("lr", [0.1, 0.01, 0.001])):
        weight = nn.Parameter(torch.zeros(1))
        optimizer, _ = alone(weight, lambda w: w.sum(), rho=0.1, lr=0.4, schedule=schedule)
        for radius in expected:
            weight.grad = torch.ones(1)
            at = weight.item()
            optimizer.first_step(zero_grad=False)
            assert weight.item() - at == pytest.approx(radius)
            optimizer.second_step()
            optimizer.param_groups[0]["lr"] *= 0.1


def test_between_intervals_steps_are_plain():
    model, calls = net(), []
    optimizer = sam(model, interval=3)
    model.register_forward_hook(lambda *_: calls.append(None))
    train(optimizer, model, 6)
    assert len(calls) == 2 * 2 + 4


def test_a_scheduler_sees_one_step_per_step():
    model = net()
    optimizer = sam(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        closure_of(model, *batch())()
        optimizer.first_step()
        closure_of(model, *batch())()
        optimizer.second_step()
        scheduler.step()
        train(optimizer, model, 1)
        scheduler.step()
    assert optimizer.base.param_groups[0]["lr"] == 0.025


@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, AdaBound])
def test_it_goes_on_from_its_saved_state_bit_for_bit(base: Any):
    whole, parts = net(), net()
    train(sam(whole, base, interval=2, schedule=lambda t: 1 / (1 + t)), whole, 9)
    optimizer = sam(parts, base, interval=2, schedule=lambda t: 1 / (1 + t))
    train(optimizer, parts, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = sam(parts, base, interval=2, schedule=lambda t: 1 / (1 + t))
    fresh.load_state_dict(torch.load(file, weights_only=True))
    train(fresh, parts, 4, first=5)
    assert same(state_of(whole), state_of(parts))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_alike(copied: Any):
    model = net()
    optimizer = sam(model, torch.optim.Adam, adaptive=True)
    train(optimizer, model, 3)
    twin, other = copied((model, optimizer))
    train(optimizer, model, 3, first=3)
    train(other, twin, 3, first=3)
    assert same(state_of(model), state_of(twin))


def test_a_late_group_is_moved_and_trained():
    model, late = net(), nn.Parameter(torch.ones(2))
    optimizer = sam(model)
    train(optimizer, model, 2)
    optimizer.add_param_group({"params": [late], "rho": 0.3})
    x, y = batch()
    optimizer.step(lambda: (nn.functional.cross_entropy(model(x) * late, y)).backward() or torch.zeros(()))
    assert not torch.equal(late, torch.ones(2)) and optimizer.param_groups[-1]["eta"] == 0.01


# --- growth


def test_growth_between_two_steps_keeps_all_state():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
    y = torch.arange(8) % 2
    optimizer = sam(model, torch.optim.Adam)
    optimizer.step(closure_of(model, x, y))
    before = optimizer.state[model[0].weight]["exp_avg"].clone()
    growkit.widen(model, growkit.find_sites(model, x)[0], 3, optimizer=optimizer)
    after = optimizer.state[model[0].weight]["exp_avg"]
    assert torch.equal(after[:6], before) and not after[6:].any()
    optimizer.step(closure_of(model, x, y))
    assert optimizer.state[model[0].weight]["exp_avg"][6:].any()


def test_growth_between_the_passes_is_refused():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
    optimizer, site = sam(model), growkit.find_sites(model, x)[0]
    closure_of(model, x, torch.arange(8) % 2)()
    optimizer.first_step()
    moved = state_of(model)
    with pytest.raises(UserInputError, match="between its two passes"):
        growkit.widen(model, site, 3, optimizer=optimizer)
    assert same(moved, state_of(model))


def test_weights_of_new_units_are_moved_though_they_are_zero():
    weight = nn.Parameter(torch.tensor([1.0, 0.0]))
    for eta, moves in ((0.01, True), (0.0, False)):
        optimizer, _ = alone(weight, lambda w: w.sum(), adaptive=True, eta=eta, rho=0.5, lr=0.1)
        weight.grad = torch.ones(2)
        optimizer.first_step()
        assert bool(weight[1] != 0.0) is moves
        optimizer.restore()


# --- what is refused


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": -0.1}, "SAM: rho must be a number >= 0, got -0.1"),
        ({"eta": -1.0}, "SAM: eta must be a number >= 0, got -1.0"),
        ({"adaptive": "some"}, "adaptive must be one of False, True, 'all', got 'some'"),
        ({"by": "layer"}, "by must be one of 'element', 'filter', got 'layer'"),
        ({"norm": 1}, "norm must be one of 2.0, inf, got 1.0"),
        ({"scope": "net"}, "scope must be one of 'all', 'group', got 'net'"),
        ({"interval": 0}, "interval must be a whole number >= 1, got 0"),
        ({"clip": 0.0}, "clip must be a number > 0, got 0.0"),
        ({"schedule": "cosine"}, "schedule must be None, 'lr' or a function of the steps, got 'cosine'"),
        ({"base": "sgd"}, "base must be an optimizer of torch's kind, a class or an instance, got 'sgd'"),
    ],
)
def test_a_value_out_of_its_range_is_named(settings: dict[str, Any], message: str):
    model = net()
    with pytest.raises(UserInputError, match=message.replace("(", r"\(")):
        SAM(model.parameters(), **{"base": torch.optim.SGD, "model": model, "lr": 0.1, **settings})


def test_a_base_must_hold_the_parameters():
    model = net()
    with pytest.raises(UserInputError, match="must hold the parameters that SAM is given, got others"):
        SAM(model.parameters(), torch.optim.SGD(net().parameters(), lr=0.1), model=model)
    with pytest.raises(UserInputError, match="settings of a base that is made already are its own"):
        SAM(model.parameters(), torch.optim.SGD(model.parameters(), lr=0.1), model=model, lr=0.2)
    with pytest.raises(UserInputError, match="base must be an optimizer that is not SAM itself, got SAM"):
        SAM(model.parameters(), sam(model), model=model)
    SAM(model.named_parameters(), torch.optim.SGD(model.parameters(), lr=0.1), model=model)


def test_steps_out_of_their_order_are_refused():
    model = net()
    optimizer = sam(model)
    with pytest.raises(UserInputError, match=r"SAM.step needs a closure .* first_step\(\) .* second_step\(\)"):
        optimizer.step()
    with pytest.raises(UserInputError, match=r"SAM.first_step comes after backward\(\)"):
        optimizer.first_step()
    with pytest.raises(UserInputError, match="SAM.second_step comes after first_step"):
        optimizer.second_step()
    with pytest.raises(UserInputError, match=r"the closure must call backward\(\) on the loss"):
        optimizer.step(lambda: model(batch()[0]).sum())
    closure_of(model, *batch())()
    optimizer.first_step(zero_grad=False)
    for act in (optimizer.first_step, optimizer.state_dict, lambda: copy.deepcopy(optimizer)):
        with pytest.raises(UserInputError, match="between its two passes"):
            act()
    optimizer.restore()


@pytest.mark.parametrize("scaled", [False, True])
def test_in_two_calls_too_a_first_gradient_that_is_not_finite_skips_the_step(scaled: bool):
    model = net().eval()
    optimizer, before = sam(model), state_of(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None
    loss_of = closure_of(model, *batch())
    loss_of()
    model[0].weight.grad.fill_(math.inf)
    assert optimizer.first_step() is False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if scaler is None:
            loss_of()
        else:
            scaler.scale(nn.functional.cross_entropy(model(batch()[0]), batch()[1])).backward()
        optimizer.second_step(scaler=scaler)
    assert same(before, state_of(model)) and not optimizer.base.state
    if scaler is not None:
        scaler.update()
        assert scaler.get_scale() == 512.0


@pytest.mark.parametrize("settings", [{"interval": 2}, {"second_order": True}])
def test_two_calls_refuse_what_they_cannot_follow(settings: dict[str, Any]):
    model = net()
    closure_of(model, *batch())()
    with pytest.raises(UserInputError, match=r"interval and second_order need step\(closure\)"):
        sam(model, **settings).first_step()


def test_a_group_that_is_refused_is_not_added():
    model = net()
    optimizer = sam(model)
    with pytest.raises(UserInputError, match="rho must be a number >= 0, got -1"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))], "rho": -1})
    assert len(optimizer.param_groups) == 1


def test_a_state_of_something_else_is_refused():
    model = net()
    with pytest.raises(UserInputError, match=r"a state must come from SAM.state_dict\(\)"):
        sam(model).load_state_dict(torch.optim.SGD(model.parameters(), lr=0.1).state_dict())


def test_without_a_model_one_warning_names_what_is_lost():
    with pytest.warns(UserWarning, match="without model=: statistics of batch norms are then updated by both passes"):
        optimizer = ASAM(net().parameters(), torch.optim.SGD, lr=0.1)
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["adaptive"]) == (0.5, True)
