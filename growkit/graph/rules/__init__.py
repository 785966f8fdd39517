"""What each operation means for the widths, one file per family; without a rule the widths it touches are refused."""

from __future__ import annotations

from growkit.graph.rules import contraction, elementwise, norm, recurrent, reduction, selection, shape
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
    "selection",
    "shape",
]
