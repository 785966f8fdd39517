"""Places for one more layer: where a module may become deeper without changing its function, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch.fx import Node
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from growkit.formulas import FORMULAS
from growkit.graph.depth_place import DepthPlace, PlaceRefusal, Places, Structure, structure_of
from growkit.graph.residual import NoPlace, calls_of, is_idempotent, nodes_of, read_block
from growkit.graph.tracing import Example, Trace, arguments_of, location_of, trace_both_modes

__all__ = ["find_places"]

DENSE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
NO_CHILDREN = (
    "holds no layer and no residual block in a row of children, as nn.Sequential and nn.ModuleList keep them; put what "
    "another one may follow into such a row"
)
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


def find_places(model: nn.Module, example: Example) -> Places:
    """Find every place where a module can become deeper without changing its function.

    Two kinds are known. After a *residual block* `y = x + branch(x)`, with any number of branches and perhaps under an
    idempotent activation, a copy of it may stand whose branches end in zeros. After a *layer* (linear, or convolution)
    with an idempotent activation f, f(f(x)) = f(x), or none before the next layer, the identity layer and f may stand.
    A normaliser between the two is not repeated: no setting of it is the identity in train mode and in eval mode.

    The module must be a child of an `nn.Sequential`, an `nn.ModuleList` or any other module whose children are called 0
    to n - 1. Whether the forward takes one more child as it comes is seen when `growkit.deepen` tries.

    Args:
        model: any module; it is left as it was.
        example: one batch of inputs, best of two samples or more, as for `growkit.find_sites`.

    Returns:
        The places in the order of the modules, with what may not be followed in `.refusals`; where there are neither,
        the model itself is refused, under the name "".

    Raises:
        ModelError: if the module cannot be traced.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> places = find_places(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(2, 4))
        >>> [(place.name, place.kind, place.position, place.params_added) for place in places]
        [('0', 'layer', 2, 72)]
    """
    finder = _Finder(model, trace_both_modes(model, example), arguments_of(example), structure_of(model))
    places, refusals = [], []
    for container, child, position in _children(model):
        try:
            place = finder.place(container, child, position)
        except NoPlace as error:
            refusals.append(PlaceRefusal(child, error.reason, error.location))
        else:
            places += [place] if place is not None else []
    if not places and not refusals:
        refusals = [PlaceRefusal("", NO_CHILDREN, None)]
    return Places(tuple(places), tuple(refusals))


def _children(model: nn.Module) -> Iterator[tuple[str, str, int]]:
    """Container, child and the child's position, for every container whose children stand in a row."""
    for name, module in model.named_modules():
        numbers = [str(number) for number in range(len(module._modules))]
        if _runs_in_order(module) or list(module._modules) == numbers:
            for position, child in enumerate(module._modules):
                yield name, f"{name}.{child}" if name else child, position


def _runs_in_order(module: nn.Module) -> bool:
    return type(module).forward is nn.Sequential.forward


@dataclass(frozen=True)
class _Finder:
    model: nn.Module
    traces: tuple[Trace, Trace]
    inputs: tuple[tuple, dict[str, Any]]
    structure: Structure

    def place(self, container: str, name: str, position: int) -> DepthPlace | None:
        """The place after a module; None where nobody would ask.

        Raises:
            NoPlace: there is none, for a reason.
        """
        module = self.model.get_submodule(name)
        if type(module) in DENSE:
            self._check_alone(name, module)
            return self._after_layer(container, name, module, position)
        torchs_own = type(module).__module__.startswith("torch.nn.") and not list(module.children())
        if torchs_own or not list(module.parameters()):
            return None
        try:
            self._check_alone(name, module)
            return self._after_block(container, name, module, position)
        except NoPlace:
            if isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict):
                return None  # its children speak for themselves
            raise

    def _check_alone(self, name: str, module: nn.Module) -> None:
        """The module stands in one place, runs once, and shares nothing."""
        names = [other for other, found in self.model.named_modules(remove_duplicate=False) if found is module]
        if len(names) > 1:
            raise NoPlace(f"is registered under several names ({', '.join(names)})")
        counts = [calls_of(trace, name) for trace in self.traces]
        if counts != [1, 1]:
            raise NoPlace(f"must be called once in train and once in eval mode, is called {counts[0]} and {counts[1]}")
        own = {id(parameter) for parameter in module.parameters()}
        shared = [
            other
            for other, parameter in self.model.named_parameters(remove_duplicate=False)
            if id(parameter) in own and not other.startswith(f"{name}.")
        ]
        if shared:
            raise NoPlace(f"shares a parameter with {shared[0]}")

    def _after_block(self, container: str, name: str, module: nn.Module, position: int) -> DepthPlace:
        blocks = [read_block(self.model, trace, name) for trace in self.traces]
        if blocks[0].branches != blocks[1].branches:
            raise NoPlace("has other branches in train mode than in eval mode")
        number = _numbering(self.model, container, position)
        if number is not None:
            raise NoPlace(f"keeps its own number in the attribute {number}, which a copy would repeat")
        outside = [end for branch in blocks[0].branches for end in branch if not end.startswith(f"{name}.")]
        if outside:
            raise NoPlace(f"has a branch that ends in a parameter of another module, {outside[0]}")
        branches = tuple(tuple(end.removeprefix(f"{name}.") for end in branch) for branch in blocks[0].branches)
        return self._found(
            name,
            "residual block",
            container,
            position + 1,
            sum(parameter.numel() for parameter in module.parameters()),
            _flops(self.traces[1], nodes_of(self.traces[1], name)) // self._batch(),
            blocks[0].location,
            branches=branches,
        )

    def _after_layer(self, container: str, name: str, module: nn.Module, position: int) -> DepthPlace:
        nodes = [nodes_of(trace, name) for trace in self.traces]
        if [len(found) for found in nodes] != [1, 1]:
            raise NoPlace("does more than one operation")
        _check_layer(module)
        weight = module.get_parameter("weight")
        if not weight.requires_grad:
            raise NoPlace("has frozen weights, so a layer like it could not learn")
        norm, activation, end = self._what_follows(container, position, [found[0] for found in nodes])
        width, group = weight.shape[0], getattr(module, "groups", 1)
        fan_in = width // group * prod(weight.shape[2:])
        outputs = nodes[1][0].meta["val"].numel() // self._batch()
        biased = module.bias is not None or norm is not None
        return self._found(
            name,
            "layer",
            container,
            end + 1,
            width * (fan_in + biased),
            2 * outputs * fan_in,
            location_of(nodes[0][0]),
            activation=activation,
            norm=norm,
        )

    def _what_follows(self, container: str, position: int, nodes: Sequence[Node]) -> tuple[str | None, str | None, int]:
        """Normaliser, activation module, and the position of what the new layer stands behind."""
        parent = self.model.get_submodule(container)
        prefix = f"{container}." if container else ""
        names = [f"{prefix}{name}" for name in list(parent._modules)[position + 1 :]]
        following = [self.model.get_submodule(name) for name in names]
        if not _runs_in_order(parent):
            readers = [next(iter(node.users)) if len(node.users) == 1 else None for node in nodes]
            onwards = all(reader is not None and self._reads(names[:1], reader) for reader in readers)
            if onwards or all(reader is not None and is_idempotent(reader) for reader in readers):
                return None, None, position
            raise NoPlace("is followed by no idempotent activation, such as relu", nodes[0])
        skip = int(bool(following) and isinstance(following[0], NORMS))
        norm = names[0] if skip else None
        if not skip and following and type(following[0]) in DENSE:
            return None, None, position
        if len(following) > skip and self._is_activation(names[skip], following[skip]):
            return norm, names[skip], position + 1 + skip
        raise NoPlace("is followed by no idempotent activation, such as ReLU", nodes[0])

    def _reads(self, names: Sequence[str], reader: Node) -> bool:
        return any(reader in nodes_of(trace, name) for trace in self.traces for name in names)

    def _is_activation(self, name: str, module: nn.Module) -> bool:
        """Whether a module without tensors of its own does one idempotent operation, in both modes."""
        if list(module.parameters()) or list(module.buffers()):
            return False
        if type(module) is nn.Identity:
            return True
        nodes = [nodes_of(trace, name) for trace in self.traces]
        return all(len(calls) >= 1 and all(is_idempotent(node) for node in calls[:1]) for calls in nodes) and all(
            len(found) == calls_of(trace, name) for found, trace in zip(nodes, self.traces, strict=True)
        )

    def _batch(self) -> int:
        leaves = [x for x in (*self.inputs[0], *self.inputs[1].values()) if isinstance(x, Tensor) and x.dim()]
        return max(1, len(leaves[0])) if leaves else 1

    def _found(self, *args: Any, **kwargs: Any) -> DepthPlace:
        return DepthPlace(*args, **kwargs, structure=self.structure, inputs=self.inputs)


def _check_layer(module: nn.Module) -> None:
    """A layer of this form with as many inputs as outputs must be able to be the identity."""
    if isinstance(module, nn.Linear):
        return
    assert isinstance(module, nn.modules.conv._ConvNd)
    if any(size % 2 == 0 for size in module.kernel_size):
        raise NoPlace(f"has a kernel without a centre, {module.kernel_size}, so a layer like it would shift its input")


def _numbering(model: nn.Module, container: str, position: int) -> str | None:
    """The attribute, by its path in the block, in which each block of this class keeps its position; None for none."""
    # by name, for a block may stand in several places
    children = [child for child in model.get_submodule(container)._modules.values() if child is not None]
    alike = [(number, child) for number, child in enumerate(children) if type(child) is type(children[position])]
    if len(alike) < 2:
        return None
    tables = [_integers(child) for _, child in alike]
    for attribute in tables[0]:
        offsets = {table.get(attribute, -1) - number for table, (number, _) in zip(tables, alike, strict=True)}
        if len(offsets) == 1:
            return attribute
    return None


def _integers(block: nn.Module) -> dict[str, int]:
    return {
        f"{name}.{attribute}" if name else attribute: value
        for name, module in block.named_modules()
        for attribute, value in vars(module).items()
        if type(value) is int and not attribute.startswith("_")
    }


def _flops(trace: Trace, nodes: Sequence[Node]) -> int:
    """FLOPs of some operations, counted by running them on the trace's fake tensors."""
    values = [node.meta.get("val") for node in trace.graph.nodes]
    mode = detect_fake_mode([value for value in values if isinstance(value, Tensor)])
    if mode is None:
        return 0
    with mode, FlopCounterMode(display=False, custom_mapping=dict(FORMULAS)) as counter:
        for node in nodes:
            args, kwargs = tree_map_only(Node, lambda one: one.meta.get("val"), (node.args, dict(node.kwargs)))
            if hasattr(node.target, "_schema"):
                node.target(*args, **kwargs)  # type: ignore[operator]
    return int(counter.get_total_flops())
