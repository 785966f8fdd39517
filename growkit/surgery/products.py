"""Numbers in products that follow a width: do the outputs show whether they are right?

That outputs stay says nothing for a factor behind which they stay whatever it is: one that is rounded away or compared,
that a bend cuts off on the example, that a norm takes out again. So the model runs at the new widths with the old
numbers once more. Where that gives the same outputs, they cannot tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from growkit.surgery.recording import Factor, Recorded, Recording, as_a_number, changed_factors
from growkit.surgery.verify import Inputs, function_change, observe

__all__ = ["changed", "hidden_factor"]


def changed(before: Sequence[Recording], after: Sequence[Recording]) -> list[list[Factor]]:
    """Per mode, the numbers in products that differ."""
    return [list(changed_factors(old, new)) for old, new in zip(before, after, strict=False)]


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
    alike: dict[tuple[str | None, str, float, float], list[list[Factor]]] = {}
    for mode, (found, run) in enumerate(zip(factors, recorded.runs, strict=False)):
        for factor in found:
            line = run.places[min(factor.place[0], len(run.places) - 1)]
            group = alike.setdefault((line, factor.operation, factor.old, factor.new), [[] for _ in factors])
            group[mode].append(factor)
    for (line, operation, before, after), found in alike.items():
        old = observe(model, _WithOldNumbers(inputs.args, inputs.kwargs, found))
        if function_change(right, old).worst <= least:
            return f"{as_a_number(operation, before, after)}, and outputs on the example do not show it", line
    return None


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
        if getattr(func, "__name__", "") != "__get__":
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
