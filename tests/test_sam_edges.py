"""SAM at the edges: scalers used in every way, halves, interrupts, new layers, buffers of all kinds, odd choices."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from sam_cases import alone, batch, closure_of, net, sam, same, state_of, train
from torch import Tensor, nn

import growkit
from growkit.errors import UserInputError
from growkit.optim import AMP, ASAM, SAM, AdaBound, Linear


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- gradient scalers


def scaled(model: nn.Module, scaler: torch.amp.GradScaler, spoil: float | None = None) -> Callable[[], Tensor]:
    """A closure through the scaler, which may spoil one gradient of its first call."""
    calls: list[None] = []

    def closure() -> Tensor:
        loss = nn.functional.cross_entropy(model(batch()[0]), batch()[1])
        scaler.scale(loss).backward()
        if spoil is not None and not calls:
            next(model.parameters()).grad.view(-1)[0] = spoil
        calls.append(None)
        return loss

    return closure


def test_two_calls_take_the_scaler_too():
    model, other = net().eval(), net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, loss_of = sam(model), scaled(model, scaler)
    loss_of()
    optimizer.first_step(scaler=scaler)
    loss_of()
    scaler.unscale_(optimizer.base)
    optimizer.second_step(scaler=scaler)
    sam(other).step(closure_of(other, *batch()))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_a_scaler_that_cannot_work_is_refused():
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, before = sam(model), state_of(model)
    loss_of = scaled(model, scaler)
    loss_of()
    with pytest.raises(UserInputError, match=r"SAM steps through a scaler itself: call step\(closure, scaler=scaler\)"):
        scaler.step(optimizer, loss_of)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaled(model, scaler)()
    scaler.unscale_(optimizer)
    with pytest.raises(UserInputError, match=r"call scaler.unscale_\(optimizer.base\)"):
        optimizer.first_step(scaler=scaler)
    assert same(before, state_of(model))


def test_a_gradient_that_the_scaler_has_unscaled_before_the_move_is_known():
    model, other = net().eval(), net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for kind, settings in ((SAM, {}), (AMP, {"rho": 5.0, "inner_lr": 0.3})):
        optimizer = kind(model.parameters(), torch.optim.SGD, model=model, lr=0.1, **settings)
        twin = kind(other.parameters(), torch.optim.SGD, model=other, lr=0.1, **settings)
        loss_of = scaled(model, scaler)
        for _ in range(2):
            loss_of()
            scaler.unscale_(optimizer.base)
            assert optimizer.first_step(scaler=scaler)
            loss_of()
            optimizer.second_step(scaler=scaler)
            scaler.update()
            twin.step(closure_of(other, *batch()))
        for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("where", ["in the closure", "before the step"])
def test_a_closure_may_unscale_and_what_was_unscaled_before_it_does_not_count(where: str, clip: float | None):
    model, other = net().eval(), net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    settings = {"lr": 0.1, "rho": 5.0, "clip": clip}
    optimizer, loss_of = AMP(model.parameters(), torch.optim.SGD, model=model, **settings), scaled(model, scaler)

    def closure() -> Tensor:
        loss = loss_of()
        if where == "in the closure":
            scaler.unscale_(optimizer.base)
        return loss

    if where == "before the step":
        loss_of()
        scaler.unscale_(optimizer.base)
    optimizer.step(closure, scaler=scaler)
    AMP(other.parameters(), torch.optim.SGD, model=other, **settings).step(closure_of(other, *batch()))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_gradients_that_were_unscaled_before_the_second_step_are_clipped():
    model, other = net().eval(), net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, loss_of = sam(model, clip=1e-3), scaled(model, scaler)
    loss_of()
    optimizer.first_step(scaler=scaler)
    loss_of()
    scaler.unscale_(optimizer.base)
    optimizer.second_step(scaler=scaler)
    sam(other, clip=1e-3).step(closure_of(other, *batch()))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize("spoil", [None, math.inf])
def test_a_scaler_may_be_updated_between_the_passes_too(spoil: float | None):
    model, other = net().eval(), net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    optimizer, before, loss_of = sam(model), state_of(model), scaled(model, scaler, spoil)
    loss_of()
    scaler.unscale_(optimizer.base)
    optimizer.first_step(scaler=scaler)
    scaler.update()
    assert scaler.get_scale() == (2048.0 if spoil is None else 512.0)
    loss_of()
    optimizer.second_step(scaler=scaler)
    scaler.update()
    sam(other).step(closure_of(other, *batch()))
    for name, one in model.state_dict().items():
        wanted = before if spoil else other.state_dict()
        torch.testing.assert_close(one, wanted[name], rtol=0, atol=1e-12)


def test_a_closure_over_chunks_may_not_unscale():
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, before, loss_of = sam(model, m=3), state_of(model), scaled(model, scaler)
    with pytest.raises(UserInputError, match=r"with m adds up scaled gradients: call no unscale_\(\) in the closure"):
        optimizer.step(lambda part: (loss_of(), scaler.unscale_(optimizer.base)), scaler=scaler, samples=6)
    assert same(before, state_of(model))


def test_an_overflow_of_an_unscaled_first_gradient_skips_the_step():
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, before, loss_of = sam(model), state_of(model), scaled(model, scaler, spoil=math.inf)
    loss_of()
    scaler.unscale_(optimizer.base)
    assert not optimizer.first_step(scaler=scaler)
    loss_of()
    optimizer.second_step(scaler=scaler)
    scaler.update()
    assert same(before, state_of(model)) and scaler.get_scale() == 512.0


@pytest.mark.parametrize("mistake", ["step", "step between", "unscale_"])
def test_a_step_is_right_after_a_mistake_with_the_scaler(mistake: str):
    model, other = net().eval(), net().eval()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, loss_of = sam(model), scaled(model, scaler)
    loss_of()
    if mistake == "step between":
        optimizer.first_step(scaler=scaler)
        loss_of()
    with pytest.raises(
        UserInputError, match=r"SAM steps through a scaler itself|call scaler.unscale_\(optimizer.base\)"
    ):
        if mistake == "unscale_":
            scaler.unscale_(optimizer)
            optimizer.first_step(scaler=scaler)
        else:
            scaler.step(optimizer)
    optimizer.restore()
    optimizer.step(loss_of, scaler=scaler)
    sam(other).step(closure_of(other, *batch()))
    for mine, theirs in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-12)


def test_a_scaler_must_be_one():
    model = net()
    with pytest.raises(UserInputError, match=r"SAM's scaler must be a torch.amp.GradScaler or None, got 1"):
        sam(model).step(closure_of(model, *batch()), scaler=1)  # type: ignore[arg-type]


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("spoil", [math.nan, math.inf])
def test_a_bad_first_gradient_skips_the_step_through_any_scaler(enabled: bool, spoil: float):
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=enabled)
    optimizer, before = sam(model), state_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(scaled(model, scaler, spoil), scaler=scaler)
    scaler.update()
    assert same(before, state_of(model)) and scaler.get_scale() == (512.0 if enabled else 1.0)


def test_adversarial_perturbation_knows_the_scale():
    weight, holder = nn.Parameter(torch.zeros(2)), nn.Module()
    holder.weight = weight
    optimizer = AMP([weight], torch.optim.SGD, model=holder, rho=10.0, inner_lr=0.1, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scaler.scale((weight * torch.tensor([3.0, 4.0])).sum()).backward()
    optimizer.first_step(scaler=scaler)
    assert weight.tolist() == pytest.approx([0.3, 0.4])


# --- numbers that are large or small


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_the_norm_of_finite_gradients_is_finite(size: float):
    weight = nn.Parameter(torch.zeros(2, dtype=torch.float32))
    optimizer, _ = alone(weight, lambda w: w.sum(), rho=0.5, lr=0.1)
    weight.grad = torch.tensor([3.0, 4.0], dtype=torch.float32) * size
    assert optimizer.first_step() and weight.tolist() == pytest.approx([0.3, 0.4])


@pytest.mark.parametrize(
    ("start", "gradient", "adaptive"), [(200.0, 2.0, True), (10.0, 6e4, True), (10.0, 1e-7, False), (0.5, 6e4, False)]
)
@pytest.mark.parametrize("by", ["element", "filter"])
def test_halves_move_as_doubles_do(start: float, gradient: float, adaptive: bool, by: Any):
    moved = []
    for dtype in (torch.float16, torch.float64):
        layer = nn.Conv2d(1, 3, 2, bias=False).to(dtype)
        nn.init.constant_(layer.weight, start)
        optimizer = sam(layer, adaptive=adaptive, by=by, rho=0.5)
        layer.weight.grad = torch.full_like(layer.weight, gradient).half().to(dtype)
        assert optimizer.first_step()
        moved.append(layer.weight.detach().double())
    torch.testing.assert_close(*moved, rtol=1e-3, atol=0)


def test_halves_are_clipped_by_a_norm_that_is_no_half():
    layer = nn.Linear(4, 1, bias=False).half()
    optimizer = sam(layer, clip=1.0, rho=0.0, lr=1.0, momentum=0.0)
    before = layer.weight.detach().clone()
    optimizer.step(lambda: (layer.weight * 6e4).sum().backward() or torch.zeros(()))
    torch.testing.assert_close(before - layer.weight, torch.full((1, 4), 0.5).half(), rtol=0, atol=1e-3)


# --- whatever happens, in whatever order


@pytest.mark.parametrize("two_calls", [False, True])
def test_an_interrupt_while_weights_are_moved_leaves_them(two_calls: bool, monkeypatch: pytest.MonkeyPatch):
    model = net()
    optimizer = sam(model, rho=0.5)
    parameters = [p.detach().clone() for p in model.parameters()]
    move = torch._foreach_add_

    def interrupted(*args: Any, **settings: Any) -> None:
        move(*args, **settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "_foreach_add_", interrupted)
    closure_of(model, *batch())()
    with pytest.raises(KeyboardInterrupt):
        optimizer.first_step() if two_calls else optimizer.step(closure_of(model, *batch()))
    assert all(map(torch.equal, parameters, model.parameters())) and not optimizer.displaced


def test_a_second_step_without_a_second_backward_is_refused_and_restores():
    model = net()
    optimizer = sam(model)
    parameters = [p.detach().clone() for p in model.parameters()]
    closure_of(model, *batch())()
    optimizer.first_step()
    with pytest.raises(UserInputError, match=r"SAM.second_step comes after first_step and a second backward\(\)"):
        optimizer.second_step()
    assert all(map(torch.equal, parameters, model.parameters())) and optimizer.steps == 0


def test_two_calls_under_one_autocast_see_the_moved_weights():
    torch.set_default_dtype(torch.float32)
    model, x, outputs = nn.Linear(8, 8), torch.randn(4, 8), []
    optimizer = sam(model, rho=2.0)
    with torch.autocast("cpu", torch.bfloat16):
        for step in (optimizer.first_step, optimizer.second_step):
            outputs.append(model(x))
            outputs[-1].float().square().sum().backward()
            step()
    assert not torch.equal(*outputs)


@pytest.mark.parametrize("calls", ["one", "two", "one, second order", "one, which fails", "one, plain"])
def test_a_forward_behind_a_step_under_one_autocast_sees_the_present_weights(calls: str):
    torch.set_default_dtype(torch.float32)
    model, x, passes = nn.Linear(8, 8), torch.randn(4, 8), []
    optimizer = sam(model, rho=2.0, lr=0.1, second_order="second" in calls, interval=2 if "plain" in calls else 1)

    def closure() -> Tensor:
        loss = model(x).float().square().sum()
        if not optimizer.second_order:
            loss.backward()
        passes.append(None)
        if "fails" in calls and len(passes) == 2:
            raise KeyboardInterrupt
        return loss

    with torch.autocast("cpu", torch.bfloat16):
        try:
            for _ in range(2):
                if calls == "two":
                    closure()
                    optimizer.first_step()
                    closure()
                    optimizer.second_step()
                else:
                    optimizer.step(closure)
        except KeyboardInterrupt:
            pass
        inside = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(inside, model(x))


def test_what_is_frozen_is_not_moved_by_an_old_gradient():
    model = net()
    optimizer = sam(model, rho=0.5)
    closure_of(model, *batch())()
    model[5].weight.requires_grad_(False)
    before = model[5].weight.detach().clone()
    optimizer.first_step()
    assert torch.equal(before, model[5].weight)


# --- what second order needs


def test_second_order_is_exact_with_batch_norm():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), torch.randn(6, 3)
    optimizer = sam(model, second_order=True, rho=0.3, lr=1.0, momentum=0.0)
    weight, before = model[0].weight, state_of(model)

    def moved_loss(change: float) -> float:
        model.load_state_dict(before)
        weight.data[1, 2] += change
        plain = sam(model, rho=0.3)
        model(x).square().mean().backward()
        plain.first_step()
        loss = model(x).square().mean().item()
        plain.restore()
        return loss

    numeric = (moved_loss(1e-5) - moved_loss(-1e-5)) / 2e-5
    model.load_state_dict(before)
    optimizer.step(lambda: model(x).square().mean())
    assert (before["0.weight"] - weight)[1, 2].item() == pytest.approx(numeric, abs=1e-8)
    assert model[1].num_batches_tracked == 1


def test_second_order_refuses_a_closure_with_a_backward():
    model = net().eval()
    optimizer, before = sam(model, second_order=True), state_of(model)
    with pytest.raises(UserInputError, match=r"a closure that returns the loss, without backward\(\)"):
        optimizer.step(closure_of(model, *batch()))
    assert same(before, state_of(model))


def test_second_order_refuses_sparse_gradients():
    model = nn.Embedding(5, 3, sparse=True)
    with pytest.raises(UserInputError, match="second_order needs dense gradients, got a sparse one"):
        sam(model, momentum=0.0, second_order=True).step(lambda: model(torch.tensor([1, 3])).square().sum())


# --- buffers, new layers, late momenta


class OddBuffers(nn.Module):
    """An expanded constant, one made in inference mode, and itself as a child of its child."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("wide", torch.ones(1).expand(4))
        with torch.inference_mode():
            constant = torch.ones(2)
        self.register_buffer("constant", constant)
        self.layer.parent = self

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) * self.wide[0]


def test_buffers_that_no_forward_could_write_to_are_left_alone():
    model = OddBuffers()
    before = model.layer.weight.detach().clone()
    sam(model).step(lambda: model(torch.randn(4, 3)).square().sum().backward() or torch.zeros(()))
    assert not torch.equal(before, model.layer.weight)


FORMS = {
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
    "csc": torch.Tensor.to_sparse_csc,
    "bsr": lambda one: one.to_sparse_bsr((2, 2)),
}


class Neighbours(nn.Module):
    """Means over neighbours in a graph, whose edges it counts."""

    def __init__(self, form: Any) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("edges", form(torch.eye(4)))

    def forward(self, x: Tensor) -> Tensor:
        self.edges.mul_(2.0)
        return self.edges.to_dense() @ self.layer(x)


@pytest.mark.filterwarnings("ignore:Sparse .* support is in beta state")
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("second_order", [False, True])
def test_sparse_buffers_are_those_of_the_first_pass_too(form: Any, second_order: bool):
    model, x = Neighbours(form), torch.randn(4, 3)

    def closure() -> Tensor:
        loss = model(x).square().sum()
        if not second_order:
            loss.backward()
        return loss

    sam(model, second_order=second_order).step(closure)
    assert torch.equal(model.edges.to_dense(), 2.0 * torch.eye(4))


ODD = {
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
    "jagged": lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged),
}


class Counting(nn.Module):
    """Writes to a buffer of an odd kind at every pass."""

    def __init__(self, buffer: Tensor) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("seen", buffer)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.mul_(2.0)
        return self.layer(x)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
@pytest.mark.parametrize("made", ODD.values(), ids=ODD)
def test_buffers_that_lists_cannot_hold_are_those_of_the_first_pass_too(made: Any):
    model, x = Counting(made()), torch.randn(4, 3)
    sam(model).step(lambda: model(x).square().sum().backward())
    parts = model.seen.unbind() if model.seen.is_nested else [model.seen.resolve_conj()]
    assert all(torch.equal(one, torch.full_like(one, 2.0)) for one in parts)


def test_layers_that_are_inserted_train_and_are_normalised():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    optimizer = ASAM(model.parameters(), torch.optim.SGD, model=model, lr=0.1, momentum=0.9)
    optimizer.step(closure_of(model, x, y))
    known = {id(parameter) for parameter in model.parameters()}
    growkit.deepen(model, growkit.find_places(model, x)[0], optimizer=optimizer)
    new = {name: one for name, one in model.named_parameters() if id(one) not in known}
    before = {name: one.detach().clone() for name, one in new.items()}
    optimizer.step(closure_of(model, x, y))
    assert new and all(not torch.equal(before[name], one) for name, one in new.items())
    assert all((one in optimizer.neighbourhood._weights) == ("weight" in name) for name, one in new.items())


def test_a_parameter_that_is_unfrozen_late_joins_fused_momentum():
    model = net()
    model[5].weight.requires_grad_(False)
    optimizer = sam(model)
    train(optimizer, model, 2)
    model[5].weight.requires_grad_(True)
    before = model[5].weight.detach().clone()
    train(optimizer, model, 1)
    assert not torch.equal(before, model[5].weight)


# --- choices


def test_filters_of_transposed_convolutions_are_their_outputs():
    layer = nn.ConvTranspose2d(2, 3, 2, bias=False)
    with torch.no_grad():
        layer.weight[:, 1] = 0.0
    optimizer, before = sam(layer, adaptive=True, by="filter", eta=0.0, rho=0.5), layer.weight.detach().clone()
    layer.weight.grad = torch.ones_like(layer.weight)
    optimizer.first_step()
    assert ((layer.weight != before).any(3).any(2).any(0)).tolist() == [True, False, True]


def test_a_base_that_was_wrapped_before_takes_the_new_settings():
    model = net()
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    SAM(model.parameters(), base, rho=0.05, model=model)
    group = ASAM(model.parameters(), base, rho=0.5, model=model).param_groups[0]
    assert (group["rho"], group["adaptive"]) == (0.5, True)


class Unnamed(nn.Module):
    """A matrix that is not called a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(3, 3))


def spoilt(**parts: Any) -> Callable[[], None]:
    return lambda: sam(net()).load_state_dict({**sam(net()).state_dict(), **parts})


def bound(**settings: Any) -> Callable[[], SAM]:
    def make() -> SAM:
        model = net()
        return SAM(model.parameters(), **{"base": torch.optim.SGD, "model": model, "lr": 0.1, **settings})

    return make


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: sam(Unnamed(), adaptive=True), "with 'weight' in their name, got none among 1; use adaptive='all'"),
        (bound(model=net(3)), "model must have parameters that the optimizer holds, got Sequential with none of them"),
        (bound(second_order="no"), "second_order must be one of False, True, got 'no'"),
        (bound(model=5), "model must be the module that is trained, got 5"),
        (bound(base=torch.optim.LBFGS), "base must step from gradients alone, got LBFGS"),
        (lambda: SAM(torch.ones(2), model=net()), "params must be a list of parameters or of groups, got one tensor"),
        (lambda: sam(net()).add_param_group({"params": [], "norm": 2}), "norm must be the same for all groups"),
        (lambda: sam(nn.Sequential(nn.LazyLinear(3))), "got some of lazy layers; run the model on one batch first"),
        (lambda: sam(net()).load_state_dict([1]), "SAM: a state must be a dict that state_dict\\(\\) gave, got list"),
        (spoilt(param_groups=3), "SAM: a state must have groups that are dicts with params, .* got 3 and {"),
        (
            spoilt(param_groups=[{"lr": 0.1}]),
            "must have groups that are dicts with params, .* got .{'lr': 0.1}",
        ),
        (spoilt(state=[1]), "a state must have groups .*, and a dict of what was kept, .* and .1."),
        (spoilt(sam={"steps": "3", "skipped": 0}), "a state must have its counts, .* got {'steps': '3'"),
        (lambda: Linear(0), "Linear: total must be a whole number >= 1, got 0"),
    ],
)
def test_a_choice_that_means_nothing_is_refused(make: Callable[[], Any], message: str):
    with pytest.raises(UserInputError, match=message):
        make()


def test_a_schedule_that_gives_no_factor_is_refused_and_nothing_moves():
    model = net()
    optimizer, parameters = sam(model, schedule=lambda step: math.nan), [p.detach().clone() for p in model.parameters()]
    with pytest.raises(UserInputError, match="the schedule's factor must be a number >= 0, got nan"):
        optimizer.step(closure_of(model, *batch()))
    assert all(map(torch.equal, parameters, model.parameters()))


@pytest.mark.parametrize("other", [torch.optim.Adam, AdaBound])
def test_a_state_over_another_base_is_refused(other: Any):
    model = net()
    optimizer = sam(model)
    with pytest.raises(UserInputError, match="a state must have the settings of the optimizer, got none of"):
        optimizer.load_state_dict(sam(model, other).state_dict())
