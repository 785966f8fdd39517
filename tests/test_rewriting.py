"""Events that change existing weights, and events that change the function by design."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from controller_cases import Careless, Chain, Mixed, Run, start
from test_controller_interrupts import everything, interrupt_at, same
from torch import Tensor, nn

from growkit.config.growth import (
    FireflySettings,
    GradMaxOptSettings,
    Net2WiderSettings,
    SplittingSettings,
    TinySettings,
    VarianceTransferSettings,
    ZeroSettings,
)
from growkit.errors import SurgeryError, TrainingError
from growkit.growth import controller as controller_module
from growkit.growth import operation as operation_module
from growkit.growth.base import Extended, Initializer
from growkit.growth.event import GrowthEvent
from growkit.growth.rewriting import Rewriting, combine
from growkit.surgery import function_change, observe


class ReluChain(nn.Sequential):
    """Neighbours share a weight, and every unit can be divided."""

    def __init__(self) -> None:
        super().__init__(
            *(nn.Sequential(nn.Linear(5 if n == 0 else 4, 4), nn.ReLU()) for n in range(3)), nn.Linear(4, 3)
        )


def trained(run: Run, steps: int = 2) -> Run:
    for _ in range(steps):
        run.train()
    return run


# one tensor, several rewrites


def test_changes_of_one_tensor_compose_in_any_order() -> None:
    old = torch.tensor([[2.0, -3.0], [0.0, 4.0]])
    halved, scaled, moved = old * torch.tensor([0.5, 1.0]), old * 3.0, old + torch.tensor([[1.0], [0.0]])
    moved[1, 0] = 7.0  # an entry that was 0 has no factor
    for order in itertools.permutations([halved, scaled, moved]):
        found = combine(old, list(order))
        assert torch.allclose(found, torch.tensor([[2.0 * 0.5 * 3.0 * 1.5, -3.0 * 3.0 * 2 / 3], [7.0, 12.0]]))


def test_a_single_rewrite_is_written_and_taken_back_to_the_last_bit() -> None:
    model = nn.Linear(3, 2)
    weight, kept, wanted = model.weight, model.weight.detach().clone(), torch.randn(2, 3)
    rewriting = Rewriting()
    rewriting.write(model, {"site": {"weight": wanted}})
    assert model.weight is weight and torch.equal(weight, wanted)
    rewriting.undo()
    assert torch.equal(weight, kept)


@pytest.mark.parametrize("values", [{"weights": torch.zeros(2, 3)}, {"weight": torch.zeros(3, 3)}], ids=str)
def test_a_rewrite_of_nothing_or_another_shape_is_an_error(values: dict[str, Tensor]) -> None:
    with pytest.raises(SurgeryError, match="must name a tensor of the model and keep its shape.* the initializer of a"):
        Rewriting().write(nn.Linear(3, 2), {"a": values})


# events that keep the function


KEEPING = {
    "variance_transfer": VarianceTransferSettings(),
    "net2wider": Net2WiderSettings(),
    "gradmax_opt": GradMaxOptSettings(steps=3),
}


@pytest.mark.parametrize("kind", [Chain, ReluChain], ids=["tanh", "relu"])
@pytest.mark.parametrize("name", KEEPING)
def test_all_sites_at_once_and_again_keep_the_function(kind: type[nn.Module], name: str) -> None:
    run = start(kind, initializer=KEEPING[name]).prepare()
    for step in (1, 2, 3):
        trained(run)
        before = observe(run.model, run.inputs)
        event = run.grow(step)
        assert len(event.grown) == 3 and all(grown.preserves for grown in event.grown)
        assert function_change(before, observe(run.model, run.inputs)).worst == event.change.worst <= 1e-5
    run.train()


def test_what_the_optimizer_remembers_of_rewritten_weights_stays() -> None:
    run = trained(start(ReluChain, initializer=VarianceTransferSettings()).prepare())
    weight = run.model.get_parameter("1.0.weight")
    old, momentum = weight.detach().clone(), run.optimizer.state[weight]["momentum_buffer"].clone()
    run.grow()
    # fan-out of one site times 4/6, fan-in of the next by 4/6
    assert torch.allclose(weight[:4, :4], old) and weight.shape == (6, 6)
    assert torch.equal(run.optimizer.state[weight]["momentum_buffer"][:4, :4], momentum)
    assert torch.allclose(run.model.get_parameter("0.0.weight")[:4], run_before(run, "0.0.weight") * 1.5)


def run_before(run: Run, name: str) -> Tensor:
    """A weight of the same run without its event."""
    return (
        trained(start(ReluChain, initializer=VarianceTransferSettings()).prepare()).model.get_parameter(name).detach()
    )


@dataclass(frozen=True)
class Doubtful(Initializer):
    """Another one, that goes wrong at some sites."""

    other: Initializer
    wrong: tuple[str, ...]
    name = "doubtful"

    def refuses(self, site: Any) -> str | None:
        return self.other.refuses(site)

    def extend(self, site: Any, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        answer = self.other.extend(site, num_new, measurement, generator)
        if site.name not in self.wrong:
            return answer
        values = {key: torch.ones_like(slices) for key, slices in answer.values.items()}
        return Extended(values, answer.form, answer.reason, answer.facts, answer.rewrites)


@pytest.mark.parametrize("wrong", ["0.0", "1.0", "2.0"])
@pytest.mark.parametrize("name", ["variance_transfer", "net2wider"])
def test_a_site_that_is_given_up_is_not_rewritten(wrong: str, name: str) -> None:
    run = trained(start(ReluChain, initializer=KEEPING[name]).prepare())
    run.controller.initializer = Doubtful(run.controller.initializer, (wrong,))
    before = observe(run.model, run.inputs)
    event = run.grow()
    assert [refusal.name for refusal in event.refused] == [wrong] and len(event.grown) == 2
    assert function_change(before, observe(run.model, run.inputs)).worst <= 1e-5
    run.train()


@pytest.mark.parametrize("name", ["variance_transfer", "net2wider", "firefly"])
@pytest.mark.parametrize(
    ("module", "target", "call"),
    [
        (operation_module, "observe", 2),
        *((operation_module, target, 1) for target in ("grow", "align_state")),
        (controller_module, "look_at", 2),
        (controller_module, "new_entries", 1),
    ],
)
def test_an_interrupt_puts_rewritten_weights_back(
    name: str, module: Any, target: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = KEEPING.get(name) or FireflySettings(steps=2)
    run = trained(start(ReluChain, initializer=settings).prepare())
    before = everything(run)
    with monkeypatch.context() as patch:
        interrupt_at(patch, module, target, call)
        with pytest.raises(KeyboardInterrupt):
            run.grow()
    assert same(everything(run), before)
    run.grow()
    run.train()


def test_an_event_that_keeps_no_site_puts_rewritten_weights_back() -> None:
    run = trained(start(ReluChain, initializer=VarianceTransferSettings()).prepare())
    run.controller.initializer = Doubtful(run.controller.initializer, ("0.0", "1.0", "2.0"))
    before = everything(run)
    with pytest.raises(SurgeryError, match=r"rolled back\n.*: it changed the outputs"):
        run.grow()
    given_up = {"tracked": [], "refusals": run.controller.refusals}
    assert same(everything(run), before | given_up)
    assert len(given_up["refusals"]) == len(before["refusals"]) + len(before["tracked"])


# events that change it by design

CHANGING: dict[str, Callable[[], Any]] = {
    "firefly": lambda: FireflySettings(steps=20),
    "splitting": lambda: SplittingSettings(),
    "tiny": lambda: TinySettings(),
}


def grown_by_design(run: Run) -> GrowthEvent:
    event = trained(run).grow()
    assert event.grown and not any(grown.preserves for grown in event.grown)
    return event


@pytest.mark.parametrize("name", CHANGING)
def test_a_change_by_design_is_made_and_recorded(name: str) -> None:
    run = trained(start(Chain, initializer=CHANGING[name]()).prepare())
    before = observe(run.model, run.inputs)
    event = grown_by_design(run)
    assert event.change.worst > run.controller.settings.tolerance
    assert event.loss_after < event.loss_before and not event.refused
    run.train()
    assert all(norm > 0 for norm in run.controller.new_gradients(event.step + 1).values())
    assert before.eval[0].shape == (12, 3)


def test_surgery_is_verified_with_silent_units_first() -> None:
    """What goes wrong beside the values is noticed, however far these move the function."""
    run = trained(start(Chain, initializer=TinySettings()).prepare())
    run.controller.initializer = Loud(("2",))
    before = everything(run)
    event = run.grow()
    assert [refusal.name for refusal in event.refused] == ["2"] and "growth.tolerance" in event.refused[0].reason
    assert event.change.worst > 0.1 and not same(everything(run), before)


@dataclass(frozen=True)
class Loud(Initializer):
    """Changes the function by design, and at some sites in a place that must keep it."""

    wrong: tuple[str, ...]
    value: float = 1.0
    name = "loud"
    preserves = False

    def refuses(self, site: Any) -> str | None:
        return None

    def extend(self, site: Any, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        values = dict(Careless((site.name,)).extend(site, num_new, measurement, generator).values)
        values = {key: slices * (self.value if key[1] else 1.0) for key, slices in values.items()}
        if site.name in self.wrong:  # what the consumers read, at the place of a producer
            values[f"{site.name}.bias", 0] = torch.full((num_new,), float("nan"))
        return Extended(values, "both", "a test")


def test_a_site_whose_new_units_make_outputs_that_are_not_finite_is_given_up() -> None:
    """Behind the others a tanh keeps what they put out finite."""
    run = trained(start(Chain).prepare())
    run.controller.initializer = Loud((), value=3e38)
    event = run.grow()
    (refusal,) = event.refused
    assert refusal.name == "4" and refusal.reason == "its new units make outputs that are not finite"
    assert [grown.site for grown in event.grown] == ["0", "2"] and math.isfinite(event.change.worst)


def test_a_fallback_keeps_the_function_where_the_others_change_it() -> None:
    run = start(Mixed, initializer=TinySettings(), fallback=ZeroSettings()).prepare()
    event = trained(run).grow()
    assert [(grown.site, grown.initializer, grown.preserves) for grown in event.grown] == [
        ("stem", "zero", True),
        ("inner", "tiny", False),
    ]
    assert event.change.worst > 1e-5


@pytest.mark.parametrize("name", ["gradmax_opt", "net2wider", *CHANGING])  # the others ask no loss
def test_a_loss_that_is_not_finite_ends_the_event_and_changes_nothing(name: str) -> None:
    settings = KEEPING[name] if name in KEEPING else CHANGING[name]()
    run = trained(start(Chain, initializer=settings).prepare())
    before = everything(run)
    run.controller.loss = lambda outputs, targets: outputs.sum() * float("nan")
    with pytest.raises(TrainingError, match="must be finite to grow at 0, got nan on the growth batch"):
        run.grow()
    assert same(everything(run), before)
