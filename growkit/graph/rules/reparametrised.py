"""Weights computed from other parameters by torch's own reparametrisations."""

from __future__ import annotations

from dataclasses import replace

from growkit.graph.rules.context import Call, Context, Value
from growkit.graph.rules.registry import rule

__all__ = ["weight_norm"]


@rule("_weight_norm", "_weight_norm_interface")
def weight_norm(ctx: Context, call: Call) -> Value:
    """`g v / |v|`, the norm taken over all dimensions but `dim`.

    Along `dim` every slice has a norm of its own; a slice of zeros has no direction, so nothing can be silenced there.
    Along the others a new entry of `v` must be zero, whatever reads the weight: then the norms stay, and the weight has
    a zero there.
    """
    v, g, dim = ctx.dims(call["v"]), ctx.dims(call["g"]), call["dim"]
    if dim == -1:  # one norm for all
        for one in v:
            ctx.flag(one, "the norm of a weight runs over it")
    else:
        ctx.unify(v[dim], g[dim])
    ctx.neutral(call["g"], 1.0)
    for axis, one in enumerate(v):
        if axis != dim % len(v) and not ctx.consume(call["v"], axis):
            ctx.flag(one, "the norm of a weight runs over it")
    if call.num_outputs > 1:
        return [v, g]
    if (view := ctx.part(call["v"])) is not None:
        ctx.parts[call.node] = replace(view, except_along=view.positions[dim])
    return v
