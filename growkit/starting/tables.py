"""How a table is read: its delimiter, the column to predict, the columns that say nothing."""

from __future__ import annotations

import csv
import math
from itertools import islice, pairwise
from pathlib import Path

from growkit.data.tabular import Table, read_table
from growkit.errors import UserInputError
from growkit.starting.page import Section
from growkit.starting.recognise import Found

__all__ = ["table_section"]

TARGETS = (
    "target",
    "label",
    "labels",
    "class",
    "classes",
    "y",
    "outcome",
    "response",
    "category",
    "species",
    "diagnosis",
)
DELIMITERS = (",", ";", "\t", "|")
UNKNOWN = ("", "na", "n/a", "nan", "null", "none", "?", "-", ".", "missing", "unknown")
COUNTERS = ("id", "index", "idx", "row", "no", "nr", "number", "#", "unnamed: 0")
FEW = 20  # values that a column of text may always have


def table_section(found: Found, target: str | None) -> tuple[Section, list[str]]:
    """The settings that read a table, and what the user should know.

    Args:
        found: the file, and one to test on.
        target: the column to predict; None guesses it.

    Raises:
        UserInputError: the file is no table, or the column cannot be predicted.
    """
    delimiter = _delimiter(found.path)
    table = read_table(found.path, delimiter)
    chosen, why = (target, "as asked for") if target is not None else _guess(list(table.columns))
    if chosen in table.columns:  # else the reader names the nearest
        _check_target(table, chosen)
    left_out = {name: reason for name in table.columns if name != chosen and (reason := _useless(table, name))}
    reasons = "; ".join(f"{name!r} {reason}" for name, reason in left_out.items())
    if not set(table.columns) - {chosen, *left_out}:
        raise UserInputError(
            f"{found.path}: there must be a column to predict {chosen!r} from, but {reasons or 'it is the only one'}; "
            "the first line must name the columns, and --target the one to predict"
        )
    section = Section()
    section.put("name", "tabular", "a CSV with a header")
    section.put("path", str(found.path), "as seen from where growkit runs")
    section.put("target", chosen, f"the column to predict: {why}; the others: {_names(table, chosen)}")
    if found.test is not None:
        section.put("test_path", str(found.test), "a table of its own to test on; null splits one off")
    if delimiter != ",":
        section.put("delimiter", delimiter, "between cells")
    section.put("ignore", list(left_out), f"columns left out{': ' + reasons if reasons else ''}")
    notes = [f"column {name!r} is left out: it {reason}" for name, reason in left_out.items()]
    if target is None:
        notes.insert(0, f"column {chosen!r} is to be predicted, {why}; --target names another")
    if sum(map(_is_number, table.columns)) * 2 > len(table.columns):
        notes.append(f"{found.path}:1 looks like data, not like names of columns; the first line must name them")
    return section, notes


def _delimiter(file: Path) -> str:
    """The one that parts the first lines into as many cells each, and most; a comma where none does."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:
            lines = list(islice(opened, 20))
    except (OSError, UnicodeDecodeError):
        return ","  # the reader says what is wrong
    best, most = ",", 1
    for delimiter in DELIMITERS:
        try:
            counts = {len(row) for row in csv.reader(lines, delimiter=delimiter) if row}
        except csv.Error:
            continue
        if len(counts) == 1 and max(counts) > most:
            best, most = delimiter, max(counts)
    if most == 1 and lines:  # ragged in every way: then by the header alone
        best = max(DELIMITERS, key=lines[0].count)
    return best


def _guess(columns: list[str]) -> tuple[str, str]:
    lower = {name.lower(): name for name in reversed(columns)}
    for name in TARGETS:
        if name in lower:
            return lower[name], "guessed by its name"
    return columns[-1], "guessed, as the last one"


def _useless(table: Table, name: str) -> str | None:
    """Why a column cannot or should not be read; None if it should."""
    values = table.columns[name]
    blanks = sum(value.lower() in UNKNOWN for value in values)
    known = [value for value in values if value.lower() not in UNKNOWN]
    if "" in values:
        return f"has empty cells, in {values.count('')} of {len(values)} rows"
    if blanks and known and all(map(_is_number, known)):
        return f"has no number in {blanks} of {len(values)} rows"
    different = len(set(values))
    if table.is_numeric(name):
        steps = {after - before for before, after in pairwise(map(float, values))}
        return "counts the rows" if name.lower() in COUNTERS and steps == {1.0} else None
    return f"is text with {different} values in {len(values)} rows" if different > max(FEW, len(values) // 4) else None


def _check_target(table: Table, name: str) -> None:
    """Refuse a column that cannot be predicted.

    Raises:
        UserInputError: it has one value, one in nearly every row, or gaps between numbers.
    """
    values, remedy = table.columns[name], f"name the column to predict with --target; there are {_names(table, name)}"
    different, wrong = set(values), None
    gap = next((row for row, value in enumerate(values) if value.lower() in UNKNOWN), None)
    if len(different) == 1:
        wrong = "has the same value in all rows, which leaves nothing to learn"
    elif gap is not None and all(map(_is_number, different - {value for value in values if value.lower() in UNKNOWN})):
        wrong = f"holds {values[gap]!r} among numbers ({table.where(gap)}); drop such rows"
    elif not table.is_numeric(name) and len(different) * 2 > len(values):
        wrong = f"is text with {len(different)} values in {len(values)} rows, too many for classes"
    if wrong is not None:
        raise UserInputError(f"{table.path}: column {name!r} {wrong}; or {remedy}")


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _names(table: Table, target: str) -> str:
    others = [repr(name) for name in table.columns if name != target]
    return ", ".join(others[:6]) + (f" and {len(others) - 6} more" if len(others) > 6 else "")
