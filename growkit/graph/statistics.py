"""Sums, norms and means over units that are zero at first: what new zeros do to them, and which weight takes it up.

Zeros leave a sum and a norm as they are. A mean over C units that become C' falls by C / C', and what is computed from
it falls, or rises, by a power of that: the global response norm `x * g / (mean(g) + eps) * weight`, say, rises by
C' / C. The factor is followed to the weights that multiply, which are divided by it; an eps that is added on the way is
multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

from growkit.graph.dimensions import Atom, Dim, leaves, size
from growkit.graph.records import AttributeEdit, Scale, ValueEdit
from growkit.graph.rules.context import Call, Context, Flagged, TensorUse
from growkit.graph.size_attributes import find_eps
from growkit.graph.tracing import owners_of

__all__ = ["NotTakenUp", "StatisticRemedy", "is_statistic", "statistic_remedy"]

SUMS = frozenset({"sum", "nansum"})

NORMS = frozenset({"linalg_vector_norm", "norm"})

HOMOGENEOUS = frozenset({
    "to", "_to_copy", "type_as", "contiguous", "clone", "alias", "detach", "view", "reshape", "_unsafe_view", "flatten",
    "unflatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "movedim", "expand", "expand_as", "neg", "abs",
    "relu", "dropout", "mean", "sum", "nansum", "linalg_vector_norm", "norm", "slice", "select",
})  # fmt: skip
"""Functions of the first argument that take out a positive factor."""

CONTRACTIONS = frozenset({"linear", "conv1d", "conv2d", "conv3d"})


class NotTakenUp(Exception):
    """A mean changes and no weight makes up for it; the text completes "this width ..."."""


@dataclass(frozen=True)
class Outlet:
    """A weight that is multiplied by (C / C') to a power.

    Attributes:
        tensor: the weight, all its entries.
        power: the power.
        dims: the dimensions whose sizes are C.
    """

    tensor: TensorUse
    power: float
    dims: tuple[Dim, ...]


@dataclass(frozen=True)
class Added:
    """A number that is added to what changes by (C / C') to a power."""

    node: Node
    number: float
    power: float
    dims: tuple[Dim, ...]


@dataclass(frozen=True, eq=False)
class StatisticRemedy:
    """Zeros in the new units of a width that sums, norms and means run over, and weights that make up for the means.

    Attributes:
        outlets: the weights, each once.
        eps: for each number that is added (module, path, which it is).
    """

    outlets: tuple[Outlet, ...]
    eps: tuple[tuple[str, str, Added], ...]
    silences_writers: bool = field(default=True, init=False)
    silenced_readers: frozenset[tuple[str, int]] = field(default=frozenset(), init=False)
    copies: bool = field(default=False, init=False)
    reason: str = field(default="", init=False)

    def value_edits(self, sizes: Mapping[Atom, int]) -> list[ValueEdit]:
        return [Scale(one.tensor.names[0], one.tensor.kind, 0, None, _factor(one, sizes)) for one in self.outlets]

    def attribute_edits(self, sizes: Mapping[Atom, int]) -> list[AttributeEdit]:
        return [AttributeEdit(module, path, None, _factor(one, sizes)) for module, path, one in self.eps]


def is_statistic(ctx: Context, flagged: Flagged) -> bool:
    """Whether zeros more leave what is computed there as it was, up to a factor that the number of units tells."""
    if flagged.node.op != "call_function" or flagged.node not in ctx.depends_on_input:
        return False  # new entries of weights are not all zero
    call = Call(flagged.node)
    if call.name in NORMS:
        order = call.get("ord", call.get("p"))
        return order is None or (isinstance(order, int | float) and 0 < order < math.inf)
    return call.name == "mean" or (call.name in SUMS and not _is_product(call.first))


def _is_product(node: Node) -> bool:
    """Whether units are multiplied with one another there: of two zeros neither learns."""
    return node.op == "call_function" and Call(node).name in ("mul", "mul_") and len(node.all_input_nodes) > 1


def statistic_remedy(
    contexts: Sequence[Context],
    flagged: Sequence[tuple[Context, Flagged]],
    atom: Atom,
    modules: Mapping[str, nn.Module],
) -> StatisticRemedy:
    """What keeps the function when zeros are added to what sums, norms and means over `atom` see.

    Args:
        contexts: the traces.
        flagged: the places of the sums, norms and means, with their traces.
        atom: the width.
        modules: the modules by name.

    Raises:
        NotTakenUp: no weight makes up for a mean.
    """
    if not any(_is_read(ctx, atom) for ctx in contexts):
        raise NotTakenUp(f"{flagged[0][1].reason.text}, and no weight reads it")
    for ctx in contexts:
        if (reader := _off_zero(ctx, atom)) is not None:
            raise NotTakenUp(
                f"{flagged[0][1].reason.text}, and new units are not 0 where {Call(reader).name} reads them"
            )
    followers = [_follow(ctx, [one for its, one in flagged if its is ctx], atom) for ctx in contexts]
    powers = [{tensor: power for tensor, (power, _) in follower.outlets.items()} for follower in followers]
    if any(one != powers[0] for one in powers):
        raise NotTakenUp("mean runs over it, and in one mode otherwise than in the other")
    added = [one for follower in followers for one in follower.added]
    eps: dict[tuple[str, str], Added] = {}
    for one in added:
        place = find_eps(one.number, owners_of(one.node), modules)
        twice = place is not None and eps.setdefault(place[:2], one).power != one.power
        if place is None or twice or _read_elsewhere(place[2], one.number, contexts, added, modules):
            raise NotTakenUp(
                f"mean runs over it, and {one.number:g} is added to that, which must change along; keep the number in "
                "an attribute called eps that nothing else reads"
            )
    outlets = tuple(Outlet(tensor, power, followers[0].dims) for tensor, power in powers[0].items())
    return StatisticRemedy(outlets, tuple((*place, one) for place, one in eps.items()))


def _off_zero(ctx: Context, atom: Atom) -> Node | None:
    """What reads new units where they are not 0 any more, if anything does."""
    at_new: dict[Node, float] = {}
    for node in ctx.values:
        if node.op != "call_function" or node not in ctx.depends_on_input:
            continue
        sources = [source for source in node.all_input_nodes if source in at_new]
        if _carries(ctx, node, atom):
            at_new[node] = _at_new(ctx, node, at_new) if sources else 0.0
        elif any(at_new[source] for source in sources) and not Call(node).name.startswith("_assert"):
            return node
    return None


def _at_new(ctx: Context, node: Node, at_new: Mapping[Node, float]) -> float:
    """What an element-wise operation makes of one new unit; whatever it reads beside the units is taken to be 1."""

    def stand_in(source: Node) -> Tensor:
        weight = ctx.part(source)
        return torch.full((1, 1), at_new.get(source, 1.0 if weight is None else weight.tensor.neutral or 0.0))

    args, kwargs = map_arg((node.args, node.kwargs), stand_in)
    try:
        return float(node.target(*args, **kwargs))  # type: ignore[operator]
    except Exception:  # an operation on whole tensors keeps zeros, or the trial shows that it does not
        return max(abs(at_new.get(source, 0.0)) for source in node.all_input_nodes)


def _carries(ctx: Context, node: Node, atom: Atom) -> bool:
    value = ctx.values.get(node)
    return isinstance(value, tuple) and any(atom in leaves(dim) for dim in value)


def _is_read(ctx: Context, atom: Atom) -> bool:
    """Whether a weight is contracted with the units."""
    reading = ((view.tensor.dims, view.tensor.consumer_dims) for view in ctx.weights.values())
    return any(atom in leaves(dims[axis]) for dims, axes in reading for axis in axes)


def _read_elsewhere(
    holder: object, number: float, contexts: Sequence[Context], added: Sequence[Added], modules: Mapping[str, nn.Module]
) -> bool:
    """Whether an operation that does not change along reads the same attribute."""
    known = {one.node for one in added}
    for node in (node for ctx in contexts for node in ctx.values if node not in known):
        if number in [value for value in (*node.args, *node.kwargs.values()) if isinstance(value, float)]:
            theirs = find_eps(number, owners_of(node), modules)
            if theirs is not None and theirs[2] == holder:
                return True
    return False


def _follow(ctx: Context, flagged: Sequence[Flagged], atom: Atom) -> _Follower:
    """Follow what the means over `atom` change to the weights that can make up for it."""
    means: dict[Node, list[Dim]] = {}
    for one in flagged:
        if Call(one.node).name == "mean" and atom in leaves(one.dim):
            means.setdefault(one.node, []).append(one.dim)
    if len({tuple(sorted(size(dim) for dim in dims)) for dims in means.values()}) > 1:
        raise NotTakenUp("mean runs over it, together with different other widths")
    follower = _Follower(ctx, set(means), tuple(next(iter(means.values()), [])))
    follower.follow()
    return follower


class _Follower:
    """One pass over a trace: by which power of C / C' every value changes."""

    def __init__(self, ctx: Context, means: set[Node], dims: tuple[Dim, ...]):
        self.ctx, self.means, self.dims = ctx, means, dims
        self.powers: dict[Node, float] = {}
        self.outlets: dict[TensorUse, tuple[float, set[Node]]] = {}
        self.added: list[Added] = []

    def follow(self) -> None:
        """Fill the outlets and what is added.

        Raises:
            NotTakenUp: something else reads a mean first, or a weight that takes it up is read elsewhere too.
        """
        for node in self.ctx.values:
            power = self._result(node, Call(node)) if any(map(self._power, node.all_input_nodes)) else 0.0
            if power or node in self.means:
                self.powers[node] = power + (node in self.means)
        for node in self.powers:
            if any(user.op == "output" for user in node.users) and self.powers[node]:
                raise NotTakenUp("mean runs over it and reaches the outputs, and no weight makes up for that")
        for tensor, (_, places) in self.outlets.items():
            if any(user not in places for user in self._readers(tensor)):
                name = tensor.names[0]
                raise NotTakenUp(
                    f"mean runs over it, and {name!r}, which could make up for that, is read elsewhere too"
                )

    def _result(self, node: Node, call: Call) -> float:
        """The power of what a call yields."""
        name = call.name.rstrip("_") if node.op == "call_function" else ""
        power = self._power(call.at(0)) if name else 0.0
        if name in ("mul", "div"):
            return self._product(node, call.at(0), call.at(1), 1.0 if name == "mul" else -1.0)
        if name == "addcmul" and isinstance(call.at(1), Node):
            return self._equal(node, power, self._product(node, call.at(1), call.at(2), 1.0))
        if name in ("add", "sub") and isinstance(call.at(1), Node):
            return self._equal(node, power, self._power(call.at(1)))
        if name == "add" and isinstance(call.at(1), int | float):
            self.added.append(Added(node, float(call.at(1)), power, self.dims))
            return power
        if name in ("sqrt", "rsqrt", "reciprocal", "square"):
            return power * {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0, "square": 2.0}[name]
        if name == "pow" and isinstance(call.at(1), int | float):
            return power * float(call.at(1))
        if name in CONTRACTIONS and self._takes_up(node, call["weight"], -power):
            return 0.0
        if name in HOMOGENEOUS and all(not self._power(other) for other in node.all_input_nodes if other != call.at(0)):
            return power
        if name.startswith(("_assert", "assert")) or name == "sym_size":
            return 0.0
        raise NotTakenUp(f"mean runs over it, and {name or 'something'} reads that before a weight makes up for it")

    def _product(self, node: Node, one: object, other: object, sign: float) -> float:
        """The power of a product or quotient; a weight in it takes up what there is."""
        power = self._power(one) + sign * self._power(other)
        if power and (self._takes_up(node, other, -sign * power) or self._takes_up(node, one, -power)):
            return 0.0
        return power

    def _takes_up(self, node: Node, weight: object, power: float) -> bool:
        view = self.ctx.weight(weight)
        if view is None or view.tensor.kind != "parameter" or not isinstance(weight, Node) or not view.keeps_zeros:
            return False
        known, places = self.outlets.setdefault(view.tensor, (power, set()))
        places.add(node)
        if known != power:
            raise NotTakenUp(
                f"mean runs over it, and {view.tensor.names[0]!r} would have to make up for that in two ways"
            )
        return True

    def _equal(self, node: Node, one: float, other: float) -> float:
        if one != other:
            raise NotTakenUp(f"mean runs over it, and {Call(node).name} mixes that with what does not change along")
        return one

    def _power(self, node: object) -> float:
        return self.powers.get(node, 0.0) if isinstance(node, Node) else 0.0

    def _readers(self, tensor: TensorUse) -> Iterator[Node]:
        """The operations that read a weight, seen through views of it."""
        views = [node for node, view in self.ctx.weights.items() if view.tensor is tensor]
        return (user for node in views for user in node.users if user not in views)


def _factor(one: Outlet | Added, sizes: Mapping[Atom, int]) -> float:
    ratio = math.prod(size(dim) for dim in one.dims) / math.prod(size(dim, sizes) for dim in one.dims)
    return ratio**one.power
