"""SAM from step to step: groups, schedules, saving, growth, and what is refused."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from naive_optimizers import NaiveSAM, naive_sam, not_naive
from sam_cases import alone, batch, closure_of, net, sam, same, state_of, train
from torch import Tensor, nn

import growkit
from growkit.errors import UserInputError
from growkit.optim import ASAM, SAM, AdaBound


@pytest.fixture(autouse=True)
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


# --- groups, schedules, saving


@not_naive(SAM, NaiveSAM)
def test_a_group_that_is_not_moved_does_not_count_in_the_norm(make: Any):
    still, moved = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer = make([{"params": [still], "rho": 0.0}, {"params": [moved]}], torch.optim.SGD, rho=0.1, lr=0.1)
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


@not_naive(SAM, NaiveSAM)
def test_the_radius_follows_a_schedule(make: Any):
    for schedule, expected in ((lambda t: 0.5**t, [0.1, 0.05, 0.025]), ("lr", [0.1, 0.01, 0.001])):
        weight = nn.Parameter(torch.zeros(1))
        optimizer, _ = alone(weight, lambda w: w.sum(), make, rho=0.1, lr=0.4, schedule=schedule)
        for radius in expected:
            weight.grad = torch.ones(1)
            at = weight.item()
            optimizer.first_step()
            assert weight.item() - at == pytest.approx(radius)
            weight.grad = torch.ones(1)
            optimizer.second_step()
            optimizer.param_groups[0]["lr"] *= 0.1


def test_between_intervals_steps_are_plain():
    model, twin = net(), net()
    optimizer, plain = sam(model, interval=3), torch.optim.SGD(twin.parameters(), lr=0.1, momentum=0.9)
    train(optimizer, model, 1)
    twin.load_state_dict(model.state_dict())
    plain.load_state_dict({**plain.state_dict(), "state": copy.deepcopy(optimizer.base.state_dict())["state"]})
    for t, alike in ((1, True), (2, True), (3, False)):
        train(optimizer, model, 1, first=t)
        torch.manual_seed(t)
        plain.zero_grad()
        plain.step(closure_of(twin, *batch(t)))
        assert all(map(torch.allclose, model.parameters(), twin.parameters())) == alike


@not_naive(sam, naive_sam, AssertionError, UserWarning)
def test_a_scheduler_sees_one_step_per_step(make: Any):
    model = net()
    optimizer = make(model)
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


@not_naive(sam, naive_sam)
@pytest.mark.parametrize("base", [torch.optim.SGD, torch.optim.Adam, AdaBound])
def test_it_goes_on_from_its_saved_state_bit_for_bit(make: Any, base: Any):
    form: Any = {"interval": 2, "schedule": lambda t: 1 / (1 + t)}
    whole, parts = net(), net()
    train(make(whole, base, **form), whole, 9)
    optimizer = make(parts, base, **form)
    train(optimizer, parts, 5)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh = make(parts, base, **form)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    train(fresh, parts, 4, first=5)
    assert same(state_of(whole), state_of(parts))


@not_naive(sam, naive_sam)
def test_nothing_but_the_state_of_the_base_is_kept_from_step_to_step(make: Any):
    model = net()
    optimizer = make(model)
    train(optimizer, model, 2)
    assert all(memory.keys() == {"momentum_buffer"} for memory in optimizer.state_dict()["state"].values())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_copies_go_on_alike(copied: Any):
    model = net()
    optimizer = sam(model, torch.optim.Adam, adaptive=True)
    train(optimizer, model, 3)
    twin, other = copied((model, optimizer))
    train(optimizer, model, 3, first=3)
    train(other, twin, 3, first=3)
    assert same(state_of(model), state_of(twin))


@not_naive(sam, naive_sam)
def test_a_late_group_is_moved_and_trained(make: Any):
    model, late = net(), nn.Parameter(torch.ones(2))
    optimizer = make(model)
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


NAMED = {"SAM": lambda one: one, "its base": lambda one: one.base, "none": lambda one: None}
BETWEEN = "weights cannot be grown between the two passes of SAM"


@not_naive(sam, naive_sam, AssertionError, pytest.fail.Exception)
@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("edit", ["widen", "deepen", "undo"])
def test_growth_between_the_passes_is_refused_whichever_optimizer_is_named(make: Any, named: Any, edit: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    x, y = torch.randn(8, 4), torch.arange(8) % 2
    optimizer, done = make(model), growkit.widen(model, growkit.find_sites(model, x)[0], 2)
    site, place = growkit.find_sites(model, x)[0], growkit.find_places(model, x)[0]
    before = state_of(model)
    closure_of(model, x, y)()
    optimizer.first_step()
    moved = state_of(model)
    edits = {
        "widen": lambda: growkit.widen(model, site, 3, optimizer=named(optimizer)),
        "deepen": lambda: growkit.deepen(model, place, optimizer=named(optimizer)),
        "undo": done.undo,
    }
    with pytest.raises(UserInputError, match=BETWEEN):
        edits[edit]()
    assert same(moved, state_of(model))
    optimizer.restore()
    assert same(before, state_of(model))


def test_a_copy_of_a_model_grows_while_the_weights_are_moved():
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
    optimizer = sam(model)
    closure_of(model, x, torch.arange(8) % 2)()
    optimizer.first_step()
    twin = copy.deepcopy(model)
    growkit.widen(twin, growkit.find_sites(twin, x)[0], 3)
    assert twin[0].out_features == 9


@pytest.mark.parametrize("units", [1, 5])
def test_weights_that_others_resize_between_the_passes_are_named_and_the_rest_is_put_back(units: int):
    model, x = nn.Sequential(nn.Linear(4, units), nn.Tanh(), nn.Linear(units, 2)), torch.randn(8, 4)
    optimizer, before = sam(model, rho=0.5), state_of(model)
    closure_of(model, x, torch.arange(8) % 2)()
    optimizer.first_step()
    model[0].weight.data = torch.cat([model[0].weight.data, torch.zeros(3, 4)])
    model[0].weight.grad = None
    with pytest.raises(UserInputError, match=r"cannot put back weights that were resized .* 1 of them, now \(., 4\)"):
        optimizer.restore()
    assert not optimizer.displaced
    assert all(torch.equal(before[name], one) for name, one in model.named_parameters() if name != "0.weight")


@pytest.mark.parametrize("also", ["nothing", "a buffer"])
def test_buffers_are_put_back_though_a_weight_was_resized(also: str):
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 2))
    optimizer, closure = sam(model), closure_of(model, torch.randn(8, 4), torch.arange(8) % 2)
    closure()
    optimizer.first_step()
    buffers = {name: one.clone() for name, one in model.named_buffers()}
    closure()
    model[2].weight.data, model[2].weight.grad = torch.zeros(3, 5), None
    if also == "a buffer":
        model[1].running_var.data = buffers["1.running_var"] = torch.ones(8)
    with pytest.raises(UserInputError, match="cannot put back weights that were resized"):
        optimizer.restore()
    assert same(buffers, dict(model.named_buffers()))


@pytest.mark.parametrize("inside", ["growth", "a copy"])
def test_what_is_refused_between_the_passes_is_so_with_second_order_too(inside: str):
    model, x = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(8, 4)
    optimizer, site, before = sam(model, second_order=True), growkit.find_sites(model, x)[0], state_of(model)
    passes = []

    def closure() -> Tensor:
        passes.append(1)
        if len(passes) == 2:
            growkit.widen(model, site, 3) if inside == "growth" else optimizer.state_dict()
        return model(x).square().mean()

    with pytest.raises(UserInputError, match="between (the|its) two passes"):
        optimizer.step(closure)
    assert same(before, state_of(model)) and not optimizer.displaced


@not_naive(SAM, NaiveSAM)
def test_weights_of_new_units_are_moved_though_they_are_zero(make: Any):
    weight = nn.Parameter(torch.tensor([1.0, 0.0]))
    for eta, moves in ((0.01, True), (0.0, False)):
        optimizer, _ = alone(weight, lambda w: w.sum(), make, adaptive=True, eta=eta, rho=0.5, lr=0.1)
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
        ({"norm": 1}, "norm must be 2 or float('inf'\\), got 1"),
        ({"scope": "net"}, "scope must be one of 'all', 'group', got 'net'"),
        ({"interval": 0}, "interval must be a whole number >= 1, got 0"),
        ({"m": 2.0}, "m must be a whole number >= 1, got 2.0"),
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


@not_naive(sam, naive_sam, pytest.fail.Exception)
def test_a_state_is_not_saved_while_the_weights_are_moved(make: Any):
    model = net()
    optimizer = make(model)
    closure_of(model, *batch())()
    optimizer.first_step()
    with pytest.raises(UserInputError, match="SAM cannot be saved between its two passes"):
        optimizer.state_dict()


@not_naive(sam, naive_sam, pytest.fail.Exception)
def test_a_closure_without_backward_is_no_plain_step(make: Any):
    model = net()
    with pytest.raises(UserInputError, match=r"the closure must call backward\(\) on the loss"):
        make(model).step(lambda: model(batch()[0]).sum())


def test_steps_out_of_their_order_are_refused():
    model = net()
    optimizer = sam(model)
    with pytest.raises(UserInputError, match=r"SAM.step needs a closure .* first_step\(\) .* second_step\(\)"):
        optimizer.step()
    with pytest.raises(UserInputError, match=r"SAM.first_step comes after backward\(\)"):
        optimizer.first_step()
    with pytest.raises(UserInputError, match="SAM.second_step comes after first_step"):
        optimizer.second_step()
    closure_of(model, *batch())()
    optimizer.first_step(zero_grad=False)
    for act in (optimizer.first_step, lambda: copy.deepcopy(optimizer)):
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
    assert optimizer.first_step(scaler=scaler) is False
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


@pytest.mark.parametrize("settings", [{"interval": 2}, {"m": 2}, {"second_order": True}])
def test_two_calls_refuse_what_they_cannot_follow(settings: dict[str, Any]):
    model = net()
    closure_of(model, *batch())()
    with pytest.raises(UserInputError, match=r"interval, m and second_order need step\(closure\)"):
        sam(model, **settings).first_step()


@pytest.mark.parametrize(("m", "samples"), [(None, 6), (3, None)])
def test_samples_are_given_where_there_is_m(m: int | None, samples: int | None):
    with pytest.raises(UserInputError, match=f"takes samples where SAM has m, got samples={samples} with m={m}"):
        sam(net(), m=m).step(lambda part: part, samples=samples)


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


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)),
            r"must have the groups of the optimizer, \[2\] .* \[4\]",
        ),
        (lambda: nn.Linear(3, 2), r"momentum_buffer of parameter 0 must have its shape \(2, 4\), got \(2, 3\)"),
    ],
)
def test_a_state_of_other_weights_is_refused_before_any_is_taken_over(other: Any, message: str):
    model, larger = nn.Linear(4, 2), other()
    optimizer, foreign = sam(model), sam(larger)
    for parameter in larger.parameters():
        parameter.grad = torch.ones_like(parameter)
    foreign.base.step()
    with pytest.raises(UserInputError, match=message):
        optimizer.load_state_dict(foreign.state_dict())
    assert not optimizer.base.state and optimizer.steps == 0


def test_parameters_without_numbers_are_refused():
    model = nn.Linear(2, 2, device="meta")
    with pytest.raises(UserInputError, match="parameters must hold numbers, got some on the meta device"):
        sam(model)


# --- which parameters are moved


NORMED = {"norms": ["1.weight", "1.bias"], ("5.*",): ["5.weight", "5.bias"], "all": None}


@pytest.mark.parametrize(("moved", "names"), NORMED.items())
def test_only_the_chosen_parameters_are_moved_and_measured(moved: Any, names: list[str] | None):
    model = net()
    optimizer, before = sam(model, moved=moved, rho=0.3), state_of(model)
    closure_of(model, *batch())()
    optimizer.first_step()
    changes = {name: (value - before[name]).norm() for name, value in model.named_parameters()}
    assert [name for name, change in changes.items() if change] == (names or list(changes))
    assert torch.stack([*changes.values()]).norm().item() == pytest.approx(0.3)
    optimizer.restore()
    train(optimizer, model, 1)
    assert all(not torch.equal(before[name], value) for name, value in model.named_parameters())


@pytest.mark.parametrize(
    ("moved", "message"),
    [
        ("norm", r"moved must be 'all', 'norms' or patterns of names, got 'norm'"),
        (["1.*", "2.*"], r"moved must choose parameters .*, got '2.\*', which fits none of 0.weight, 1.weight"),
        (5, "moved must be 'all', 'norms' or patterns of names, got 5"),
    ],
)
def test_a_choice_of_nothing_is_refused(moved: Any, message: str):
    with pytest.raises(UserInputError, match=message):
        sam(net(), moved=moved)


def test_a_choice_needs_the_model():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(UserInputError, match="moved='norms' chooses parameters of a model, so it needs model="):
            SAM(net().parameters(), torch.optim.SGD, moved="norms", lr=0.1)


def test_without_a_model_one_warning_names_what_is_lost():
    with pytest.warns(UserWarning, match="without model=: statistics of batch norms are then updated by both passes"):
        optimizer = ASAM(net().parameters(), torch.optim.SGD, lr=0.1)
    assert (optimizer.param_groups[0]["rho"], optimizer.param_groups[0]["adaptive"]) == (0.5, True)
