"""What each operation means for the widths, one file per family; an operation without a rule refuses the widths it touches."""

from __future__ import annotations

from growkit.graph.rules import contraction, elementwise, norm, recurrent, reduction, shape
from growkit.graph.rules.context import Call, Context, Dims, NoRule, Value
from growkit.graph.rules.registry import Rule, find_rule, rule

__all__ = [
    "Call",
    "Context",
    "Dims",
    "NoRule",
    "Rule",
    "Value",
    "contraction",
    "elementwise",
    "find_rule",
    "norm",
    "recurrent",
    "reduction",
    "rule",
    "shape",
]
