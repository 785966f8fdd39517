"""What widening and deepening a user's model share: the example, what passes for rounding, and taking an edit back."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.device import lacks_memory
from growkit.errors import ModelError, SurgeryError, UserInputError
from growkit.graph import arguments_of
from growkit.surgery.calls import differences, other_calls, warm_recordings
from growkit.surgery.recording import Recorded, Recording
from growkit.surgery.undo import Edit
from growkit.surgery.verify import Inputs, Observation, function_change, kept_change, observe

__all__ = ["Watched", "check_optimizer", "example_for", "first_look", "rounding_of", "taken_back", "watch"]


Look = TypeVar("Look")


class Undoable(Protocol):
    """An edit of any kind."""

    def undo(self) -> None: ...


def example_for(
    model: nn.Module, traced: tuple[tuple, dict[str, Any]], example: Tensor | tuple | dict | None
) -> Inputs:
    """What to compare outputs on, where the model is now: `example`, or else what the model was traced with."""
    inputs = traced if example is None else arguments_of(example)
    if Inputs(*inputs).batch == 0:
        raise ModelError("an example must hold samples for outputs to be compared on, got a batch of none")
    device = next((parameter.device for parameter in model.parameters()), None)
    return Inputs(*pytree.tree_map_only(Tensor, lambda x: x.to(device), inputs))


def check_optimizer(model: nn.Module, optimizer: Any) -> None:
    """Refuse what could not follow the edit of `model`; several optimizers are asked one by one.

    Raises:
        UserInputError: it is no optimizer, or one that holds no parameter of the model.
    """
    if isinstance(optimizer, list | tuple):
        for one in optimizer:
            check_optimizer(model, one)
        return
    if optimizer is None:
        return
    if not isinstance(optimizer, torch.optim.Optimizer):
        what = type(optimizer).__name__
        if isinstance(optimizer, type):
            what = f"the class {optimizer.__name__}; pass an instance, {optimizer.__name__}(model.parameters())"
        raise UserInputError(f"optimizer must be a torch.optim.Optimizer that trains the model, got {what}")
    own = set(model.parameters())
    if own and not any(parameter in own for group in optimizer.param_groups for parameter in group["params"]):
        raise UserInputError(
            "optimizer must train the model that grows, but holds none of its parameters; make it from "
            "model.parameters()"
        )


def rounding_of(model: nn.Module) -> float:
    """The largest relative change of an output taken for rounding."""
    types = [parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()]
    return max([1e-5, *(8 * torch.finfo(dtype).eps for dtype in types)])


@dataclass(frozen=True)
class Watched:
    """A model whose outputs must stay, and what they were before an edit.

    Attributes:
        model: the model.
        inputs: what it is called with.
        before: what it computed.
        recordings: the calls that led there, one per mode; none where the model does not bear that.
        name: what it is called in messages, None for the model itself.
    """

    model: nn.Module
    inputs: Inputs
    before: Observation
    recordings: Sequence[Recording]
    name: str | None

    def compare(self, edit: Edit) -> None:
        """Look again after an edit of widths.

        Raises:
            SurgeryError: the outputs changed by more than rounding, or other calls or numbers lead to them.
        """
        recorded = Recorded(self.inputs.args, self.inputs.kwargs)
        after = observe(self.model, recorded if self.recordings else self.inputs)
        change = max(function_change(self.before, after).worst, kept_change(self.before, after))
        whose = "the outputs" if self.name is None else f"the outputs of {self.name}"
        if change > (tolerance := rounding_of(self.model)):
            raise SurgeryError(f"it changes {whose} by {change:.1e} of their size, more than {tolerance:.1e}")
        if any(differences(self.recordings, recorded.runs, edit)):
            other = other_calls(self.recordings, warm_recordings(self.model, self.inputs), edit)
            if other is not None:
                text, place = other
                raise SurgeryError(f"other inputs would change {whose}, for {text}{f' ({place})' if place else ''}")


def first_look(look: Callable[[], Look], outputs_of: Callable[[Look], Observation], subject: str = "the model") -> Look:
    """What `look` gives before an edit.

    Raises:
        ModelError: it fails, or its outputs are not finite.
    """
    remedy = "the outputs are compared before and after; give a batch that fits with example="
    try:
        before = look()
    except Exception as error:  # a user's forward may raise anything
        text = f"{type(error).__name__}: {error}"
        raise ModelError(f"{subject} must run on the example, got {text}; {remedy}") from error
    outputs = outputs_of(before)
    if function_change(outputs, outputs).worst > 0.0:
        raise ModelError(
            f"the outputs of {subject} on the example must be numbers, got NaN, or infinite ones alone; {remedy}"
        )
    return before


def watch(model: nn.Module, inputs: Inputs, name: str | None = None) -> Watched:
    """Look at a model before an edit.

    Raises:
        ModelError: it does not run on the inputs, or its outputs are not finite.
    """

    def look() -> tuple[Observation, Sequence[Recording]]:
        recorded = Recorded(inputs.args, inputs.kwargs)
        try:
            return observe(model, recorded), recorded.runs
        except Exception as error:  # an operation that bears no mode of torch's around it, or the model's own failure
            outputs = observe(model, inputs)
            whose, kind = name or "the model", type(error).__name__
            warnings.warn(
                f"of {whose} only outputs are compared, for its calls cannot be recorded ({kind})", stacklevel=2
            )
            return outputs, ()

    before, recordings = first_look(look, lambda found: found[0], name or "the model")
    return Watched(model, inputs, before, recordings, name)


@contextmanager
def taken_back(what: str, location: str | None, advice: str) -> Iterator[list[Any]]:
    """Undo the edits that the block appends to the list if it does not come to its end, whatever stopped it.

    Args:
        what: was edited, for the message.
        location: the user's "file:line" of it, if known.
        advice: what to do about it.

    Raises:
        SurgeryError: the block failed; the cause is in the message.
        UserInputError: the block raised one, which says itself what to do.
    """
    edits: list[Undoable] = []
    try:
        yield edits
    except BaseException as error:  # also an interrupt
        for edit in reversed(edits):
            edit.undo()
        if not isinstance(error, Exception) or isinstance(error, UserInputError):
            raise
        cause = str(error) if isinstance(error, SurgeryError) else f"the model fails: {type(error).__name__}: {error}"
        if lacks_memory(error):
            cause = f"no memory was left for it: {error}"
        where = f" ({location})" if location else ""
        raise SurgeryError(f"{what}{where} was taken back: {cause}; {advice}") from error
