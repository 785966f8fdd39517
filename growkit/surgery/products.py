"""Numbers that follow a width, in products and in reckoning with single numbers: do outputs show that they are right?

That outputs stay says nothing for a factor behind which they stay whatever it is: one that is rounded away or compared,
that a bend cuts off on the example, that a norm takes out again. So the model runs at the new widths with the old
numbers once more. Where that gives the same outputs, they cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from growkit.surgery.calls import eps_of
from growkit.surgery.recording import ROUNDING, Factor, Recorded, Recording, as_a_number, changed_factors, name_of_call
from growkit.surgery.undo import Edit
from growkit.surgery.verify import Inputs, function_change, observe

__all__ = ["changed", "hidden_factor"]

DIVISIONS = frozenset({"div", "true_divide"})


def changed(before: Sequence[Recording], after: Sequence[Recording], edit: Edit) -> list[list[Factor]]:
    """Per mode, the numbers that outputs must show."""
    eps = eps_of(edit)
    return [list(changed_factors(old, new, eps)) for old, new in zip(before, after, strict=False)]


def hidden_factor(
    model: nn.Module, inputs: Inputs, factors: Sequence[Sequence[Factor]], least: float
) -> tuple[str, str | None] | None:
    """A number that the outputs do not show: what to say of it, and the user's "file:line"; None where all are shown.

    Equal numbers of one line are looked at together, and it is enough that one mode shows them.

    Args:
        model: at the new widths.
        inputs: a batch.
        factors: per mode, those that changed.
        least: change of an output, relative to the largest, that counts as shown.
    """
    recorded = Recorded(inputs.args, inputs.kwargs, places=True)
    right = observe(model, recorded)

    def is_hidden(found: _Alike) -> bool:
        try:
            old = observe(model, _WithOldNumbers(inputs.args, inputs.kwargs, found))
        except Exception:  # a number that other code takes for a size
            return False
        return function_change(right, old).worst <= least

    alike = _alike(factors, recorded.runs)
    for (line, number), found in alike.items():
        if is_hidden(found):
            return f"{_told(number)}, and outputs on the example do not show it", line
    for (first, second), (line, number) in _undone(alike):
        if is_hidden([[*a, *b] for a, b in zip(first, second, strict=True)]):
            return f"{_told(number)}, which another number undoes, so that what stands between goes unseen", line
    return None


_Alike = list[list[Factor]]
"""Equal numbers of one line, per mode."""


def _alike(factors: Sequence[Sequence[Factor]], runs: Sequence[Recording]) -> dict[tuple[str | None, Factor], _Alike]:
    """By line, and by one of them."""
    found: dict[tuple[Any, ...], tuple[tuple[str | None, Factor], _Alike]] = {}
    for mode, (some, run) in enumerate(zip(factors, runs, strict=False)):
        for factor in some:
            line = run.places[min(factor.place[0], len(run.places) - 1)]
            key = line, factor.operation, factor.place[2], factor.old, factor.new
            found.setdefault(key, ((line, factor), [[] for _ in factors]))[1][mode].append(factor)
    return dict(found.values())


def _undone(alike: Mapping[tuple[str | None, Factor], _Alike]) -> Iterator[tuple[tuple[_Alike, _Alike], Any]]:
    """Pairs of numbers of which one takes back what the other changes, with the line and one of the first of them."""
    for (one, first), (other, second) in combinations(alike.items(), 2):
        if math.isclose(_effect(one[1]) * _effect(other[1]), 1.0, rel_tol=ROUNDING):
            yield (first, second), one


def _effect(factor: Factor) -> float:
    """By what a result of the operation is multiplied for the change of a number."""
    if 0.0 in (factor.old, factor.new):
        return 0.0
    is_divisor = factor.operation in DIVISIONS and factor.place[2] > 0
    return factor.old / factor.new if is_divisor else factor.new / factor.old


def _told(factor: Factor) -> str:
    return as_a_number(factor.operation, factor.old, factor.new)


@dataclass(frozen=True)
class _WithOldNumbers(Inputs):
    """Inputs with which a model computes with other numbers: those of `factors`, one list per call of a model."""

    factors: Sequence[Sequence[Factor]] = ()
    calls: list[None] = field(default_factory=list)

    def call(self, model: nn.Module) -> list[Tensor]:
        old = {factor.place: factor.old for factor in self.factors[len(self.calls)]}
        self.calls.append(None)
        count = _Count()
        with _Operations(count, old), count:
            return super().call(model)


class _Count(TorchFunctionMode):
    """Counts calls as a recording does."""

    def __init__(self) -> None:
        super().__init__()
        self.call, self.operation = 0, -1

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if name_of_call(func) is not None:
            self.call, self.operation = self.call + 1, -1
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, count: _Count, old: Mapping[tuple[int, int, int], float]):
        super().__init__()
        self.count, self.old = count, old

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given, values = dict(kwargs or {}), list(args)
        if isinstance(func, OpOverload):
            self.count.operation += 1
            for position, argument in enumerate(func._schema.arguments):
                old = self.old.get((self.count.call, self.count.operation, position))
                if old is not None and position < len(values):
                    values[position] = _like(values[position], old)
                elif old is not None:
                    given[argument.name] = _like(given[argument.name], old)
        return func(*values, **given)


def _like(value: Any, number: float) -> Any:
    if isinstance(value, Tensor):
        return value.new_full(value.shape, number)
    return type(value)(number)
