"""An event that is interrupted or fails changes nothing."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from controller_cases import Careless, Chain, Run, start, traced
from torch import Tensor

from growkit.growth import controller as controller_module
from growkit.growth import operation as operation_module
from growkit.surgery import replay, transaction, undo


def everything(run: Run) -> dict[str, Any]:
    return {
        "values": {name: tensor.clone() for name, tensor in run.model.state_dict().items()},
        "modules": {n: {k: v for k, v in vars(m).items() if type(v) is int} for n, m in run.model.named_modules()},
        "state": [copy.deepcopy(run.optimizer.state[p]) for p in run.model.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in run.model.parameters()],
        "widths": {site.name: site.width for site in run.controller.sites},
        "edits": list(run.controller.edits),
        "tracked": list(run.controller.tracked),
        "refusals": list(run.controller.refusals),
        "history": copy.deepcopy(run.history.growths),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, Tensor) else a == b


def interrupt_at(monkeypatch: pytest.MonkeyPatch, module: Any, target: str, call: int) -> None:
    original, calls = getattr(module, target), [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(module, target, interrupted)


@pytest.mark.parametrize("wrong", [(), ("2",)], ids=["at once", "one by one"])
@pytest.mark.parametrize(
    ("module", "target", "call"),
    [
        *((operation_module, "observe", call) for call in (1, 2)),
        (controller_module, "look_at", 2),  # after the surgery
        *((undo, "replace_data", call) for call in (1, 4, 9)),
        (controller_module, "new_entries", 1),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)).rpartition(".")[2],
)
def test_an_interrupted_event_changes_nothing(
    wrong: tuple[str, ...], module: Any, target: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start(Chain).prepare()
    run.train()
    run.grow(1)  # so that there are edits to keep
    run.controller.initializer = Careless(wrong)
    run.train()
    before = everything(run)
    with monkeypatch.context() as patch:
        interrupt_at(patch, module, target, call)
        with pytest.raises(KeyboardInterrupt):
            run.grow(2)
    assert same(everything(run), before)
    run.grow(2)
    run.train()
    seed = copy.deepcopy(traced(Chain)[0])
    replay(seed, run.controller.edits)
    seed.load_state_dict(run.model.state_dict())


class Interrupting:
    """A trace function that raises KeyboardInterrupt at the n-th line of the controller or the transaction."""

    def __init__(self, line: int):
        self.left = line
        self.files = {controller_module.__file__, operation_module.__file__, transaction.__file__, undo.__file__}

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        # no code can protect the exit of a `with` itself, and there are two of torch's in the look
        if frame.f_code.co_filename not in self.files or frame.f_code.co_name == "look_at":
            return None
        if event == "line":
            self.left -= 1
            if self.left == 0:
                raise KeyboardInterrupt
        return self


def test_an_interrupt_at_any_line_leaves_an_event_done_or_undone() -> None:
    """Every 97th line of the controller and the transaction, of an event that gives up a site."""
    line, interrupted = 1, True
    while interrupted:
        run = start(Chain)
        run.controller.initializer = Careless(("2",))
        run.train()
        before, tracing = everything(run), sys.gettrace()
        sys.settrace(Interrupting(line))
        try:
            run.grow()
            interrupted = False
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(tracing)
        done = bool(run.history.growths)
        assert done == bool(run.controller.edits)
        assert done or same(everything(run), before), line
        if done:
            assert run.history.growths[0].widths == {"0": (4, 6), "4": (4, 6)}
            replay(seed := copy.deepcopy(traced(Chain)[0]), run.controller.edits)
            seed.load_state_dict(run.model.state_dict())
        line += STRIDE
    assert line > 10 * STRIDE


STRIDE = 97


def test_a_failure_after_the_edit_takes_it_back() -> None:
    """The loss sees the wider model only after it was verified."""
    run = start(Chain).prepare()
    before, calls = everything(run), []

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        calls.append(1)
        if run.model[0].weight.shape[0] > 4:
            raise RuntimeError("no loss")
        return F.cross_entropy(outputs, targets)

    run.controller.loss = loss
    run.controller.initializer = Careless(())
    with pytest.raises(RuntimeError, match="no loss"):
        run.grow()
    assert calls and same(everything(run), before)
