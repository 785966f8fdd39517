"""One layer or residual block more: tried on a perturbed copy, proved on the model, or taken back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from growkit.device import exact_arithmetic
from growkit.errors import ModelError, SurgeryError, UserInputError
from growkit.graph import DepthPlace, check_model, check_values, copy_of, outside_inference_mode, structure_of
from growkit.rng import isolated
from growkit.surgery.depth import DepthEdit, insert
from growkit.surgery.dropout import WithoutDropout
from growkit.surgery.guard import check_optimizer, example_for, first_look, rounding_of, taken_back
from growkit.surgery.scratch import perturb
from growkit.surgery.verify import Inputs, Observation, function_change, observe, untouched

__all__ = ["deepen"]

DRAWS = 4
RUNS = 3


@outside_inference_mode()
def deepen(
    model: nn.Module,
    place: DepthPlace,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    example: Tensor | tuple | dict | None = None,
) -> DepthEdit:
    """Insert one layer or residual block into `model`, in place, without changing its function; `.undo()` takes it out.

    A *residual block* is a copy of the one it follows: weights drawn anew wherever a module has `reset_parameters`,
    zeros at the end of each branch, no hooks. A *layer* is the identity matrix, or the convolution with a single 1 in
    the centre of its kernel, followed by the activation; a normaliser between the two is replaced by a bias.

    Parameters of the model stay the objects they are; the names of later children of the container shift by as many as
    are new. The new ones join the optimizer's group of the parameter they are built after, without state; those built
    after a parameter that the optimizer does not hold stay outside. Growth sites and places found before are stale.

    The outputs are compared before and after, in eval mode and in train mode with and without dropout, at two batch
    sizes, first on a perturbed copy; every other module with weights must be called as before, and a gradient must
    reach the end of each branch.

    Args:
        model: the module the place was found in.
        place: from `growkit.find_places(model, example)`.
        optimizer: the optimizer that trains the model, if there is one yet.
        seed: of the new weights.
        example: a batch to compare the outputs on, as for `find_places`; None takes the one the place was found with.

    Raises:
        UserInputError: `model` is no module, or `place` no place.
        GrowthRefused: the model is wrapped, the block cannot be copied, or the optimizer cannot take it.
        ModelError: the place is stale, the model has no values or cannot be copied, does not run on the example, or
            gives outputs that are not finite.
        SurgeryError: the deeper model fails or computes something else; it is as it was before the call.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from growkit.graph import find_places
        >>> model, x = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(3, 4)
        >>> edit = deepen(model, find_places(model, x)["0"])
        >>> len(model), edit.record.position
        (5, 2)
    """
    _check_arguments(model, place)
    check_optimizer(model, optimizer)
    batches = _batches(model, place, example)
    before = _first_looks(model, batches)
    with taken_back(
        f"one more {place.kind} after {place.name!r}",
        place.location,
        f"look in the forward for numbers, lengths and lists that go with {place.container or 'the model'!r}, or "
        "compare on another batch with example=",
    ) as edits:
        with untouched(model):
            _try_on_a_copy(model, place, batches[: len(before)], seed)
        edits.append(edit := insert(model, place, optimizer=optimizer, seed=seed))
        _compare(model, edit, batches, before)
    return edit


def _check_arguments(model: nn.Module, place: DepthPlace) -> None:
    check_model(model)
    check_values(model)
    if not isinstance(place, DepthPlace):
        item = f"[{place!r}]" if isinstance(place, str | int) else ""
        raise UserInputError(
            f"a place must come from growkit.find_places(model, example){item}, got "
            f"{type(place).__name__} {place!r:.80}"
        )
    if structure_of(model) != place.structure:
        raise ModelError(
            f"the place after {place.name!r} must be of the model as it is, but its modules have changed since it was "
            "found; call find_places again"
        )


@dataclass(frozen=True)
class _Look:
    """What a model computes on a batch in `RUNS` runs, and the modules it calls on the way, in order, as object ids.

    Besides the two runs of an observation there is one in train mode with dropout, whose masks are the same each time:
    code that drops out after each child of a container would do so once more.
    """

    outputs: Observation
    calls: list[int]


def _batches(model: nn.Module, place: DepthPlace, example: Tensor | tuple | dict | None) -> list[Inputs]:
    """The example where the model is now, and a batch of another size."""
    inputs = example_for(model, place.inputs, example)
    return [inputs, inputs.one_more()]


def _first_looks(model: nn.Module, batches: Sequence[Inputs]) -> list[_Look]:
    """Looks at the model before the edit: one only, where it takes no batch of another size."""
    looks = [first_look(lambda: _look(model, batches[0], []), lambda look: look.outputs)]
    try:
        looks.append(_look(model, batches[1], []))
    except Exception:  # it never took such a batch
        return looks
    return looks


def _look(model: nn.Module, inputs: Inputs, new: Sequence[nn.Module]) -> _Look:
    with _calls(new) as calls:
        seen = observe(model, inputs)
        with untouched(model), torch.no_grad(), exact_arithmetic(), isolated(0):
            dropped = [
                output.to(torch.promote_types(output.dtype, torch.float32)) for output in inputs.call(model.train())
            ]
    return _Look(Observation(seen.eval, [*seen.train, *dropped]), calls)


def _compare(model: nn.Module, edit: DepthEdit, batches: Sequence[Inputs], before: Sequence[_Look]) -> None:
    tolerance = rounding_of(model)
    new = {id(module) for child in edit.children for module in child.modules()}
    old = {id(module) for module in model.modules() if _has_state(module)} - new
    for batch, look in zip(batches, before, strict=False):
        after = _look(model, batch, edit.children)
        counts = len(look.outputs.eval), len(after.outputs.eval)
        if counts[0] != counts[1]:
            raise SurgeryError(
                f"the number of outputs changes from {counts[0]} to {counts[1]}, as where each block gives its own"
            )
        if any(after.calls.count(id(child)) != RUNS for child in edit.children):
            raise SurgeryError("the forward does not call the new module once")
        if [call for call in after.calls if call in old] != [call for call in look.calls if call in old]:
            raise SurgeryError("the forward no longer calls the other modules as before")
        change = function_change(look.outputs, after.outputs).worst
        if change > tolerance:
            raise SurgeryError(f"it changes the outputs by {change:.1e} of their size, more than {tolerance:.1e}")


def _has_state(module: nn.Module) -> bool:
    """Whether it matters how often a module is called: a shared activation may well be called once more."""
    return any(True for _ in module.parameters()) or any(True for _ in module.buffers())


def _try_on_a_copy(model: nn.Module, place: DepthPlace, batches: Sequence[Inputs], seed: int) -> None:
    """On a perturbed copy: branches that are zero at the start, as many a model has, would hide any fault."""
    trial = copy_of(model)
    perturb(trial)
    before = [_look(trial, batch, []) for batch in batches]
    edit = insert(trial, place, seed=seed)
    _compare(trial, edit, batches, before)
    _check_gradients(trial, edit, place, batches[0])


def _check_gradients(model: nn.Module, edit: DepthEdit, place: DepthPlace, inputs: Inputs) -> None:
    """A finite gradient, not all zero, reaches the end of each branch; chance may silence one in a single draw."""
    waiting = [[edit.children[0].get_parameter(name) for name in branch] for branch in place.branches] or [
        [edit.children[0].get_parameter("weight")]
    ]
    for draw in range(DRAWS):
        with untouched(model), exact_arithmetic(), torch.enable_grad(), isolated(draw), WithoutDropout():
            model.train()
            model.zero_grad()
            outputs = [output.float() for output in inputs.call(model)]
            torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
        gradients = [[tensor.grad for tensor in branch if tensor.grad is not None] for branch in waiting]
        if any(not bool(gradient.isfinite().all()) for branch in gradients for gradient in branch):
            raise SurgeryError("the gradient of its new weights is not finite")
        waiting = [
            branch
            for branch, found in zip(waiting, gradients, strict=True)
            if not any(bool(gradient.any()) for gradient in found)
        ]
        if not waiting:
            return
    raise SurgeryError("no gradient reaches its new weights")


@contextmanager
def _calls(new: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Note every module that is called; random numbers that new ones draw are not missed by those that follow."""
    called: list[int] = []
    states: list[Any] = []
    inserted = {id(module) for module in new}

    def enter(module: nn.Module, args: Any) -> None:
        called.append(id(module))
        if id(module) in inserted:
            states.append(_random_state())

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if id(module) in inserted:
            _set_random_state(states.pop())

    hooks = register_module_forward_pre_hook(enter), register_module_forward_hook(leave)
    try:
        yield called
    finally:
        for hook in hooks:
            hook.remove()


def _random_state() -> tuple[Tensor, list[Tensor]]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if cuda else []


def _set_random_state(state: tuple[Tensor, list[Tensor]]) -> None:
    torch.set_rng_state(state[0])
    torch.cuda.set_rng_state_all(state[1]) if state[1] else None
