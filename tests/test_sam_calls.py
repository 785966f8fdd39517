"""SAM called in two steps, with groups that came otherwise, hooks, foreign models, and states of other widths."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.distributed as dist
from sam_cases import batch, closure_of, net, sam, same, state_of, train
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from growkit.errors import UserInputError
from growkit.optim import SAM, AdaBound

# --- two calls


def test_a_first_gradient_that_stayed_is_no_second_one() -> None:
    model = net()
    optimizer, before = sam(model), [one.detach().clone() for one in model.parameters()]
    closure_of(model, *batch())()
    optimizer.first_step(zero_grad=False)
    with pytest.raises(UserInputError, match=r"comes after first_step and a second backward\(\)"):
        optimizer.second_step()
    assert all(map(torch.equal, before, model.parameters())) and optimizer.steps == 0


@pytest.mark.parametrize("forgotten", [None, True, False])
def test_a_second_backward_is_seen_whether_gradients_were_forgotten_or_not(forgotten: bool | None) -> None:
    model = net()
    optimizer, closure = sam(model), closure_of(model, *batch())
    closure()
    optimizer.first_step(zero_grad=False)
    if forgotten is not None:
        optimizer.zero_grad(set_to_none=forgotten)
    closure()
    optimizer.second_step()
    assert optimizer.steps == 1


def test_a_parameter_without_a_second_gradient_is_no_missing_backward() -> None:
    model = nn.ModuleDict({"one": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    optimizer, x = sam(model), torch.ones(1, 2)
    (model["one"](x) + model["other"](x)).sum().backward()
    optimizer.first_step(zero_grad=False)
    model["other"](x).sum().backward()
    optimizer.second_step()
    assert optimizer.steps == 1


@pytest.mark.parametrize("second", ["none", "another"])
def test_both_calls_go_through_one_scaler(second: str) -> None:
    model = nn.Linear(2, 1)
    optimizer, before = sam(model), state_of(model)
    first, other = (torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in range(2))
    first.scale(model(torch.ones(1, 2)).sum()).backward()
    optimizer.first_step(scaler=first)
    first.scale(model(torch.ones(1, 2)).sum()).backward()
    with pytest.raises(UserInputError, match="second_step takes the scaler that first_step was given"):
        optimizer.second_step(scaler=None if second == "none" else other)
    assert same(before, state_of(model))


def test_no_group_is_added_while_the_weights_are_moved() -> None:
    model = net()
    optimizer = sam(model)
    closure_of(model, *batch())()
    optimizer.first_step()
    with pytest.raises(UserInputError, match="SAM cannot be given a group between its two passes"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(2))]})
    assert len(optimizer.base.param_groups) == 1


class Distributed(nn.Linear):
    """As what averages gradients over processes."""

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        yield


def pretend(processes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch say that this is one of so many processes."""
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda group=None: processes)


@pytest.mark.parametrize(("processes", "sync"), [(2, False), (2, True), (1, False)])
def test_two_calls_refuse_gradients_that_shall_be_each_process_s_own(
    processes: int, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(processes, monkeypatch)
    monkeypatch.setattr(dist, "all_reduce", lambda *args, **settings: None)
    model = Distributed(2, 2)
    optimizer, before = sam(model, sync=sync), state_of(model)
    model(torch.ones(1, 2)).sum().backward()
    if processes == 1 or sync:
        assert optimizer.first_step()
        return
    with pytest.raises(UserInputError, match=r"averaged over processes.*call step\(closure\), or take sync=True"):
        optimizer.first_step()
    assert same(before, state_of(model)) and not optimizer.displaced


@pytest.mark.parametrize(("processes", "sync"), [(2, False), (2, True), (1, False)])
def test_a_model_that_cannot_keep_gradients_apart_is_told_of(
    processes: int, sync: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(processes, monkeypatch)
    if processes == 1 or sync:
        sam(net(), sync=sync)
        return
    with pytest.warns(UserWarning, match=r"no_sync\(\) of a model, got Sequential, .* or take sync=True"):
        sam(net())


@pytest.mark.parametrize("then", ["restore", "step"])
def test_a_first_gradient_that_was_lost_counts_for_its_own_step_alone(then: str) -> None:
    model = net()
    optimizer, closure = sam(model), closure_of(model, *batch())
    closure()
    next(model.parameters()).grad.fill_(torch.inf)  # type: ignore[union-attr]
    assert not optimizer.first_step()
    optimizer.restore() if then == "restore" else optimizer.step(closure)
    closure()
    with pytest.raises(UserInputError, match="second_step comes after first_step"):
        optimizer.second_step()


# --- groups, models, hooks


@pytest.mark.parametrize("base", [torch.optim.SGD, AdaBound])
@pytest.mark.parametrize("own", [{}, {"rho": 0.3}])
def test_a_group_that_the_base_was_given_is_completed(base: Any, own: dict[str, Any]) -> None:
    model, late = net(), nn.Parameter(torch.ones(2))
    optimizer = sam(model, base, adaptive=True)
    optimizer.base.add_param_group({"params": [late], **own})
    x, y = batch()
    optimizer.step(lambda: nn.functional.cross_entropy(model(x) * late, y).backward())
    assert not torch.equal(late, torch.ones(2))
    assert {"rho", "adaptive", "eta", "by", "base_lr"} <= {*optimizer.param_groups[-1]}
    assert optimizer.param_groups[-1]["rho"] == own.get("rho", 0.05)


@pytest.mark.parametrize("base", [torch.optim.SGD, AdaBound])
def test_groups_from_a_state_of_the_base_alone_go_on_with_their_settings(base: Any) -> None:
    model = net()
    plain = base(model.parameters(), lr=0.1)
    optimizer = SAM([{"params": model.parameters(), "rho": 0.3}], base, model=model, lr=0.2, schedule="lr")
    plain.param_groups[0]["lr"] = 0.01
    optimizer.base.load_state_dict(plain.state_dict())
    optimizer.step(closure_of(model, *batch()))
    group = optimizer.param_groups[0]
    assert (group["rho"], group["lr"], group["base_lr"]) == (0.3, 0.01, 0.2 if base is torch.optim.SGD else 0.1)


@pytest.mark.parametrize("base", [torch.optim.SGD, AdaBound])
def test_a_group_in_the_place_of_one_that_was_taken_out_has_settings_of_its_own(base: Any) -> None:
    model, late = net(), nn.Parameter(torch.ones(2))
    first, *others = model.parameters()
    optimizer = SAM([{"params": [first]}, {"params": others, "rho": 0.3}], base, model=model, lr=0.1)
    optimizer.step(closure_of(model, *batch()))
    del optimizer.base.param_groups[0]
    optimizer.base.add_param_group({"params": [late]})
    x, y = batch()
    optimizer.step(lambda: nn.functional.cross_entropy(model(x) * late, y).backward())
    assert [group["rho"] for group in optimizer.param_groups] == [0.3, 0.05]


def test_settings_count_for_the_base_of_a_copy_too() -> None:
    other = copy.deepcopy(sam(net(), rho=0.7))
    optimizer = SAM(other.model.parameters(), other.base, rho=0.1, model=other.model)
    assert optimizer.param_groups[0]["rho"] == 0.1


class WithClip(torch.optim.SGD):
    """Has a setting of a name that SAM takes too."""

    def __init__(self, params: Any, lr: float):
        super().__init__(params, lr=lr)
        self.defaults["clip"] = 1.0
        for group in self.param_groups:
            group["clip"] = 1.0


def test_a_base_may_have_a_setting_of_a_name_that_sam_has_for_all_groups() -> None:
    model = net()
    optimizer = SAM(model.parameters(), WithClip(model.parameters(), lr=0.1), model=model)
    optimizer.step(closure_of(model, *batch()))
    assert optimizer.clip is None and optimizer.param_groups[0]["clip"] == 1.0


def test_a_model_with_none_of_the_parameters_is_refused() -> None:
    with pytest.raises(
        UserInputError, match="model must have parameters that the optimizer holds, got Linear with none"
    ):
        SAM(net().parameters(), torch.optim.SGD, model=nn.Linear(1, 1), lr=0.1)


def test_hooks_of_states_are_called_and_may_change_them() -> None:
    model, seen = net(), []
    optimizer = sam(model)
    optimizer.register_state_dict_pre_hook(lambda one: seen.append("save"))
    optimizer.register_state_dict_post_hook(lambda one, state: {**state, "note": "mine"})
    optimizer.register_load_state_dict_pre_hook(lambda one, state: seen.append(state.pop("note")))
    optimizer.register_load_state_dict_post_hook(lambda one: seen.append(one.steps))
    state = optimizer.state_dict()
    state["sam"] = {"steps": 7, "skipped": 0}
    optimizer.load_state_dict(state)
    assert seen == ["save", "mine", 7] and state["note"] == "mine"


@pytest.mark.parametrize("calls", ["one", "two"])
def test_hooks_of_steps_are_called_once_a_step(calls: str) -> None:
    model, seen = net(), []
    optimizer = sam(model)
    optimizer.register_step_pre_hook(lambda one, args, settings: seen.append(("before", one.steps, one.displaced)))
    optimizer.register_step_post_hook(lambda one, args, settings: seen.append(("after", one.steps, one.displaced)))
    closure = closure_of(model, *batch())
    if calls == "one":
        optimizer.step(closure)
    else:
        closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
    assert seen == [("before", 0, False), ("after", 1, False)]


def test_a_hook_that_would_change_the_arguments_of_two_calls_is_refused() -> None:
    model = net()
    optimizer, closure = sam(model), closure_of(model, *batch())
    optimizer.register_step_pre_hook(lambda one, args, settings: (args, settings))
    closure()
    optimizer.first_step()
    closure()
    with pytest.raises(UserInputError, match="a hook of steps in two calls cannot change their arguments"):
        optimizer.second_step()


def test_chunks_take_a_closure_that_returns_nothing() -> None:
    model, (x, y) = net(), batch()
    optimizer, before = sam(model, m=4), state_of(model)
    closure = lambda part: nn.functional.cross_entropy(model(x[part]), y[part]).backward()  # noqa: E731
    assert optimizer.step(closure, samples=6) is None and not same(before, state_of(model))


# --- states


class OneMemory(torch.optim.Optimizer):
    """Keeps one tensor for each parameter, of a shape that `keep` says."""

    def __init__(self, params: Any, keep: str = "all", name: str = "memory"):
        super().__init__(params, {"lr": 0.1})
        self.keep, self.name = keep, name

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one][self.name] = self.made(one.grad)

    def made(self, gradient: Tensor) -> Tensor:
        if self.keep == "all":
            return gradient.clone()
        if self.keep == "square":  # as preconditioners are
            return gradient.reshape(len(gradient), -1) @ gradient.reshape(len(gradient), -1).T
        return gradient.reshape(len(gradient), -1).mean(1, keepdim=gradient.dim() > 1)  # as factored variances are


class SomeEntries(OneMemory):
    """Keeps moments of the entries that a mask chooses."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        for memory in self.state.values():
            memory["mask"] = memory["memory"] > 0.0
            memory["exp_avg"] = memory.pop("memory")[memory["mask"]]


class Bare(torch.optim.Optimizer):
    """Keeps a tensor for each parameter, in no dict."""

    def __init__(self, params: Any):
        super().__init__(params, {"lr": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for one in group["params"]:
                self.state[one] = one.grad.clone()


BASES = {
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.1}),
    "Adagrad": (torch.optim.Adagrad, {"lr": 0.1}),
    "NAdam": (torch.optim.NAdam, {"lr": 0.1}),
    "Adafactor": (torch.optim.Adafactor, {"lr": 0.1}),
    "a user's": (OneMemory, {}),
    "one with squares": (OneMemory, {"keep": "square"}),
    "one with rows": (OneMemory, {"keep": "rows"}),
    "one with some entries": (SomeEntries, {}),
    "one without names": (Bare, {}),
    "one with rows under a known name": (OneMemory, {"keep": "rows", "name": "exp_avg_sq"}),
}


def stepped(model: nn.Module, base: Any, settings: dict[str, Any]) -> SAM:
    optimizer = SAM(model.parameters(), base, model=model, **settings)
    for one in model.parameters():
        one.grad = torch.randn_like(one)
    optimizer.base.step()
    return optimizer


@pytest.mark.parametrize(("base", "settings"), BASES.values(), ids=BASES)
@pytest.mark.parametrize("used", [False, True], ids=["fresh", "used"])
def test_a_state_is_taken_over_at_its_own_widths_alone(base: Any, settings: dict[str, Any], used: bool) -> None:
    saved = stepped(nn.Linear(3, 2), base, settings).state_dict()
    for model, fits in ((nn.Linear(3, 2), True), (nn.Linear(5, 4), False)):
        optimizer = stepped(model, base, settings)
        if not used:
            optimizer.base.state.clear()
        if fits:
            optimizer.load_state_dict(saved)
            assert optimizer.base.state_dict()["state"].keys() == saved["state"].keys()
        else:
            with pytest.raises(UserInputError, match="of parameter . must have its shape"):
                optimizer.load_state_dict(saved)


def test_a_scaler_may_step_a_base_whose_states_are_no_dicts() -> None:
    model, scaler = net().eval(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, (x, y) = SAM(model.parameters(), Bare, model=model), batch()
    for _ in range(2):
        optimizer.step(lambda: scaler.scale(nn.functional.cross_entropy(model(x), y)).backward(), scaler=scaler)
        scaler.update()
    assert len(optimizer.state) == len([*model.parameters()])


class Around(torch.optim.SGD):
    """Has states of a form of its own."""

    def state_dict(self) -> dict[str, Any]:
        return {"inner": super().state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict["inner"])


def test_a_base_judges_a_state_of_its_own_form_itself() -> None:
    settings = {"lr": 0.1, "momentum": 0.9}
    optimizer = stepped(nn.Linear(3, 2), Around, settings)
    optimizer.steps = 5
    other = stepped(nn.Linear(3, 2), Around, settings)
    other.load_state_dict(optimizer.state_dict())
    assert other.steps == 5
    assert all(
        torch.equal(one["momentum_buffer"], two["momentum_buffer"])
        for one, two in zip(optimizer.base.state.values(), other.base.state.values(), strict=True)
    )


def test_distributed_checkpoints_take_the_base() -> None:
    whole, parts = net(), net()
    one = sam(whole, interval=2)
    train(one, whole, 6)
    optimizer = sam(parts, interval=2)
    train(optimizer, parts, 3)
    saved, steps = get_optimizer_state_dict(parts, optimizer.base), optimizer.steps
    fresh = sam(parts, interval=2)
    set_optimizer_state_dict(parts, fresh.base, saved)
    fresh.steps = steps
    train(fresh, parts, 3, first=3)
    assert same(state_of(whole), state_of(parts))


def test_distributed_checkpoints_of_sam_itself_are_refused_with_the_remedy() -> None:
    model = net()
    optimizer = sam(model)
    train(optimizer, model, 1)
    saved = get_optimizer_state_dict(model, optimizer)
    for other, message in (
        (sam(net(1)), r"as torch.distributed.checkpoint does, takes optimizer.base"),
        (optimizer, r"load a base's own, as torch.distributed.checkpoint gives it, into .base"),
    ):
        with pytest.raises(UserInputError, match=message):
            set_optimizer_state_dict(other.model, other, saved)  # type: ignore[arg-type]
