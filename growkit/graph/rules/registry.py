"""The table of rules: which function says what an operation means for the widths."""

from __future__ import annotations

from collections.abc import Callable

import torch

from growkit.graph.rules.context import Call, Context, Value

__all__ = ["Rule", "find_rule", "rule"]

Rule = Callable[[Context, Call], Value]

_RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations.

    Args:
        names: "conv2d" covers every overload of `aten.conv2d`, "max.dim" one of them; other libraries give their
            namespace: "my_ops::scan". A later rule takes the place of an earlier one.

    Example:
        >>> @rule("my_ops::negate")
        ... def negate(ctx, call):
        ...     return ctx.dims(call.first)
    """

    def register(function: Rule) -> Rule:
        for name in names:
            _RULES[name.replace("::", ".").removeprefix("aten.")] = function
        return function

    return register


def find_rule(call: Call) -> Rule | None:
    """The rule for a call: by overload, then by name, then element-wise if the operation says that of itself."""
    found = _RULES.get(call.key) or _RULES.get(call.name)
    if found is None and torch.Tag.pointwise in getattr(call.node.target, "tags", ()):
        return _RULES["pointwise"]
    return found
