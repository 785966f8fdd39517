"""Recurrent layers: the next step reads the hidden width as well as the next layer, so both readers are silenced."""

from __future__ import annotations

from torch.fx import Node

from growkit.graph.dimensions import Dim, Product, Sum
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.contraction import COMPUTED
from growkit.graph.rules.registry import rule

__all__ = ["cell", "recurrent"]

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(
    "lstm.input", "gru.input", "rnn_tanh.input", "rnn_relu.input", "lstm.data", "gru.data", "rnn_tanh.data",
    "rnn_relu.data",
)  # fmt: skip
def recurrent(ctx: Context, call: Call) -> list[Value]:
    """Layers and directions in turn: `w_ih[gates*H, I]`, `w_hh[gates*H, R]`, two biases `[gates*H]`, `w_hr[R, H]`.

    `R` is what the layer gives out: the projection by `w_hr`, or the hidden width `H` itself. All layers and directions
    share one initial state, so they share `H` and `R`. Packed sequences come as rows `[steps of all samples, I]`.
    """
    packed = call.key.endswith(".data")
    x = ctx.dims(call.first)
    if len(x) != (2 if packed else 3):
        raise NoRule
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    output, hidden = ctx.dims(states[0])[-1], ctx.dims(states[-1])[-1]
    for state in states:
        ctx.pin(ctx.dims(state)[0], "is the number of layers and directions")
        if packed:
            ctx.pin(ctx.dims(state)[1], "is the batch of a packed sequence")
        else:
            ctx.unify(ctx.dims(state)[1], x[0] if call["batch_first"] else x[1])
    if packed:
        ctx.pin(x[0], "is the length of a packed sequence")
    directions = 2 if call["bidirectional"] else 1
    cells = _cells(call["params"], call["num_layers"] * directions)
    if len(cells[0]) in (2, 4):
        ctx.unify(output, hidden)  # no projection
    fan_in, steps = x[-1], x[:-1]
    for layer in range(call["num_layers"]):
        for weights in cells[layer * directions : (layer + 1) * directions]:
            _cell(ctx, call, weights, fan_in, hidden, output, steps)
        fan_in = Sum([output] * directions) if directions > 1 else output
    return [(*steps, fan_in), *(ctx.dims(state) for state in states)]


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(ctx: Context, call: Call) -> Value:
    """One step of one layer."""
    x = ctx.dims(call["input"])
    states = call["hx"] if isinstance(call["hx"], (list, tuple)) else [call["hx"]]
    dims = [ctx.dims(state) for state in states]
    for state in dims:
        for one, other in zip(state, (*x[:-1], dims[0][-1]), strict=True):
            ctx.unify(one, other)
    weights = [call[name] for name in ("w_ih", "w_hh", "b_ih", "b_hh") if call[name] is not None]
    _cell(ctx, call, weights, x[-1], dims[0][-1], dims[0][-1], x[:-1])
    return dims if call.num_outputs > 1 else dims[0]


def _cells(params: list[Node], count: int) -> list[list[Node]]:
    length = len(params) // count
    return [params[start : start + length] for start in range(0, len(params), length)]


def _cell(ctx: Context, call: Call, cell: list[Node], fan_in: Dim, hidden: Dim, output: Dim, steps: Dims) -> None:
    """One layer in one direction."""
    inner, outer = ctx.dims(cell[0]), ctx.dims(cell[1])
    gates = ctx.fixed(GATES[call.name.removesuffix("_cell")], "is the number of gates")
    for weight, width in ((cell[0], fan_in), (cell[1], output)):
        dims = ctx.dims(weight)
        ctx.unify(dims[0], Product((gates, hidden)))
        ctx.unify(dims[1], width)
        if not ctx.consume(weight, 1):
            ctx.flag(dims[1], COMPUTED)
        ctx.produce(weight, 0)
        ctx.count(*steps, *dims)
    for extra in cell[2:]:
        dims = ctx.dims(extra)
        if len(dims) == 1:
            ctx.unify(dims[0], inner[0])
        else:
            ctx.unify(dims[0], outer[1])
            ctx.unify(dims[1], hidden)
            ctx.consume(extra, 1)
            ctx.count(*steps, *dims)
        ctx.produce(extra, 0)
