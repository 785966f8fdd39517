"""What a rule sees: one call of an operation, and the notebook where it writes what that means for the widths."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import Node

from growkit.graph.dimensions import Atom, Dim, Reason, fixed, flag, pin, size
from growkit.graph.tracing import location_of, owners_of
from growkit.graph.unification import unify

__all__ = [
    "Call",
    "Context",
    "Contraction",
    "Dims",
    "Flagged",
    "Literal",
    "NoRule",
    "TensorUse",
    "Value",
    "WeightView",
    "multiplications",
    "shape_of",
]

Dims = tuple[Dim, ...]
"""The dimensions of one tensor."""

Value = Dims | list[Any] | None
"""What a node yields: the dimensions of a tensor, a list of such, or None for anything that is no tensor."""


class NoRule(Exception):
    """Raised by a rule that does not cover this form of its operation: the widths it touches are then refused."""


@dataclass(eq=False)
class TensorUse:
    """What is known of one parameter or buffer, whatever its names; all traces share it.

    Attributes:
        names: every name in the module, the first is canonical.
        kind: "parameter" or "buffer".
        dims: one expression per dimension.
        consumer_dims: dimensions contracted against an activation.
        producer_dims: dimensions that make units, with the order of first use.
        neutral: what new entries are filled with if the tensor is no weight (1 for a scale, 0 for a shift).
        location: the user's "file:line" of the first use.
        uniform: the value of a buffer with all entries equal: new ones are no question then.
    """

    names: tuple[str, ...]
    kind: str
    dims: Dims
    consumer_dims: set[int] = field(default_factory=set)
    producer_dims: dict[int, int] = field(default_factory=dict)
    neutral: float | None = None
    location: str | None = None
    used: bool = False
    uniform: float | None = None


@dataclass(frozen=True)
class WeightView:
    """A tensor that is a parameter up to layout and scale: zero entries of the parameter are zero entries here.

    Attributes:
        tensor: the parameter.
        positions: for each dimension of the view the dimension of the parameter, None where they do not correspond.
        keeps_zeros: False for other functions of the parameter, entry by entry.
        except_along: a dimension of the parameter along which zeros do not stay zeros, if there is one.
    """

    tensor: TensorUse
    positions: tuple[int | None, ...]
    keeps_zeros: bool = True
    except_along: int | None = None


@dataclass(frozen=True)
class Contraction:
    """The multiplications of one operation: one for each index of `dims` (FLOPs are twice as many)."""

    dims: Dims
    per_sample: bool


@dataclass(frozen=True)
class Flagged:
    """A node where a new size of `dim` would change the function, for the reason that `dim` is flagged with."""

    node: Node
    dim: Dim
    reason: Reason


@dataclass(frozen=True)
class Literal:
    """A number that the user's code passed to an operation and that equals the size of `dim`.

    Attributes:
        op: the operation.
        dim: whose size it is.
        owners: the modules whose forward runs the operation, innermost first.
        location: the user's "file:line".
        among: the list that it was passed in, if its entries are sizes of neighbours.
        position: where in that list.
    """

    op: str
    dim: Dim
    owners: tuple[str, ...]
    location: str | None
    among: tuple[int, ...] = ()
    position: int = 0


class Call:
    """One call of an ATen operation with its arguments by name.

    Attributes:
        node: the node of the trace.
        name: the operation without namespace and overload, e.g. "conv2d".
        key: the operation with overload, e.g. "conv2d.default".
        shape: the shape of the (first) output.
    """

    def __init__(self, node: Node):
        self.node = node
        self.key = str(node.target).removeprefix("aten.")
        self.name = self.key.rsplit(".", 1)[0] if "." in self.key else self.key
        self.location = location_of(node)
        value = node.meta.get("val")
        self.num_outputs = len(value) if isinstance(value, (tuple, list)) else 1
        self.shape = shape_of(next(iter(value), None) if isinstance(value, (tuple, list)) else value)
        schema = getattr(node.target, "_schema", None)
        given = dict(enumerate(node.args))
        self._arguments: dict[str, Any] = {
            argument.name: given.get(i, node.kwargs.get(argument.name, argument.default_value))
            for i, argument in enumerate(schema.arguments if schema else ())
        }

    def __getitem__(self, name: str) -> Any:
        return self._arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The argument of that name, or the default where the operation has none."""
        return self._arguments.get(name, default)

    @property
    def first(self) -> Node:
        """The first argument: the tensor worked on."""
        return self.at(0)

    def at(self, position: int) -> Any:
        """The argument at a position, however it was passed."""
        return list(self._arguments.values())[position]


class Context:
    """The notebook of one trace: the dimensions of every node, and what the rules say of them."""

    def __init__(self, training: bool):
        self.training = training
        self.values: dict[Node, Value] = {}
        self.weights: dict[Node, WeightView] = {}
        self.parts: dict[Node, WeightView] = {}  # pieces of a parameter and functions of its entries
        self.outer: dict[Node, Node] = {}  # what the inputs of a region are outside it
        self.depends_on_input: set[Node] = set()
        self.literals: list[Literal] = []
        self.quotients: list[Literal] = []
        self.flagged: list[Flagged] = []
        self.contractions: list[Contraction] = []
        self.unknown_ops: dict[str, int] = {}
        self.call: Call | None = None

    def dims(self, node: Node) -> Dims:
        """The dimensions of a tensor; raises `NoRule` for anything else."""
        value = self.values.get(node) if isinstance(node, Node) else None
        if not isinstance(value, tuple):
            raise NoRule
        return value

    def tensors(self, call: Call) -> list[Node]:
        """The inputs of a call that are tensors."""
        return [node for node in call.node.all_input_nodes if isinstance(self.values.get(node), tuple)]

    def reason(self, text: str, *, listed: bool = True) -> Reason:
        """A reason that points at the present call."""
        return Reason(text, self.call.location if self.call else None, listed)

    def pin(self, dim: Dim, text: str) -> None:
        """The size of `dim` may not change."""
        pin(dim, self.reason(text))

    def flag(self, dim: Dim, text: str) -> None:
        """A new size of `dim` would change the function."""
        reason = self.reason(text)
        flag(dim, reason)
        if self.call is not None:
            self.flagged.append(Flagged(self.call.node, dim, reason))

    def fixed(self, width: int, text: str) -> Dim:
        """A new dimension that may not change."""
        return fixed(width, self.reason(text))

    def spatial(self, before: Dims, widths: Sequence[int]) -> Dims:
        """New dimensions in the place of `before`: neighbours are combined there, so they are positions, not units."""
        for dim in before:
            self.pin(dim, "is slid over as if it were positions")
        return tuple(fixed(width, self.reason("is a spatial size", listed=False)) for width in widths)

    def unify(self, first: Dim, second: Dim) -> None:
        """The two dimensions are one and the same."""
        unify(first, second, self.call.location if self.call else None)

    def literal(self, dim: Dim, value: Any, among: Sequence[int] = (), position: int = 0) -> None:
        """The user's code passes the number `value`, perhaps at a position of a list, for the size of `dim`."""
        if self.call is not None and isinstance(value, int) and value == size(dim) > 1:
            owners = self._around(self.call.node)
            self.literals.append(Literal(self.call.name, dim, owners, self.call.location, tuple(among), position))

    def quotient(self, dim: Dim) -> None:
        """The user's code passes the factors of `dim`: it may compute one of them from the others and the product."""
        if self.call is not None:
            owners = self._around(self.call.node)
            self.quotients.append(Literal(self.call.name, dim, owners, self.call.location))

    def _around(self, node: Node) -> tuple[str, ...]:
        """The modules whose forward runs a node, innermost first.

        What does not depend on the input may be made by a method that another module calls, which no trace tells. So
        the modules that own the tensors it is made of stand before those whose forward it is.
        """
        running = owners_of(node)
        if node in self.depends_on_input:
            return running
        owners, todo, seen = [], [node], {node}
        while todo:
            one = todo.pop()
            if one.op == "placeholder" and (view := self.weights.get(one)) is not None:
                owners.append(view.tensor.names[0].rpartition(".")[0])
            new = [source for source in one.all_input_nodes if source not in seen]
            seen.update(new)
            todo += new
        return tuple(dict.fromkeys([*(owner for owner in owners if owner not in running), *running]))

    def count(self, *dims: Dim) -> None:
        """Count the multiplications of a contraction: one for each index of the dimensions."""
        assert self.call is not None
        self.contractions.append(Contraction(dims, self.call.node in self.depends_on_input))

    def weight(self, node: Any) -> WeightView | None:
        """The parameter behind a tensor, if it is one up to layout and scale."""
        return self.weights.get(node) if isinstance(node, Node) else None

    def part(self, node: Any) -> WeightView | None:
        """The parameter behind a tensor, if it is one, a piece of one, or computed entry by entry from one."""
        return self.weight(node) or (self.parts.get(node) if isinstance(node, Node) else None)

    def consume(self, node: Node, dim: int) -> bool:
        """`dim` of the operand is contracted with an activation.

        Returns:
            True if the operand is a parameter, so that new entries along `dim` can be silenced.
        """
        view = self.part(node)
        position = view.positions[dim] if view and view.keeps_zeros else None
        if view is None or position in (None, view.except_along) or view.tensor.kind != "parameter":
            return False
        view.tensor.consumer_dims.add(position)
        return True

    def produce(self, node: Any, dim: int) -> None:
        """`dim` of the operand makes units; of operands that are no parameters nothing is noted."""
        view = self.part(node)
        position = view.positions[dim] if view else None
        if view is not None and position is not None:
            view.tensor.producer_dims.setdefault(position, len(self.values))

    def neutral(self, node: Any, fill: float) -> None:
        """The tensor acts element by element: new entries take `fill`."""
        view = self.part(node)
        if view is not None and view.tensor.neutral is None:
            view.tensor.neutral = fill


def shape_of(value: Any) -> tuple[int, ...] | None:
    """The shape of a fake tensor; None for anything else, and where a size depends on the data."""
    if not isinstance(value, Tensor) or not all(isinstance(extent, int) for extent in value.shape):
        return None
    return tuple(value.shape)


def multiplications(contraction: Contraction, sizes: Mapping[Atom, int] | None = None) -> int:
    """The number of multiplications of a contraction, under hypothetical sizes."""
    return math.prod(size(dim, sizes) for dim in contraction.dims)
