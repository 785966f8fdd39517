"""Tables: a CSV with a header, one column to predict, numbers and categories in the others."""

from __future__ import annotations

import csv
import difflib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from growkit.config.data import TabularSettings
from growkit.data.records import Source, Split
from growkit.data.text import check_utf8
from growkit.errors import DataError

__all__ = ["Table", "read_table", "read_tabular"]

LARGEST = torch.finfo(torch.float32).max
MOST_CLASSES = 50  # that whole numbers may be taken for, where the task is not said


@dataclass(frozen=True)
class Table:
    """A CSV as text.

    Attributes:
        path: the file.
        columns: values by name of the column, as they stand there.
        lines: the line of the file that each row ends on, for messages.
    """

    path: Path
    columns: dict[str, list[str]]
    lines: list[int]

    def numbers(self, name: str) -> list[float]:
        """The values of a column as numbers.

        Raises:
            DataError: one is no finite number.
        """
        return [self._number(name, row) for row in range(len(self.lines))]

    def _number(self, name: str, row: int) -> float:
        text = self.columns[name][row]
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not abs(value) <= LARGEST:
            raise DataError(
                f"{self.where(row)}: column {name!r} must hold finite numbers of at most {LARGEST:.3g}, got {text!r}"
            )
        return value

    def where(self, row: int) -> str:
        """File and line of a row."""
        return f"{self.path}:{self.lines[row]}"

    def check_filled(self, names: Sequence[str]) -> None:
        """Refuse empty cells in columns that are read.

        Raises:
            DataError: naming the first one.
        """
        for name in names:
            if "" in self.columns[name]:
                raise DataError(
                    f"{self.where(self.columns[name].index(''))}: column {name!r} must have a value in every row, got "
                    "an empty cell; fill it, drop the row, or leave the column out with data.ignore"
                )

    def is_numeric(self, name: str) -> bool:
        """Whether all values of a column are numbers."""
        return all(_is_number(text) for text in self.columns[name])


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_table(path: Path, delimiter: str = ",", setting: str = "data.path") -> Table:
    """Read a CSV with a header; `setting` is what names it.

    Raises:
        DataError: the file is missing, no UTF-8, has no header or no rows, or a row has another number of cells.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: {setting} must name a CSV file that can be read, got: {error.strerror}") from error
    check_utf8(path, content, "a table")
    reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: a table must be a CSV, got: {error}") from error
    twice = sorted({name for name in header if header.count(name) > 1 or not name})
    if twice or not header:
        hint = "; pandas writes a column without a name, unless to_csv gets index=False" if header[:1] == [""] else ""
        raise DataError(f"{path}:1: the first line must name every column once, got {twice or 'nothing'}{hint}")
    if not rows:
        raise DataError(f"{path}: a table must have rows below its header, got none")
    for line, row in rows:
        if len(row) != len(header):
            raise DataError(f"{path}:{line}: a row must have {len(header)} cells as the header has, got {len(row)}")
    columns = {name: [row[place].strip() for _, row in rows] for place, name in enumerate(header)}
    return Table(path, columns, [line for line, _ in rows])


def read_tabular(settings: TabularSettings) -> Source:
    """Features [N, F] and classes [N] or values [N, 1] of a CSV.

    Numbers stay numbers, other columns become one 0/1 column for each of their values.

    Raises:
        DataError: as `read_table`; or a column is unknown, a cell that is read is empty, or a category or class stands
            in the test table alone.
    """
    table = read_table(Path(settings.path), settings.delimiter)
    features = _features(table, settings)
    table.check_filled([*features, settings.target])
    remedy = "leave the column out with data.ignore, or list it in data.categories"
    categories = {
        name: sorted(set(table.columns[name]))
        for name in features
        if name in settings.categories or not _holds_numbers(table, name, remedy)
    }
    classes = _classes(table, settings)
    tables = {"train": table}
    if settings.test_path is not None:
        tables["test"] = read_table(Path(settings.test_path), settings.delimiter, "data.test_path")
        if list(tables["test"].columns) != list(table.columns):
            raise DataError(f"{settings.test_path}:1: the columns must be those of {table.path}")
        tables["test"].check_filled([*features, settings.target])
    splits = {
        part: Split(_inputs(one, features, categories), _targets(one, settings.target, classes))
        for part, one in tables.items()
    }
    wide = [len(categories[name]) if name in categories else 1 for name in features]
    scaled = torch.tensor([name not in categories for name in features]).repeat_interleave(torch.tensor(wide))
    notes = _notes(table, settings, classes)
    values = classes is None
    return Source(table.path.name, splits.pop("train"), splits, notes=notes, scaled=scaled, scales_targets=values)


def _features(table: Table, settings: TabularSettings) -> list[str]:
    """The columns to predict from, in the order of the file."""
    for role, names in (
        ("target", [settings.target]),
        ("categories", settings.categories),
        ("ignore", settings.ignore),
    ):
        for name in names:
            if name not in table.columns:
                near = difflib.get_close_matches(name, table.columns, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else _other_delimiter(table, settings)
                raise DataError(
                    f"{table.path}:1: data.{role} must name a column, got {name!r}{hint}; there are "
                    f"{', '.join(table.columns)}"
                )
    twice = {settings.target} & {*settings.categories, *settings.ignore} or {*settings.categories} & {*settings.ignore}
    if twice:
        raise DataError(
            f"{table.path}:1: a column must have one part, but data.target, data.categories and data.ignore name "
            f"{min(twice)!r} twice"
        )
    features = [name for name in table.columns if name != settings.target and name not in settings.ignore]
    if not features:
        raise DataError(f"{table.path}: there must be a column to predict from, beside {settings.target!r}")
    return features


def _other_delimiter(table: Table, settings: TabularSettings) -> str:
    """A hint where the header seems to have another delimiter than the settings."""
    (first, *others), known = table.columns, [one for one in ";\t|," if one != settings.delimiter]
    found = next((one for one in known if not others and one in first), None)
    return "" if found is None else f"; data.delimiter may be {found!r}"


def _holds_numbers(table: Table, name: str, remedy: str) -> bool:
    """Whether the values of a column are numbers and no names.

    Raises:
        DataError: most of them are, so that the others are gaps or mistakes.
    """
    values = table.columns[name]
    wrong = [row for row, text in enumerate(values) if not _is_number(text)]
    if 0 < len(wrong) < len(values) / 2:
        raise DataError(
            f"{table.where(wrong[0])}: column {name!r} must hold finite numbers, as most of its rows do, got "
            f"{values[wrong[0]]!r}, the first of {len(wrong)}; fill it, drop the row, {remedy}"
        )
    return not wrong


def _classes(table: Table, settings: TabularSettings) -> list[str] | None:
    """The classes of the target in their order, None for regression."""
    if settings.task == "regression":
        return None
    values = table.columns[settings.target]
    if settings.task == "auto":
        numeric = _holds_numbers(table, settings.target, "or set data.task: classification for classes")
    else:
        numeric = table.is_numeric(settings.target)
    distinct = sorted(set(values), key=(lambda text: (float(text), text)) if numeric else None)
    whole = all(float(text).is_integer() for text in distinct) if numeric else True
    if settings.task == "auto" and numeric and not (whole and len(distinct) <= MOST_CLASSES):
        return None
    return distinct


def _notes(table: Table, settings: TabularSettings, classes: Sequence[str] | None) -> tuple[str, ...]:
    """What was decided without being told."""
    if settings.task != "auto" or (classes is not None and not table.is_numeric(settings.target)):
        return ()
    taken, other = ("values", "classification") if classes is None else (f"{len(classes)} classes", "regression")
    return (
        f"{table.path}: the numbers of {settings.target!r} are taken for {taken}; data.task: {other} says otherwise",
    )


def _inputs(table: Table, features: Sequence[str], categories: Mapping[str, Sequence[str]]) -> Tensor:
    columns = []
    for name in features:
        if name not in categories:
            columns.append(torch.tensor(table.numbers(name))[:, None])
            continue
        numbers = _numbered(table, name, categories[name], "category")
        columns.append(torch.nn.functional.one_hot(numbers, len(categories[name])).float())
    return torch.cat(columns, 1)


def _targets(table: Table, target: str, classes: Sequence[str] | None) -> Tensor:
    if classes is None:
        return torch.tensor(table.numbers(target))[:, None]
    return _numbered(table, target, classes, "class")


def _numbered(table: Table, name: str, known: Sequence[str], noun: str) -> Tensor:
    """The place of each value of a column among those that are known."""
    places = {text: number for number, text in enumerate(known)}
    for row, text in enumerate(table.columns[name]):
        if text not in places:
            shown = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "")
            raise DataError(
                f"{table.where(row)}: {noun} {text!r} of column {name!r} is not in the training table ({shown})"
            )
    return torch.tensor([places[text] for text in table.columns[name]])
