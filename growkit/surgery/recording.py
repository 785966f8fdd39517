"""What a forward calls, in order, and the numbers that it passes: does a width act as a number anywhere?

Outputs that stay on a batch prove nothing for a number that acts on other inputs only, such as the bound of a clamp.
So the calls of two forwards are compared as well, at the old widths and at the new ones. Sizes may differ: they are
what grew. Numbers in products may where outputs show them (growkit.surgery.products). No other number may, nor may the
path.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from growkit.surgery.dropout import dropout_probability
from growkit.surgery.verify import Inputs

__all__ = [
    "ROUNDING",
    "Change",
    "Difference",
    "Factor",
    "Recorded",
    "Recording",
    "as_a_number",
    "changed_factors",
    "first_difference",
    "name_of_call",
]

ROUNDING = 1e-3  # numbers that depend on data are equal up to rounding; a size that grew by a quarter is not

_ANOTHER_PATH = "the forward takes another path at another width"

Change = tuple[float, float]
"""A number at the old and at the new widths."""

Numbers = tuple[float | None, ...]
"""Those of one operation; None where an argument is none that counts."""


@dataclass
class Recording:
    """The calls of a forward.

    Attributes:
        calls: the functions of torch that the code calls, and per call the operations that it leads to, each with the
            numbers that it passes, and whether it is more than reckoning with tensors of one entry.
        bounds: per call, the bounds of slices in brackets beyond the end: torch makes no operation of a `x[:99]`.
        dropouts: per call, the probability of a dropout: it is left out, so no output tells that it is another.
        places: the user's "file:line" of each call, where asked for.
    """

    calls: list[tuple[str, list[tuple[OpOverload, Numbers, bool]]]] = field(default_factory=list)
    bounds: list[tuple[int, ...]] = field(default_factory=list)
    dropouts: list[float | None] = field(default_factory=list)
    places: list[str | None] = field(default_factory=list)


@dataclass(frozen=True)
class Factor:
    """A number that is another one after an edit, and may be if outputs show it.

    Attributes:
        place: which call, which operation of that call, which argument of that operation.
        old, new: before and after.
        operation: its name.
    """

    place: tuple[int, int, int]
    old: float
    new: float
    operation: str


@dataclass(frozen=True)
class Difference:
    """Where two recordings part.

    Attributes:
        call: the position of the call.
        text: what differs, for a sentence that begins with the site.
    """

    call: int
    text: str


@dataclass(frozen=True)
class Recorded(Inputs):
    """Inputs that record every call of a model with them.

    Attributes:
        places: whether to find the lines, which takes time.
        runs: one recording per call.
    """

    places: bool = False
    runs: list[Recording] = field(default_factory=list)

    def call(self, model: nn.Module) -> list[Tensor]:
        found = Recording(calls=[("", [])], bounds=[()], dropouts=[None], places=[None])
        with _Operations(found), _Functions(found, self.places):
            outputs = super().call(model)
        self.runs.append(found)
        return outputs


def name_of_call(func: Any) -> str | None:
    """What a recording calls a function; None for attributes of tensors, such as the shape, which compute nothing."""
    name = getattr(func, "__name__", "")
    return None if name == "__get__" else name


class _Functions(TorchFunctionMode):
    def __init__(self, found: Recording, places: bool):
        super().__init__()
        self.found, self.places = found, places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        if (name := name_of_call(func)) is not None:
            self.found.calls.append((name, []))
            self.found.bounds.append(tuple(_beyond(args[0], args[1])) if name == "__getitem__" else ())
            self.found.dropouts.append(dropout_probability(func, args, kwargs or {}))
            if self.places:
                self.found.places.append(_place())
        return func(*args, **(kwargs or {}))


class _Operations(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(self, found: Recording):
        super().__init__()
        self.found = found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None) -> Any:
        given = kwargs or {}
        result = func(*args, **given)
        if isinstance(func, OpOverload):
            larger = _is_larger(args, result)
            self.found.calls[-1][1].append((func, _numbers(func, args, given, larger), larger))
        return result


_PRODUCTS = frozenset({
    "mul", "div", "true_divide", "lerp", "addcmul", "addcdiv", "addmm", "addmv", "addbmm", "baddbmm",
})  # fmt: skip
"""A number in one of these acts on every input: outputs that stay say that it is right, if they show it at all."""

_SUMS = frozenset({"add", "sub", "rsub"})
_SIZES_AS_SCALARS = frozenset({"arange"})
_WHOLE_NUMBERS = frozenset({"diagonal", "k", "shifts"})
"""Whole numbers that are no sizes, by the name of the argument."""

_BOUNDS = {"slice": ("start", "end"), "split": ("split_size",)}
"""Whole numbers that may lie beyond the end of the dimension that they cut; then they act on longer inputs only."""


@functools.cache
def _places_of_numbers(func: OpOverload) -> tuple[tuple[int, str, bool], ...]:
    """Position, name and "may be a tensor too" of the arguments that are numbers and not sizes."""
    name = _base(func)
    if name in _SIZES_AS_SCALARS or name.startswith(("_scaled_dot_product", "_local_scalar")):
        return ()
    gates = torch.Tag.pointwise in func.tags and name not in _SUMS
    found = []
    for position, argument in enumerate(func._schema.arguments):
        kind = str(argument.type).removeprefix("Optional[").removesuffix("]")
        if kind in ("number", "Scalar", "float") or (kind == "int" and argument.name in _WHOLE_NUMBERS):
            found.append((position, argument.name, False))
        elif kind == "int" and argument.name in _BOUNDS.get(name, ()):
            found.append((position, argument.name, False))
        elif kind == "Tensor" and torch.Tag.pointwise in func.tags:
            found.append((position, argument.name, gates))
    return tuple(found)


def _base(func: OpOverload) -> str:
    return func._schema.name.rpartition("::")[2].rstrip("_")


def _numbers(func: OpOverload, args: Sequence[Any], kwargs: dict[str, Any], larger: bool) -> Numbers:
    """The numbers of one operation; none where it adds whole numbers, as positions are made."""
    places = _places_of_numbers(func)
    if not places or _adds_whole_numbers(func, args):
        return ()
    found: list[float | None] = []
    bounds = _BOUNDS.get(_base(func), ())
    for position, name, gate in places:
        value = args[position] if position < len(args) else kwargs.get(name)
        if name in bounds and not _is_beyond(func, value, args, kwargs):
            value = None
        if isinstance(value, Tensor):
            value = value.item() if gate and value.numel() == 1 and not value.is_meta else None
        found.append(float(value) if isinstance(value, (int, float)) else None)
    nothing = _base(func) == "mul" and 0.0 in found  # whatever the other factor is
    return () if nothing else tuple(found)


def _beyond(tensor: Any, index: Any) -> Iterator[int]:
    """The bounds of slices in brackets that lie beyond the end of their dimension."""
    items = list(index) if isinstance(index, tuple) else [index]
    rest = tensor.dim() - sum(_consumed(item) for item in items)
    axis = 0
    for item in items:
        if isinstance(item, slice) and axis < tensor.dim():
            size = tensor.shape[axis]
            yield from (one for one in (item.start, item.stop) if isinstance(one, int) and abs(one) > size)
        axis += rest if item is Ellipsis else _consumed(item)


def _consumed(item: Any) -> int:
    """How many dimensions one entry of an index takes."""
    if item is None or item is Ellipsis or isinstance(item, bool):
        return 0
    return item.dim() if isinstance(item, Tensor) and item.dtype in (torch.bool, torch.uint8) else 1


def _is_beyond(func: OpOverload, bound: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether a bound lies beyond the end that it counts from; an end that is left open does not."""
    position = next(i for i, argument in enumerate(func._schema.arguments) if argument.name == "dim")
    dim = args[position] if position < len(args) else kwargs.get("dim", 0)
    return isinstance(bound, int) and abs(bound) < sys.maxsize and abs(bound) > args[0].shape[dim]


def _is_larger(args: Sequence[Any], result: Any) -> bool:
    tensors = [arg for arg in args if isinstance(arg, Tensor)] or [result]
    return any(isinstance(one, Tensor) and one.numel() > 1 for one in tensors)


def _adds_whole_numbers(func: OpOverload, args: Sequence[Any]) -> bool:
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    return _base(func) in _SUMS and not any(one.is_floating_point() for one in tensors)


def first_difference(before: Recording, after: Recording, eps: Collection[Change] = ()) -> Difference | None:
    """The first call that differs by more than sizes, and than the eps of norms that changed from and to `eps`."""
    for number, ((name, ops), (other, others)) in enumerate(zip(before.calls, after.calls, strict=False)):
        if name != other:
            return Difference(number, f"{_ANOTHER_PATH}: {other!r} in place of {name!r}")
        for a, b in zip(before.bounds[number], after.bounds[number], strict=False):
            if a != b:
                return Difference(number, f"its size bounds a slice, beyond the end on the example: {a}, then {b}")
        old, new = before.dropouts[number], after.dropouts[number]
        if old is not None and new is not None and _differ(old, new):
            return Difference(number, as_a_number(name, old, new))
        if [one[0] for one in ops] != [one[0] for one in others]:
            continue  # torch itself chooses another way to compute the same
        for (op, old, larger), (_, new, _) in zip(ops, others, strict=True):
            for place, a, b in _changed(op, old, new):
                if larger and not _is_product(op) and not _is_eps(op, place[1], (a, b), eps):
                    return Difference(number, as_a_number(_base(op), a, b))
    if len(before.calls) != len(after.calls):
        longer = max(before.calls, after.calls, key=len)
        at = min(len(before.calls), len(after.calls))
        return Difference(at, f"{_ANOTHER_PATH}: {longer[at][0]!r} is called or not")
    return None


def as_a_number(operation: str, before: float, after: float) -> str:
    """What to say of a size that acts as a number."""
    return f"its size acts as a number in {operation!r}: {before:g}, then {after:g}"


def _is_product(op: OpOverload) -> bool:
    """Whether a number acts as a factor there."""
    return _base(op) in _PRODUCTS


def changed_factors(before: Recording, after: Recording, eps: Collection[Change] = ()) -> Iterator[Factor]:
    """The numbers that differ, but for eps, in products and in what reckons with tensors of one entry."""
    for call, ((name, ops), (other, others)) in enumerate(zip(before.calls, after.calls, strict=False)):
        if name == other and [one[0] for one in ops] == [one[0] for one in others]:
            for number, ((op, old, larger), (_, new, _)) in enumerate(zip(ops, others, strict=True)):
                for (position, argument, _), a, b in _changed(op, old, new):
                    if (_is_product(op) or not larger) and not _is_eps(op, argument, (a, b), eps):
                        yield Factor((call, number, position), a, b, _base(op))


def _changed(op: OpOverload, old: Numbers, new: Numbers) -> Iterator[tuple[tuple[int, str, bool], float, float]]:
    """Places of numbers that differ, and both values."""
    for place, a, b in zip(_places_of_numbers(op), old, new, strict=False):
        if a is not None and b is not None and _differ(a, b):
            yield place, a, b


def _differ(a: float, b: float) -> bool:
    return not math.isclose(a, b, rel_tol=ROUNDING) and not (math.isnan(a) and math.isnan(b))


def _is_eps(op: OpOverload, argument: str, change: Change, eps: Collection[Change]) -> bool:
    may_be = _base(op) in _SUMS or argument == "eps"
    return may_be and any(not _differ(a, change[0]) and not _differ(b, change[1]) for a, b in eps)


def _place() -> str | None:
    """The user's "file:line": the innermost frame outside torch and this package."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if not path.startswith(_NOT_THE_USERS):
            return f"{path}:{frame.f_lineno}"
        frame = frame.f_back
    return None


_NOT_THE_USERS = (f"{torch.__path__[0]}/", f"{__file__.rpartition('/')[0]}/", "<")
