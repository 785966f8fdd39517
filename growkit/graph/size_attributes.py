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

from growkit.graph.dimensions import Atom, Dim, size
from growkit.graph.rules.context import Literal

__all__ = ["SizeAttribute", "find_carriers", "plain_numbers"]

RATIOS = [Fraction(k) for k in (2, 3, 4)] + [Fraction(1, k) for k in (2, 3, 4)]
"""An attribute may be this many times the number that reaches the operation (`expanded // 2`)."""

OF_TORCH = frozenset({
    "groups", "num_groups", "embed_dim", "kdim", "vdim", "num_heads", "head_dim", "hidden_size", "proj_size",
    "unflattened_size", "d_model",
})  # fmt: skip
"""Size attributes of torch's own modules that do not follow from the shape of a weight."""

CERTAIN = frozenset({"groups", "num_groups"})

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
    likely = next((found for found in equal if found), [])
    multiples = [
        one
        for owner in owners
        for ratio in RATIOS
        if (number := ratio * wanted).denominator == 1 and number > 1
        for one in _matching(owner, modules[owner], literal.dim, int(number), ratio)
    ]
    others = [one for found in equal if found is not likely for one in found] + multiples
    return likely + [replace(one, likely=False) for one in others if not one.certain]


def plain_numbers(module: nn.Module) -> Iterator[tuple[str, int | float, tuple[int, str]]]:
    """Every int and float that a module keeps beside its tensors: (path, number, holder).

    Looked into are attributes, tuples, lists and dictionaries, and objects that are neither modules nor tensors, one
    level deep.
    """
    if type(module).__module__.startswith("torch.nn"):
        own = {name: value for name, value in vars(module).items() if name in OF_TORCH or name == "eps"}
    else:
        own = {name: value for name, value in vars(module).items() if name not in _REGISTRIES}
    for name, value in own.items():
        if name in FROM_SHAPES and isinstance(getattr(module, "weight", None), Tensor):
            continue
        yield from _numbers(name, value, (id(module), name), deeper=True)


_REGISTRIES = frozenset(vars(nn.Module()))


def _matching(owner: str, module: nn.Module, dim: Dim, wanted: int, ratio: Fraction) -> list[SizeAttribute]:
    of_torch = type(module).__module__.startswith("torch.nn")
    return [
        SizeAttribute(owner, path, dim, ratio, holder, certain=of_torch and path in CERTAIN)
        for path, number, holder in plain_numbers(module)
        if type(number) is int and number == wanted
    ]


def _numbers(
    path: str, value: Any, holder: tuple[int, str], *, deeper: bool
) -> Iterator[tuple[str, int | float, tuple[int, str]]]:
    if type(value) in (int, float):
        yield path, value, holder
    elif type(value) in (tuple, list) and len(value) <= 64:
        key = holder if isinstance(value, tuple) else (id(value), "")
        for i, item in enumerate(value):
            yield from _numbers(f"{path}[{i}]", item, (key[0], f"{key[1]}[{i}]"), deeper=False)
    elif type(value) is dict and deeper:
        for key, item in value.items():
            if isinstance(key, str):
                yield from _numbers(f"{path}[{key!r}]", item, (id(value), key), deeper=False)
    elif deeper and hasattr(value, "__dict__") and not isinstance(value, (nn.Module, Tensor, type, Sequence)):
        if not callable(value):
            for name, item in vars(value).items():
                yield from _numbers(f"{path}.{name}", item, (id(value), name), deeper=False)
