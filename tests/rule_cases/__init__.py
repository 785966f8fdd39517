"""The table of operations and idioms, by family."""

from rule_cases import contraction, elementwise, idioms, positions, regions, selection, shape, statistics
from rule_cases.kit import Case

CASES: dict[str, Case] = {
    name: case
    for family in (contraction, elementwise, idioms, positions, regions, selection, shape, statistics)
    for key, table in vars(family).items()
    if key.isupper() and isinstance(table, dict) and key != "FUNCTIONS"
    for name, case in table.items()
}
