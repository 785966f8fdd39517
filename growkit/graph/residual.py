"""Read a residual block off its trace: the stream that passes through it, and the weights that end its branches.

A block computes `y = x + branch(x) + ...`, perhaps under an idempotent activation `f`: `y = f(x + branch(x))`. With
the last weights of every branch at zero it passes on whatever another such block put out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import Node

from growkit.graph.rules.context import Call, shape_of
from growkit.graph.tracing import Trace, location_of

__all__ = ["Block", "NoPlace", "calls_of", "is_idempotent", "nodes_of", "read_block"]

RELAYOUT = frozenset(
    "view reshape unsqueeze squeeze t transpose permute movedim expand alias contiguous clone to _to_copy flatten "
    "unflatten numpy_T mT".split()
)
"""The same entries, laid out otherwise."""

LINEAR = RELAYOUT | frozenset(
    "dropout feature_dropout alpha_dropout slice select roll flip neg mean sum div avg_pool1d avg_pool2d avg_pool3d "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d chunk split split_with_sizes unbind getitem".split()
)
"""What makes zeros of zeros in its first argument, and has a slope there."""

PROJECTIONS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d matmul mm addmm".split()
)

NORMS = frozenset("batch_norm layer_norm group_norm instance_norm rms_norm".split())

ACTIVATIONS = frozenset(
    "relu relu6 hardtanh threshold clamp clamp_min gelu silu hardswish mish tanh softsign elu celu selu leaky_relu "
    "sigmoid hardsigmoid softplus".split()
)


class NoPlace(Exception):
    """Why a module cannot be followed by a copy of itself.

    Attributes:
        reason: completes the sentence "this module ...".
        location: the user's "file:line" that the reason points at, if known.
    """

    def __init__(self, reason: str, node: Node | None = None):
        super().__init__(reason)
        self.reason = reason
        self.location = None if node is None else location_of(node)


@dataclass(frozen=True)
class Block:
    """What the trace says of a residual block.

    Attributes:
        branches: per branch, the parameters that make it zero when they are zero.
        location: the user's "file:line" of the last operation.
    """

    branches: tuple[tuple[str, ...], ...]
    location: str | None


def calls_of(trace: Trace, name: str) -> int:
    """How often the forward calls the module of that name."""
    stacks = [node.meta.get("nn_module_stack") or {} for node in trace.graph.nodes]
    return len({key for stack in stacks for key, (path, _) in stack.items() if path == name})


def nodes_of(trace: Trace, name: str) -> list[Node]:
    """The operations inside the module of that name, in order."""
    return [node for node in trace.graph.nodes if node.op == "call_function" and name in _paths(node)]


def _paths(node: Node) -> Iterator[str]:
    return (path for path, _ in (node.meta.get("nn_module_stack") or {}).values())


def read_block(model: nn.Module, trace: Trace, name: str) -> Block:
    """The branches of the residual block `name`.

    Raises:
        NoPlace: it is none, or a branch cannot be silenced so that it still learns.
    """
    reader = _Reader(model, trace, set(nodes_of(trace, name)))
    output = reader.output()
    stream = reader.follow(output)
    reader.check_activations(output, stream)
    reader.check_mutations(stream)
    branches = tuple(reader.ends(branch) for branch in stream.branches)
    if not branches:
        raise NoPlace("adds nothing to its input", output)
    return Block(branches, location_of(output))


def is_idempotent(node: Node) -> bool:
    """Whether an element-wise operation of one tensor, applied twice, is the same as once, to the last bit."""
    if not _is_pointwise(node):
        return False
    around = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e-4, -1e-4, 1e4, -1e4])
    grid = torch.cat([torch.linspace(-20.0, 20.0, 4001), around])
    try:
        once = _apply(node, grid)
        return once.shape == grid.shape and torch.equal(_apply(node, once), once)
    except Exception:  # an operation may refuse the grid for any reason
        return False


@dataclass
class _Stream:
    """The way of the input through the block, walked from the output back."""

    start: Node
    path: list[Node] = field(default_factory=list)
    branches: list[Node] = field(default_factory=list)
    activations: list[Node] = field(default_factory=list)


@dataclass
class _Reader:
    model: nn.Module
    trace: Trace
    region: set[Node]

    def output(self) -> Node:
        """The one node that the rest of the model reads."""
        if not self.region:
            raise NoPlace("is not called as a module in the forward, so its operations are not known")
        read = [node for node in self.region if any(user not in self.region for user in node.users)]
        if len(read) != 1:
            raise NoPlace(f"must have one output that the model reads, has {len(read)}")
        return read[0]

    def follow(self, node: Node) -> _Stream:
        """The stream that ends in `node`."""
        if node not in self.region:
            if self.parameter(node) is not None:
                raise NoPlace("adds a parameter, not its input", node)
            return _Stream(node)
        call = Call(node)
        name = _name(node)
        if name in ("add", "sub"):
            return self._close(node, call)
        if self._keeps(node, call):
            stream = self.follow(call.first)
        elif is_idempotent(node):
            stream = self.follow(call.first)
            stream.activations.append(node)
        else:
            raise NoPlace(f"does not add to its input: its output comes from {name}", node)
        stream.path.append(node)
        return stream

    def _close(self, node: Node, call: Call) -> _Stream:
        """Follow the operand of an addition that is the shortcut; the other one is a branch."""
        first, second = call.at(0), call.at(1)
        if not (isinstance(first, Node) and isinstance(second, Node)):
            raise NoPlace("adds a constant to its input", node)
        scaled = call.get("alpha", 1) != 1 or _name(node) == "sub"
        found: list[_Stream] = []
        failure: NoPlace | None = None
        for shortcut, branch in ((first, second), *(() if scaled else ((second, first),))):
            try:
                stream = self.follow(shortcut)
            except NoPlace as error:
                failure = failure or error
                continue
            if _shape(shortcut) != _shape(node):
                raise NoPlace("broadcasts its input", node)
            stream.branches.append(branch)
            stream.path.append(node)
            found.append(stream)
        if not found:
            raise NoPlace("has a shortcut that is not the identity", node) from failure
        if len(found) == 2:
            raise NoPlace("adds its input more than once", node)
        return found[0]

    def _keeps(self, node: Node, call: Call) -> bool:
        """Whether an operation hands its input on as it is."""
        name = _name(node)
        if name in ("dropout", "feature_dropout", "alpha_dropout"):
            return call.get("p") == 0 or not call.get("train")
        return name in RELAYOUT and _same_tensor(node, call.first) and name not in ("permute", "transpose", "t")

    def check_activations(self, output: Node, stream: _Stream) -> None:
        """An activation on the stream is the identity only on what comes out of it: the block must end in it."""
        if not stream.activations:
            return
        last = next(node for node in reversed(stream.path) if not self._keeps(node, Call(node)))
        same = {(_name(node), str(node.args[1:]), str(node.kwargs)) for node in stream.activations}
        if last is not stream.activations[-1] or len(same) > 1:
            raise NoPlace(f"applies {_name(stream.activations[0])} to its stream but does not end in it", output)

    def check_mutations(self, stream: _Stream) -> None:
        """Nothing beside the stream may write to it."""
        on_stream = {stream.start, *stream.path}
        for node in self.region - on_stream:
            if _name(node) + "_" == Call(node).name and _base(node.all_input_nodes[0]) in on_stream:
                raise NoPlace(f"changes its input in place with {Call(node).name}", node)

    def parameter(self, node: Node) -> str | None:
        """The parameter behind a node, up to layout."""
        node = _base(node)
        source = self.trace.sources.get(node.name) if node.op == "placeholder" else None
        return source.name if source is not None and source.kind == "parameter" else None

    def ends(self, node: Node) -> tuple[str, ...]:
        """The trainable parameters that make `node` zero, and can leave zero again at the first step."""
        own = self.parameter(node)
        if own is not None:
            return self._trainable([own], node)
        if node not in self.region:
            raise NoPlace("has a branch that nothing in it can silence", node)
        name, inputs = _name(node), node.all_input_nodes
        weights = [weight for source in inputs if (weight := self.parameter(source)) is not None]
        if name in PROJECTIONS or name in NORMS:
            if not weights:
                raise NoPlace(f"has a branch that ends in {name} without weights of its own to set to zero", node)
            return self._trainable(weights, node)
        if name in ("mul", "div") or name in LINEAR:
            return self._either(node, inputs[:1] if name != "mul" else _parameters_first(self, inputs))
        if name in ("add", "sub", "cat") and len(inputs) > 1:
            return tuple(dict.fromkeys(end for source in inputs for end in self.ends(source)))
        if _passes_zero(node):
            return self.ends(inputs[0])
        raise NoPlace(f"has a branch that ends in {name}, which weights at zero do not silence or would deaden", node)

    def _either(self, node: Node, factors: list[Node]) -> tuple[str, ...]:
        """A product is zero where one factor is."""
        failure = NoPlace("has a branch that nothing in it can silence", node)
        for factor in factors:
            try:
                return self.ends(factor)
            except NoPlace as error:
                failure = error
        raise failure

    def _trainable(self, names: list[str], node: Node) -> tuple[str, ...]:
        frozen = [name for name in names if not self.model.get_parameter(name).requires_grad]
        if frozen:
            raise NoPlace(f"has a branch that ends in frozen weights ({frozen[0]}), so a copy could not learn", node)
        return tuple(dict.fromkeys(names))


def _base(node: Node) -> Node:
    """The node that a view, or a copy laid out otherwise, was made of."""
    while node.op == "call_function" and _name(node) in RELAYOUT:
        node = node.all_input_nodes[0]
    return node


def _parameters_first(reader: _Reader, nodes: list[Node]) -> list[Node]:
    return sorted(nodes, key=lambda node: reader.parameter(node) is None)


def _name(node: Node) -> str:
    """The operation without namespace, overload and the mark of an in-place one."""
    return Call(node).name.rstrip("_") if hasattr(node.target, "_schema") else getattr(node.target, "__name__", "?")


def _shape(node: Node) -> tuple[int, ...] | None:
    return shape_of(node.meta.get("val"))


def _same_tensor(node: Node, source: Node) -> bool:
    types = {getattr(one.meta.get("val"), "dtype", None) for one in (node, source)}
    return _shape(node) == _shape(source) and len(types) == 1


def _is_pointwise(node: Node) -> bool:
    """Whether an operation works entry by entry on one tensor; torch does not tag those that work in place."""
    tagged = torch.Tag.pointwise in getattr(node.target, "tags", ()) or _name(node) in ACTIVATIONS
    constant = not any(isinstance(arg, Node) for arg in (*node.args[1:], *node.kwargs.values()))
    return tagged and constant and len(node.all_input_nodes) == 1


def _apply(node: Node, x: Tensor) -> Tensor:
    return node.target(x.clone(), *node.args[1:], **node.kwargs)  # type: ignore[operator]


def _passes_zero(node: Node) -> bool:
    """Whether an activation is 0 at 0 with a slope there."""
    if not _is_pointwise(node):
        return False
    try:
        with torch.enable_grad():
            zero = torch.zeros(1, requires_grad=True)
            value = _apply(node, zero)
            (slope,) = torch.autograd.grad(value.sum(), zero)
    except Exception:  # an operation may refuse for any reason
        return False
    return bool(value == 0) and bool(slope != 0) and bool(slope.isfinite())
