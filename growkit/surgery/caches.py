"""Tensors that a forward makes again by itself when they are gone: caches, which an edit must not leave at an old size.

Whether a tensor beside the state is one (a mask, a table of rotations) or a constant that the forward needs, no name
tells. So it is tried: without it the model must compute the same, and must have made it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.device import exact_arithmetic
from growkit.graph.holdings import REGISTRIES, held_by, is_record
from growkit.rng import isolated
from growkit.surgery.dropout import WithoutDropout
from growkit.surgery.verify import Inputs, Observation, function_change, untouched

__all__ = ["Emptied", "caches_of"]

MOST_TRIED = 16  # kinds of attributes that are tried one by one
SAME = 1e-6  # relative change of the outputs: a table is made again by the same code


@dataclass(frozen=True)
class Emptied:
    """An attribute that holds a cache, and how it looks without.

    Attributes:
        attributes: the `__dict__` that has the attribute.
        name: the attribute.
        how: "clear" a container, put "none", or "delete" the attribute.
    """

    attributes: dict[str, Any]
    name: str
    how: str

    def apply(self) -> None:
        """Empty it; containers stay the objects they are."""
        if self.how == "clear":
            self.attributes[self.name].clear()
        elif self.how == "none":
            self.attributes[self.name] = None
        else:
            del self.attributes[self.name]

    @property
    def filled(self) -> bool:
        """Whether tensors stand there (again)."""
        return _of_tensors(self.attributes.get(self.name))


def caches_of(model: nn.Module, inputs: Inputs) -> list[Emptied]:
    """The caches of a model beside its state, each with a way to empty it that the model's forward copes with.

    Args:
        model: as it was afterwards; it runs a few times if it keeps tensors in plain attributes, else not at all.
        inputs: an example batch.
    """
    slots = [*_slots(model)]
    return _tried(model, slots, inputs) if slots else []


@dataclass(frozen=True)
class _Slot:
    """An attribute that holds tensors, or containers of nothing else, outside the state; and the class that has it."""

    attributes: dict[str, Any]
    name: str
    kind: type

    def emptied(self, how: str) -> Emptied:
        return Emptied(self.attributes, self.name, how)

    @property
    def ways(self) -> tuple[str, ...]:
        """How to empty it, the gentlest first."""
        held = self.attributes[self.name]
        return ("clear", "none", "delete") if isinstance(held, dict | list) else ("none", "delete")


def _slots(model: nn.Module) -> Iterator[_Slot]:
    """All of them, in modules and records."""
    state = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for value in held_by(model):
        if is_record(type(value)) and not isinstance(value, Tensor):
            for name, one in getattr(value, "__dict__", {}).items():
                if name not in REGISTRIES and _of_tensors(one) and not {id(t) for t in _leaves(one)} & state:
                    yield _Slot(value.__dict__, name, type(value))


def _leaves(value: Any) -> list[Any]:
    if type(value) in (list, tuple):
        return [leaf for one in value for leaf in _leaves(one)]
    return [leaf for one in value.values() for leaf in _leaves(one)] if isinstance(value, dict) else [value]


def _of_tensors(value: Any) -> bool:
    """Whether it is a tensor, or a container of tensors; lists may have gaps."""
    if not isinstance(value, Tensor | dict | list | tuple):
        return False
    leaves = _leaves(value)
    kinds = [isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter) for leaf in leaves if leaf is not None]
    return bool(kinds) and all(kinds)


def _tried(model: nn.Module, slots: Sequence[_Slot], inputs: Inputs) -> list[Emptied]:
    expected = _run(model, inputs, [])
    if expected is None:
        inputs = _in_type_of(model, inputs)
        expected = _run(model, inputs, [])
    if expected is None:
        return []
    first = [slot.emptied(slot.ways[0]) for slot in slots]
    if _made_again(model, inputs, first, expected):
        return first
    alike: dict[tuple[type, str], list[_Slot]] = {}
    for slot in slots:
        alike.setdefault((slot.kind, slot.name), []).append(slot)
    found: list[Emptied] = []
    for group in [*alike.values()][:MOST_TRIED]:
        ways = ([slot.emptied(how) for slot in group] for how in group[0].ways)
        found += next((way for way in ways if _made_again(model, inputs, way, expected)), [])
    return found if _made_again(model, inputs, found, expected) else []


def _made_again(model: nn.Module, inputs: Inputs, emptied: Sequence[Emptied], expected: Observation) -> bool:
    found = _run(model, inputs, emptied)
    return found is not None and function_change(expected, found).worst <= SAME


def _run(model: nn.Module, inputs: Inputs, emptied: Sequence[Emptied]) -> Observation | None:
    """What the model computes without some of what it keeps; None where it fails, or does not make that again."""
    filled: set[int] = set()

    def run(training: bool) -> list[Tensor]:
        model.train(training)
        with torch.no_grad(), exact_arithmetic(), isolated(0), WithoutDropout():
            outputs = [output.detach() for output in inputs.call(model)]
        filled.update(number for number, one in enumerate(emptied) if one.filled)
        return outputs

    with suppress(Exception), untouched(model):  # a forward without what it needs raises anything
        for one in emptied:
            one.apply()
        seen = Observation(run(False), run(True))
        return seen if len(filled) == len(emptied) else None
    return None


def _in_type_of(model: nn.Module, inputs: Inputs) -> Inputs:
    """The example in the type and on the device of the weights, which may have been moved since."""
    weight = next((parameter for parameter in model.parameters() if parameter.is_floating_point()), None)
    if weight is None:
        return inputs
    move: Callable[[Tensor], Tensor] = lambda x: x.to(weight) if x.is_floating_point() else x.to(weight.device)  # noqa: E731
    return Inputs(*pytree.tree_map_only(Tensor, move, (inputs.args, inputs.kwargs or {})))
