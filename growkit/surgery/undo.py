"""What an edit changed, and how it is taken back to the last bit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.errors import SurgeryError
from growkit.graph import GrowthSite, structure_of
from growkit.optim.displacement import refuse_displaced
from growkit.surgery.attributes import holders_of, read_attribute, restore_attributes, set_attributes
from growkit.surgery.holders import Rebinding, own_copies
from growkit.surgery.optimizer_state import forget_state
from growkit.surgery.records import AttributeChange, EditRecord
from growkit.surgery.tensors import replace_data

if TYPE_CHECKING:
    from growkit.surgery.caches import Emptied

__all__ = ["Edit", "UndoLog"]


class Edit:
    """A committed edit of one or more sites; `undo()` takes it back to the last bit.

    Attributes:
        records: one EditRecord per site, in the order they were applied.
    """

    def __init__(self, records: list[EditRecord], logs: Sequence[UndoLog]):
        self.records = records
        self._logs: Sequence[UndoLog] | None = logs
        self._shapes = [(tensor, tensor.shape) for log in logs for tensor in log.tensors]
        self._structures = [structure_of(log.model) for log in logs]
        self._numbers = [_numbers_of(log) for log in logs]
        self._begun = False

    @property
    def undone(self) -> bool:
        """Whether it has been taken back."""
        return self._logs is None

    @property
    def record(self) -> EditRecord:
        """The record of an edit of a single site."""
        if len(self.records) != 1:
            raise ValueError(f"record is for edits of one site, this one has {len(self.records)}; use records")
        return self.records[0]

    def _check_numbers(self) -> None:
        for log, numbers in zip(self._logs or (), self._numbers, strict=True):
            for (module, name), value in numbers.items():
                now = _number(log.model, module, name)
                if now != value:
                    raise SurgeryError(
                        f"edits are undone last first, and {name} of {module or 'the model'} is {now!r} where the edit "
                        f"left {value!r}: a later one changed it too, and must be undone first; or set it back"
                    )

    def undo(self) -> None:
        """Restore, in place, every tensor, attribute, optimizer state and site width that the edit changed.

        An object that held a changed number, such as a configuration, becomes the one it was before the edit; what was
        written since to the copy that the model had meanwhile is lost.

        Optimizer state that came up only after the edit, for a parameter that the edit changed, starts anew: it has the
        wrong shape. An undo that was interrupted may be asked for again.

        Raises:
            SurgeryError: the edit was undone already, or a later edit of the same tensors or attributes was not.
            GrowthRefused: weights are between two passes of SAM.
        """
        if self._logs is None:
            raise SurgeryError("an edit can be undone once, and this one has been")
        if not self._begun:
            refuse_displaced(tensor for tensor, _ in self._shapes)
        if not self._begun and any(tensor.shape != shape for tensor, shape in self._shapes):
            raise SurgeryError("edits are undone last first, and a later one changed the same tensors; undo that first")
        if not self._begun and self._structures != [structure_of(log.model) for log in self._logs]:
            raise SurgeryError("edits are undone last first, and modules were added or removed since; undo that first")
        if not self._begun:
            self._check_numbers()
        self._begun = True
        for log in reversed(self._logs):
            log.roll_back()
        self._logs = None


@dataclass
class UndoLog:
    """What was before the first change of each thing, in the order of the changes.

    What a tensor was between two changes is not kept: many sites widen the same weights, and several times over.

    Attributes:
        model: the module that changes.
        tensors: of each tensor that changed, the old values and the old gradient.
        states: of each optimizer and parameter, the old state; None where there was none.
    """

    model: nn.Module
    tensors: dict[Tensor, tuple[Tensor, Tensor | None]] = field(default_factory=dict)
    states: dict[tuple[torch.optim.Optimizer, nn.Parameter], dict[str, Any] | None] = field(default_factory=dict)
    attributes: list[AttributeChange] = field(default_factory=list)
    bound: list[Rebinding] = field(default_factory=list)
    caches: list[tuple[Any, Any]] = field(default_factory=list)
    emptied: list[tuple[dict[str, Any], str, Any]] = field(default_factory=list)
    widths: list[tuple[GrowthSite, int]] = field(default_factory=list)

    def replace(self, tensor: Tensor, values: Tensor) -> None:
        self.tensors.setdefault(tensor, (tensor.data, tensor.grad))
        replace_data(tensor, values)

    def set(self, changes: Sequence[AttributeChange]) -> None:
        """Make changes; objects that hold the numbers for modules are exchanged for copies of the model's own first."""
        for rebinding in own_copies(self.model, holders_of(self.model, changes)):
            self.bound.append(rebinding)
            attributes, name, _, new = rebinding
            attributes[name] = new
        for change in changes:
            self.attributes.append(change)  # first, for an interrupt may come between
            try:
                set_attributes(self.model, [change])
            except Exception:  # the holder refuses, and would refuse to be put back too
                self.attributes.pop()
                raise

    def clear_caches(self, found: Sequence[Emptied]) -> None:
        """Empty what modules keep of tensors beside their state, where they make it again: it has an old size."""
        for cache in found:
            value = cache.attributes[cache.name]
            if cache.how == "clear":
                self._clear(value)
            else:
                self.emptied.append((cache.attributes, cache.name, value))
                cache.apply()

    def _clear(self, value: Any) -> None:
        self.caches.append((value, value.copy()))
        value.clear()

    def remember(self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> None:
        if (optimizer, parameter) not in self.states:
            state = optimizer.state.get(parameter)
            # copies: an optimizer counts its steps in place
            kept = None if state is None else pytree.tree_map_only(Tensor, Tensor.clone, dict(state))
            self.states[optimizer, parameter] = kept

    def roll_back(self) -> None:
        try:
            self._restore()
        except BaseException:  # an interrupt on the way: all of it once more, for half an edit is worse than a delay
            self._restore()
            raise

    def _restore(self) -> None:
        for tensor, (values, gradient) in self.tensors.items():
            replace_data(tensor, values)
            tensor.grad = gradient
        for (optimizer, parameter), state in self.states.items():
            if state is None:
                forget_state(optimizer, parameter)
            else:
                optimizer.state[parameter] = state
        for cache, content in reversed(self.caches):  # a shared one was emptied twice
            cache.clear()
            cache.extend(content) if isinstance(cache, list) else cache.update(content)
        for attributes, name, value in reversed(self.emptied):
            attributes[name] = value
        for site, width in reversed(self.widths):
            site.resize(width)
        restore_attributes(self.model, self.attributes)
        for attributes, name, old, _ in reversed(self.bound):
            attributes[name] = old


def _numbers_of(log: UndoLog) -> dict[tuple[str, str], Any]:
    """The attributes that an edit changed as they are now, by module and path."""
    places = dict.fromkeys((change.module, change.name) for change in log.attributes)
    return {place: _number(log.model, *place) for place in places}


def _number(model: nn.Module, module: str, name: str) -> Any:
    try:
        return read_attribute(model, module, name)
    except (AttributeError, LookupError, TypeError):  # what held it is gone
        return None
