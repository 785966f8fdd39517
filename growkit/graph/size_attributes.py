"""Where a module keeps the sizes that its forward passes on: plain attributes, tuples, dictionaries, config objects.

A trace shows only that the number 8 went into a view. Which attribute it came from is a guess: the innermost module
around the operation that keeps an equal number, or a simple multiple of it. Verification decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from torch import Tensor, nn

from growkit.graph.attribute_path import key_step, name_step
from growkit.graph.dimensions import Atom, Dim, size
from growkit.graph.holdings import REGISTRIES, is_record, slots_of
from growkit.graph.rules.context import Literal

__all__ = ["SizeAttribute", "find_carriers", "find_eps", "find_holders", "plain_numbers"]

RATIOS = [Fraction(k) for k in (2, 3, 4)] + [Fraction(1, k) for k in (2, 3, 4)]
"""An attribute may be this many times the number that reaches the operation (`expanded // 2`)."""

OF_TORCH = frozenset({
    "groups", "num_groups", "embed_dim", "kdim", "vdim", "num_heads", "head_dim", "hidden_size", "proj_size",
    "unflattened_size", "d_model", "normalized_shape",
})  # fmt: skip
"""Size attributes of torch's own modules that do not follow from the shape of a weight, if they have none."""

CERTAIN = frozenset({"groups", "num_groups"})

DEEPEST = 4  # containers in one another
MOST_ENTRIES = 256  # of a container; one with more holds data

FROM_SHAPES = frozenset({
    "in_features", "out_features", "in_channels", "out_channels", "num_features", "num_channels", "normalized_shape",
    "num_embeddings", "embedding_dim", "num_parameters", "input_size",
})  # fmt: skip
"""Size attributes that surgery reads off the resized weights."""


@dataclass(frozen=True, eq=False)
class SizeAttribute:
    """An attribute that holds the size of a dimension.

    Attributes:
        module: the module that keeps it ("" is the root).
        path: where in the module, e.g. "num_heads", "sizes[1]", "config.n_head".
        dim: whose size it is.
        ratio: the attribute over the size of the dimension.
        holder: tells the object that holds the number from others; modules may share one.
        certain: whether it is an argument of the operation by its own name, so that there is nothing to guess.
        likely: whether it holds the size itself, in the innermost module that holds it; the others are tried later.
    """

    module: str
    path: str
    dim: Dim
    ratio: Fraction
    holder: tuple[int, str]
    certain: bool = False
    likely: bool = True

    @property
    def place(self) -> str:
        """Where it is kept, in words."""
        return f"{self.path!r} of {repr(self.module) if self.module else 'the model'}"

    def value(self, sizes: Mapping[Atom, int]) -> int | None:
        """The number under hypothetical sizes; None where it is not whole."""
        number = self.ratio * size(self.dim, sizes)
        return int(number) if number.denominator == 1 else None


def find_carriers(modules: Mapping[str, nn.Module], literal: Literal) -> list[SizeAttribute]:
    """The attributes that a number in the forward may have come from: innermost owner first, equal ones before others.

    Args:
        modules: the modules by name.
        literal: the number.
    """
    wanted = size(literal.dim)
    owners = [owner for owner in literal.owners if owner in modules]
    equal = [_matching(owner, modules[owner], literal.dim, wanted, Fraction(1)) for owner in owners]
    listed = [_listed(owner, modules[owner], literal) for owner in owners] if literal.among else []
    likely = next((found for found in listed if found), []) or next((found for found in equal if found), [])
    multiples = [
        one
        for owner in owners
        for ratio in RATIOS
        if (number := ratio * wanted).denominator == 1 and number > 1
        for one in _matching(owner, modules[owner], literal.dim, int(number), ratio)
    ]
    lists = {(one.module, _list_of(one.path)) for found in listed for one in found}
    others = [one for found in equal if found is not likely for one in found] + multiples
    others = [one for one in others if (one.module, _list_of(one.path)) not in lists]  # other entries are other sizes
    return likely + [replace(one, likely=False) for one in others if not one.certain]


def find_holders(modules: Mapping[str, nn.Module], dim: Dim, owners: Sequence[str]) -> list[SizeAttribute]:
    """The attributes of some modules that hold the size of a dimension, whatever for: a forward may compare with it."""
    known = [owner for owner in owners if owner in modules]
    return [one for owner in known for one in _matching(owner, modules[owner], dim, size(dim), Fraction(1))]


def find_eps(
    number: float, owners: Sequence[str], modules: Mapping[str, nn.Module]
) -> tuple[str, str, tuple[int, str]] | None:
    """The innermost attribute that is called eps or epsilon, or the like, and holds the number: (module, path, holder).

    Args:
        number: what the forward added.
        owners: the modules whose forward added it, innermost first.
        modules: the modules by name.
    """
    for owner in owners:
        if owner in modules:
            numbers = plain_numbers(modules[owner])
            found = [(path, holder) for path, held, holder in numbers if held == number and "eps" in path.lower()]
            if found:
                path, holder = min(found, key=lambda one: len(one[0]))
                return owner, path, holder
    return None


def plain_numbers(module: nn.Module) -> Iterator[tuple[str, int | float, tuple[int, str]]]:
    """Every int and float that a module keeps beside its tensors: (path, number, holder).

    Looked into are attributes, tuples, lists and dictionaries, and objects of the user's own that are neither modules
    nor functions, one in another.
    """
    if type(module).__module__.startswith("torch.nn"):
        own = {name: value for name, value in vars(module).items() if name in OF_TORCH or name == "eps"}
    else:
        own = {name: value for name, value in vars(module).items() if name not in REGISTRIES}
    for name, value in own.items():
        if name in FROM_SHAPES and isinstance(getattr(module, "weight", None), Tensor):
            continue
        yield from _numbers(name_step(name).removeprefix("."), value, (id(module), name), (id(module),))


def _matching(owner: str, module: nn.Module, dim: Dim, wanted: int, ratio: Fraction) -> list[SizeAttribute]:
    of_torch = type(module).__module__.startswith("torch.nn")
    return [
        SizeAttribute(owner, path, dim, ratio, holder, certain=of_torch and path in CERTAIN)
        for path, number, holder in plain_numbers(module)
        if type(number) is int and number == wanted
    ]


def _listed(owner: str, module: nn.Module, literal: Literal) -> list[SizeAttribute]:
    """The entry at the literal's position of every list that holds the very numbers that were passed with it."""
    lists: dict[str, list[tuple[str, int | float, tuple[int, str]]]] = {}
    for one in plain_numbers(module):
        if base := _list_of(one[0]):
            lists.setdefault(base, []).append(one)
    found = [entries for entries in lists.values() if tuple(entry[1] for entry in entries) == literal.among]
    places = [entries[literal.position] for entries in found]
    return [SizeAttribute(owner, path, literal.dim, Fraction(1), holder) for path, _, holder in places]


def _list_of(path: str) -> str:
    """The list that a path such as "sizes[1]" picks an entry of; "" for others."""
    base, _, index = path.rpartition("[")
    return base if index[:-1].isdigit() and index.endswith("]") else ""


def _numbers(
    path: str, value: Any, holder: tuple[int, str], above: tuple[int, ...]
) -> Iterator[tuple[str, int | float, tuple[int, str]]]:
    """`above`: the objects that this one was reached through, by id."""
    kind = type(value)
    if kind in (int, float):
        yield path, value, holder
    elif len(above) <= DEEPEST and id(value) not in above:
        for step, item in _entries(value, kind):
            # a number in a tuple is held by what holds the tuple
            own = (holder[0], f"{holder[1]}{step}") if isinstance(value, tuple) else (id(value), step)
            yield from _numbers(f"{path}{step}", item, own, (*above, id(value)))


def _entries(value: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """The steps into a container or a record, with what stands there."""
    if issubclass(kind, (tuple, list)):
        yield from ((f"[{i}]", item) for i, item in enumerate(value if len(value) <= MOST_ENTRIES else ()))
    elif issubclass(kind, dict):
        steps = ((key_step(key), item) for key, item in value.items()) if len(value) <= MOST_ENTRIES else ()
        yield from ((step, item) for step, item in steps if step is not None)
    elif is_record(kind) and not issubclass(kind, nn.Module) and not callable(value):
        names = [*getattr(value, "__dict__", ()), *slots_of(kind)]
        yield from ((name_step(name), getattr(value, name, None)) for name in names)
