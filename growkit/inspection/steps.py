"""The steps of a drawing: leaf modules and the operations that matter, and the wires between them.

A trace has hundreds of operations; a person thinks in modules. All operations of a module with weights become one step,
operations that join several activations (add, cat, attention) become steps of their own, and the rest (views,
dropout, copies) is invisible: a wire runs through it. Norms, activations and pooling then join the step before them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import networkx as nx
from torch import nn

__all__ = ["Step", "Wire", "relative", "steps_of"]

ACTIVATIONS = frozenset(
    "relu relu6 hardtanh gelu silu sigmoid hardsigmoid hardswish tanh elu selu leaky_relu prelu softplus mish "
    "threshold softmax log_softmax".split()
)
LANDMARKS = frozenset(
    "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool2d mean flatten pixel_shuffle roll upsample_nearest2d "
    "upsample_bilinear2d".split()
)
"""Other operations on one activation that a reader wants to see."""

SYMBOLS = {"add": "+", "sub": "−", "mul": "×", "div": "÷", "scaled_dot_product_attention": "attention"}
ALWAYS = frozenset({"scaled_dot_product_attention", "matmul", "bmm", "einsum", "lstm", "gru"})


@dataclass(frozen=True)
class Wire:
    """A tensor that flows from one step into another.

    Attributes:
        source: number of the step it comes from.
        target: number of the step that reads it.
        shape: with the batch.
        sites: for each dimension the names of the sites that move it.
        refused: for each dimension why it cannot grow, or "".
        unit_dim: the dimension whose size is the width of the wire; None where no tensor flows.
    """

    source: int
    target: int
    shape: tuple[int, ...]
    sites: tuple[tuple[str, ...], ...]
    refused: tuple[str, ...]
    unit_dim: int | None

    @property
    def width(self) -> int | None:
        """The number of units; None where no tensor flows."""
        return None if self.unit_dim is None else self.shape[self.unit_dim]

    @property
    def movers(self) -> tuple[str, ...]:
        """The names of the sites that move the width; none where it is refused."""
        return () if self.unit_dim is None else self.sites[self.unit_dim]

    @property
    def reason(self) -> str:
        """Why the width cannot grow."""
        return "" if self.unit_dim is None else self.refused[self.unit_dim]


@dataclass
class Step:
    """One box of the drawing.

    Attributes:
        number: its place in the order of the forward pass.
        kind: "module", "op", "note" (an operation on one activation), "input" or "output".
        name: the module's path, or the raw parameters an operation reads.
        what: the type of the module, the operation, or the shape of an input.
        scope: path of the module that it stands in.
        notes: what follows at once and has no box of its own, such as norm and activation.
        nodes: the operations of the trace it stands for.
        inner: sites and their widths that are seen on no wire, such as the heads of attention.
        location: the user's "file:line".
        joins: when it may stand among the notes of the step before it: "scope", if both stand in one module; "module",
            also if that is a module further in; "", never.
    """

    number: int
    kind: str
    name: str
    what: str
    scope: str
    notes: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)
    inner: dict[str, int] = field(default_factory=dict)
    location: str = ""
    joins: str = ""

    def caption(self, frame: str) -> tuple[str, str]:
        """What stands in its box, within the frame of a module: a bold and a plain part."""
        if self.kind == "module":
            return relative(self.name, frame), self.what
        if self.kind in ("input", "output"):
            return self.kind, f"{self.name} {self.what}".strip()
        return self.what, " · ".join(filter(None, [relative(self.name, frame), *self.notes]))


def steps_of(network: nx.DiGraph, model: nn.Module) -> tuple[list[Step], list[Wire]]:
    """The steps of a network in the order of the forward pass, and the wires between them.

    Args:
        network: of `growkit.graph`.
        model: the module it was traced from, for the types of its parts.
    """
    collector = _Collector(network, dict(model.named_modules()))
    for node in network.nodes:
        collector.visit(node)
    steps, wires = _joined(collector.steps, list(collector.wires()))
    _note_inner_sites(network, steps, wires)
    return steps, wires


class _Collector:
    def __init__(self, network: nx.DiGraph, modules: Mapping[str, nn.Module]):
        self.steps: list[Step] = []
        self._network = network
        self._data: Mapping[str, dict[str, Any]] = dict(network.nodes(data=True))
        self._modules = modules
        self._origin: dict[str, int] = {}  # activation -> the step whose output it is, up to views
        self._weights: dict[str, tuple[str, ...]] = {}  # what is made of parameters only -> their names
        self._reads: list[tuple[str, str, int]] = []
        owners = {data["module"] for data in self._data.values() if data["kind"] == "op"}
        self._weighty = {
            self._data[reader]["module"] for node in self._of_kind("parameter") for reader in network[node]
        }
        self._fixed = {
            pair for node in self._of_kind("parameter") for pair in zip(*self._sizes_and_reasons(node), strict=True)
        }
        self._containers = {prefix for owner in owners for prefix in _prefixes(owner)}

    def _of_kind(self, kind: str) -> list[str]:
        return [node for node, data in self._data.items() if data["kind"] == kind]

    def _sizes_and_reasons(self, node: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
        return self._data[node]["shape"], self._data[node]["refused"]

    def visit(self, node: str) -> None:
        """Give a node of the trace its step, or let a wire run through it."""
        data = self._data[node]
        sources = list(self._network.predecessors(node))
        live = [source for source in sources if source in self._origin]
        if data["kind"] == "parameter":
            self._weights[node] = (data["name"],)
        elif data["kind"] == "input":
            shape = "×".join(map(str, data["shape"][1:]))
            self._origin[node] = self._new(node, "input", data["name"], shape, "")
        elif data["kind"] == "output":
            self._read(node, live, self._new(node, "output", "", "", ""))
        elif live:
            self._operation(node, data, sources, live)
        elif data["kind"] == "op":
            self._weights[node] = tuple(dict.fromkeys(name for s in sources for name in self._weights.get(s, ())))

    def wires(self) -> Iterator[Wire]:
        """What flows between the steps, each tensor once."""
        seen = set()
        for source, node, target in self._reads:
            edge = self._network.edges[source, node]
            unit_dim = _unit_dim(edge["shape"], edge["sites"], edge["refused"], self._fixed)
            wire = Wire(self._origin[source], target, edge["shape"], edge["sites"], edge["refused"], unit_dim)
            if wire.source != wire.target and (wire.source, wire.target) not in seen:
                seen.add((wire.source, wire.target))
                yield wire

    def _operation(self, node: str, data: dict[str, Any], sources: list[str], live: list[str]) -> None:
        base: str = data["op"].removeprefix("aten.").rsplit(".", 1)[0].rstrip("_")
        module, weights = data["module"], [name for s in sources for name in self._weights.get(s, ())]
        leaf = module in self._modules and module not in self._containers and bool(module)
        scope, symbol = module.rpartition(".")[0] if leaf else module, str(SYMBOLS.get(base, base))
        if leaf and module in self._weighty:
            step = self._module_step(node, module, scope)
        elif weights:
            step = self._new(node, "op", ", ".join(dict.fromkeys(weights)), symbol, scope)
        elif len({self._origin[source] for source in live}) > 1 or base in ALWAYS:
            step = self._new(node, "op", "", symbol, scope)
        elif base in ACTIVATIONS | LANDMARKS:
            step = self._new(node, "note", "", type(self._modules[module]).__name__ if leaf else base, scope)
            self.steps[step].joins = "module" if base in ACTIVATIONS else "scope"
        else:
            step = self._origin[live[0]]
            self._origin[node] = step
            if self.steps[step].kind != "input":
                self.steps[step].nodes.append(node)
            return
        self._read(node, live, step)
        self._origin[node] = step

    def _continues(self, module: str) -> bool:
        return bool(self.steps) and self.steps[-1].kind == "module" and self.steps[-1].name == module

    def _module_step(self, node: str, module: str, scope: str) -> int:
        """All operations of one call of a module are one step."""
        if self._continues(module):
            self.steps[-1].nodes.append(node)
            return self.steps[-1].number
        number = self._new(node, "module", module, _described(self._modules[module]), scope)
        self.steps[number].joins = "scope" if "Norm" in type(self._modules[module]).__name__ else ""
        return number

    def _new(self, node: str, kind: str, name: str, what: str, scope: str) -> int:
        number = len(self.steps)
        step = Step(number, kind, name, what, scope, nodes=[node], location=self._data[node]["location"])
        self.steps.append(step)
        return number

    def _read(self, node: str, live: Iterable[str], step: int) -> None:
        self._reads += [(source, node, step) for source in live]


def _unit_dim(
    shape: tuple[int, ...], sites: tuple[tuple[str, ...], ...], refused: tuple[str, ...], fixed: set[tuple[int, str]]
) -> int | None:
    """The dimension that counts units: one that can grow, else one that some weight has too, `fixed` as that is."""
    if not shape:
        return None
    usual = 2 if len(shape) == 3 else min(1, len(shape) - 1)  # [batch, time, units], [batch, units, ...]
    growing = [dim for dim, names in enumerate(sites) if names]
    counting = [dim for dim, pair in enumerate(zip(shape, refused, strict=True)) if pair[0] > 1 and pair in fixed]
    for found in (growing, counting):
        if found:
            return usual if usual in found else found[-1]
    return usual


def _prefixes(path: str) -> Iterator[str]:
    """The modules that a module stands in, with the root."""
    parts = path.split(".") if path else []
    return (".".join(parts[:i]) for i in range(len(parts)))


def _described(module: nn.Module) -> str:
    """The type of a module with what tells it from its like: kernel, stride, groups."""
    text = type(module).__name__
    kernel, stride, groups = (getattr(module, name, None) for name in ("kernel_size", "stride", "groups"))
    if isinstance(kernel, tuple):
        text += " " + "×".join(map(str, kernel))
        if isinstance(stride, tuple) and max(stride) > 1:
            text += f" /{max(stride)}"
    if isinstance(groups, int) and groups > 1:
        text += " depthwise" if groups == getattr(module, "in_channels", None) else f" {groups} groups"
    return text


def _joined(steps: list[Step], wires: list[Wire]) -> tuple[list[Step], list[Wire]]:
    """Norms, activations and pooling join the step before them where nothing else reads it."""
    host = {step.number: step.number for step in steps}
    readers: dict[int, set[int]] = {}
    sources: dict[int, set[int]] = {}
    for wire in wires:
        readers.setdefault(wire.source, set()).add(wire.target)
        sources.setdefault(wire.target, set()).add(wire.source)
    for step in steps:
        before = sources.get(step.number, set())
        if not step.joins or len(before) != 1:
            continue
        (source,) = before
        into = steps[host[source]]
        if len(readers[source]) == 1 and _may_join(step, into):
            host[step.number] = into.number
            into.notes += [_short(step), *step.notes]
            into.nodes += step.nodes
    kept = [step for step in steps if host[step.number] == step.number]
    place = {step.number: i for i, step in enumerate(kept)}
    moved = [
        replace(w, source=place[host[w.source]], target=place[host[w.target]])
        for w in wires
        if host[w.source] != host[w.target]
    ]
    for step in kept:
        step.number = place[step.number]
    return kept, moved


def _may_join(step: Step, into: Step) -> bool:
    if step.joins == "module" and into.kind == "module" and f"{into.scope}.".startswith(step.scope):
        return True
    return into.kind != "input" and into.scope == step.scope


def _short(step: Step) -> str:
    name = step.name.rpartition(".")[2]
    return step.what if step.kind != "module" or name.isdigit() else f"{name} {step.what}"


def relative(path: str, container: str) -> str:
    """The path of a module as seen from one that contains it."""
    return path[len(container) + 1 :] if container and path.startswith(container + ".") else path


def _note_inner_sites(network: nx.DiGraph, steps: list[Step], wires: list[Wire]) -> None:
    outer: dict[int, set[str]] = {step.number: set() for step in steps}
    for wire in wires:
        for number in (wire.source, wire.target):
            outer[number].update(wire.movers)
    for step in steps:
        for node in step.nodes:
            for tensor in (node, *network.predecessors(node)):
                data = network.nodes[tensor]
                for dim, sites in enumerate(data["sites"]):
                    if data["kind"] in ("op", "parameter") and (tensor in step.nodes or data["kind"] == "parameter"):
                        found = {name: data["shape"][dim] for name in sites if name not in outer[step.number]}
                        step.inner.update({name: min(size, step.inner.get(name, size)) for name, size in found.items()})
