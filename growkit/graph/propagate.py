"""Run the rules over a trace: every node gets its dimensions, every parameter learns how it is used."""

from __future__ import annotations

import operator
from collections.abc import Iterator

from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from growkit.graph.dimensions import Dim, Reason, fixed, free, pin, size
from growkit.graph.rules import find_rule
from growkit.graph.rules.context import Call, Context, Dims, TensorUse, Value, WeightView, shape_of
from growkit.graph.rules.writing import note_writes
from growkit.graph.ties import pin_ties
from growkit.graph.tracing import Trace, location_of

__all__ = ["flat", "propagate", "tensors_of"]

REGIONS = frozenset({
    "wrap", "wrap_with_set_grad_enabled", "wrap_with_autocast", "wrap_activation_checkpoint",
    "tag_activation_checkpoint",
})  # fmt: skip
"""Operations that run a body once on their operands; others (branches, loops, maps) are left to rules."""


def tensors_of(model: nn.Module) -> dict[str, TensorUse]:
    """One record for each parameter and buffer, under all its names (tied weights share one)."""
    records: dict[int, TensorUse] = {}
    for kind, pairs in (
        ("parameter", model.named_parameters(remove_duplicate=False)),
        ("buffer", model.named_buffers(remove_duplicate=False)),
    ):
        for name, tensor in pairs:
            known = records.setdefault(id(tensor), TensorUse((), kind, tuple(free(extent) for extent in tensor.shape)))
            known.names = (*known.names, name)
            known.uniform = _uniform(tensor) if kind == "buffer" else None
    pin_ties(model, records)
    return {name: record for record in records.values() for name in record.names}


def _uniform(tensor: Tensor) -> float | None:
    """The value of all entries, if they are equal."""
    if tensor.numel() < 2 or tensor.is_meta or tensor.is_sparse or tensor.is_complex():
        return None
    first = tensor.flatten()[0]
    return float(first) if bool((tensor == first).all()) else None


def propagate(trace: Trace, tensors: dict[str, TensorUse]) -> Context:
    """Run the rules over one trace.

    Args:
        trace: the trace of a module.
        tensors: the parameters and buffers of the module, shared by its traces; updated in place.

    Returns:
        The notebook of the trace.
    """
    ctx = Context(trace.training)
    for node in trace.graph.nodes:
        if node.op == "placeholder":
            _placeholder(ctx, node, trace, tensors)
        else:
            _visit(ctx, node)
        if node.op == "output":
            _pin_inputs(ctx, node, Reason("is the model's output"))
    ctx.call = None
    return ctx


def _visit(ctx: Context, node: Node) -> None:
    if node.op == "call_function":
        ctx.call = Call(node)
        ctx.values[node] = _call_value(ctx, ctx.call)
        note_writes(ctx, ctx.call)
    elif node.op == "get_attr":
        ctx.values[node] = _fresh(node.meta.get("val"), Reason("is the size of a constant"))


def _placeholder(ctx: Context, node: Node, trace: Trace, tensors: dict[str, TensorUse]) -> None:
    source = trace.sources[node.name]
    if source.kind in ("parameter", "buffer"):
        record = tensors[source.name]
        record.used = record.used or bool(node.users)
        record.location = record.location or next((place for user in node.users if (place := location_of(user))), None)
        ctx.values[node] = record.dims
        ctx.weights[node] = WeightView(record, tuple(range(len(record.dims))))
        return
    batch, text = Reason("is the batch", listed=False), f"is the model's {source.kind}"
    value = _fresh(node.meta.get("val"), Reason(text))
    if isinstance(value, tuple) and value and source.kind == "input":
        value = (fixed(size(value[0]), batch), *value[1:])
    ctx.values[node] = value
    if source.kind == "input":
        ctx.depends_on_input.add(node)


def _call_value(ctx: Context, call: Call) -> Value:
    node = call.node
    if any(source in ctx.depends_on_input for source in node.all_input_nodes):
        ctx.depends_on_input.add(node)
    if node.target is operator.getitem:
        source, position = node.args
        items = ctx.values.get(source)  # type: ignore[arg-type]
        return items[position] if isinstance(items, list) else None  # type: ignore[index]
    region = _region(node)
    if region is not None:
        return _inline(ctx, node, region)
    rule = find_rule(call)
    if rule is None and not ctx.tensors(call):
        return _fresh(node.meta.get("val"), ctx.reason(f"is a size written in the forward ({call.name})"))
    if rule is None:
        name = node.target if isinstance(node.target, OpOverload) else getattr(node.target, "__name__", node.target)
        return _refuse(ctx, call, f"meets an operation without a rule: {name}")
    try:
        value = rule(ctx, call)
    except Exception as error:  # a form the rule does not foresee must refuse the widths, not stop the analysis
        if _depends_on_values(node):
            return _refuse(ctx, call, DATA_DEPENDENT)
        return _refuse(
            ctx, call, f"meets a form of {node.target} that its rule does not cover ({type(error).__name__})"
        )
    if _sizes(value) != _sizes(_fresh(node.meta.get("val"), Reason(""))):
        return _refuse(ctx, call, f"meets a form of {node.target} that its rule does not cover (other sizes)")
    return value


DATA_DEPENDENT = (
    "meets rows whose number depends on the values of the data, as those of nonzero() or of a mask, which no rule "
    "follows; weigh all rows with zeros in place of choosing some"
)


def _depends_on_values(node: Node) -> bool:
    """Whether a size in an operand or the result is known at run time only."""
    values = [one.meta.get("val") for one in (node, *node.all_input_nodes)]
    sizes = [extent for value in values if isinstance(value, Tensor) for extent in value.shape]
    return any(not isinstance(extent, int) for extent in sizes)


def _region(node: Node) -> GraphModule | None:
    """The body of a region under `no_grad`, autocast or checkpointing; None for other operations."""
    if str(node.target) not in REGIONS:
        return None
    owner = node.graph.owning_module
    sources = [source for source in node.all_input_nodes if source.op == "get_attr" and owner is not None]
    bodies = [body for source in sources if isinstance(body := getattr(owner, str(source.target), None), GraphModule)]
    return bodies[0] if len(bodies) == 1 else None


def _inline(ctx: Context, node: Node, region: GraphModule) -> Value:
    """Run the rules over the body of a region as if it stood in the outer graph."""
    body = next(i for i, arg in enumerate(node.args) if isinstance(arg, Node) and arg.op == "get_attr")
    inner = [one for one in region.graph.nodes if one.op == "placeholder"]
    for one, outer in zip(inner, node.args[body + 1 :], strict=True):
        if isinstance(outer, Node):
            ctx.outer[one] = outer
            ctx.values[one] = ctx.values.get(outer)
            ctx.weights.update({one: ctx.weights[outer]} if outer in ctx.weights else {})
            ctx.parts.update({one: ctx.parts[outer]} if outer in ctx.parts else {})
            ctx.depends_on_input.update({one} if outer in ctx.depends_on_input else {})
    for one in region.graph.nodes:
        if one.op != "placeholder":
            _visit(ctx, one)
    results = next(one for one in region.graph.nodes if one.op == "output").args[0]
    return [ctx.values.get(one) if isinstance(one, Node) else None for one in results]  # type: ignore[union-attr]


def _refuse(ctx: Context, call: Call, text: str) -> Value:
    """The safe answer: all widths that go in or come out are fixed."""
    name = str(call.node.target)
    ctx.unknown_ops[name] = ctx.unknown_ops.get(name, 0) + 1
    _pin_inputs(ctx, call.node, ctx.reason(text))
    return _fresh(call.node.meta.get("val"), ctx.reason(text))


def _pin_inputs(ctx: Context, node: Node, reason: Reason) -> None:
    for source in node.all_input_nodes:
        for dim in flat(ctx.values.get(source)):
            pin(dim, reason)


def _fresh(value: object, reason: Reason) -> Value:
    """New fixed dimensions for a fake tensor or a list of them."""
    if isinstance(value, (tuple, list)):
        return [_fresh(item, reason) for item in value]
    shape = shape_of(value)
    return None if shape is None else tuple(fixed(extent, reason) for extent in shape)


def flat(value: Value) -> Iterator[Dim]:
    """All dimensions of a value, of the tensors in a list too."""
    if isinstance(value, tuple):
        yield from value
    for item in value if isinstance(value, list) else ():
        yield from flat(item)


def _sizes(value: Value) -> object:
    if isinstance(value, tuple):
        dims: Dims = value
        return tuple(size(dim) for dim in dims)
    return [_sizes(item) for item in value] if isinstance(value, list) else None
