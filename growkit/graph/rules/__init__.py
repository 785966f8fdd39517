"""What each operation means for the widths, one file per family; without a rule the widths it touches are refused."""

from __future__ import annotations

from growkit.graph.rules import (
    contraction,
    distance,
    elementwise,
    joining,
    mixing,
    norm,
    products,
    recurrent,
    reduction,
    reparametrised,
    scatter,
    selection,
    shape,
    windows,
)
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
    "distance",
    "elementwise",
    "find_rule",
    "joining",
    "mixing",
    "norm",
    "products",
    "recurrent",
    "reduction",
    "reparametrised",
    "rule",
    "scatter",
    "selection",
    "shape",
    "windows",
]
