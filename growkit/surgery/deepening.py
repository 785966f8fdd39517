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
from growkit.graph import DepthPlace, check_model, check_values, copy_of, structure_of
from growkit.rng import isolated
from growkit.surgery.depth import DepthEdit, insert
from growkit.surgery.dropout import WithoutDropout
from growkit.surgery.guard import example_for, rounding_of, taken_back
from growkit.surgery.verify import Inputs, Observation, function_change, observe, untouched

__all__ = ["deepen"]

DRAWS = 4
RUNS = 3


def deepen(
    model: nn.Module,
    place: DepthPlace,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    seed: int = 0,
    example: Tensor | tuple | dict | None = None,
) -> DepthEdit:
    """Insert one layer or residual block into `model`, in place, without changing its function; `.undo()` takes it out.

    A *residual block* is a copy of the one it follows, with weights drawn anew wherever a module has
    `reset_parameters` (other parameters keep the values of the original) and zeros at the end of each branch. Gradients
    reach those zeros at the first step, and all that lies before them from the second on. Forward and backward hooks
    are not copied. A *layer* is the identity matrix, or the convolution with a single 1 in the centre of its kernel,
    followed by the activation; training breaks what symmetry it has, as its inputs differ. Where a normaliser stands
    between the layer it follows and the activation, the new layer has a bias in place of one.

    Parameters of the model stay the objects they are; the names of later children of the container shift by as many as
    are new. The new ones join the optimizer's group of the parameter they are built after, with that group's options
    and without state; those built after a parameter that the optimizer does not hold stay outside. Growth sites and
    places found before are stale: call `find_sites` and `find_places` again.

    The outputs are compared before and after, in eval mode and in train mode with and without dropout, at two batch
    sizes, first on a copy whose weights are perturbed; every other module with weights must be called as before, and a
    gradient must reach the end of each branch.

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
    remedy = "the outputs are compared before and after; give a batch that fits with example="
    try:
        looks = [_look(model, batches[0], [])]
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(f"the model must run on the example, got {type(error).__name__}: {error}; {remedy}") from error
    if function_change(looks[0].outputs, looks[0].outputs).worst > 0.0:
        raise ModelError(f"the model's outputs on the example must be finite, got inf or NaN; {remedy}")
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
    _perturb(trial)
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


@torch.no_grad()
def _perturb(model: nn.Module) -> None:
    """Move every weight and statistic a little, in place."""
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.02 * noise(parameter))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.05 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(1.0 + 0.2 * noise(buffer).tanh())
