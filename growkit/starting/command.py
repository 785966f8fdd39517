"""What the command `growkit init` does."""

from __future__ import annotations

import re
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from growkit.config import load_config
from growkit.errors import DataError, UserInputError

if TYPE_CHECKING:
    from growkit.starting.draft import Draft

__all__ = ["init"]


def init(
    place: Path,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    target: str | None = None,
    kind: str | None = None,
    force: bool = False,
) -> None:
    """Look at a user's data and write settings that run, after trying them.

    Args:
        place: a file or folder.
        overrides: `key.path=value`, on top of what is chosen.
        out: the file to write; None names it after the data.
        target: the column of a table to predict; None guesses it.
        kind: what to take the data for; None decides by what is there.
        force: write over a file that is there.

    Raises:
        UserInputError: the data cannot be used, or the file cannot be written; nothing has been written.
    """
    _check_place(place)
    out = _default_out(place) if out is None else out
    _check_out(out, force)
    typer.echo(f"reading   {place}")  # all of it, which takes a while where there is much
    from growkit.starting.draft import draft  # from here on torch is imported
    from growkit.starting.recognise import recognise

    found = recognise(place, kind)
    if target is not None and found.kind != "table":
        raise UserInputError(f"--target names a column of a table, but {found.path} was taken for {found.kind}")
    try:
        made = draft(found, target, overrides)
        facts = _tried(made.text(place), out.name)
    except DataError as error:
        raise DataError(f"{error}; nothing was written{_hint(str(error), place)}") from error
    _write(out, made.text(place))
    _show(made, facts, out)


def _default_out(place: Path) -> Path:
    """A file in the working folder, named after the data."""
    name = re.sub(r"[^\w.-]+", "-", place.resolve().name if place.is_dir() else place.stem).strip(".-")
    return Path(f"{name or 'data'}.yaml")


def _check_place(place: Path) -> None:
    """What can be refused before anything is read."""
    try:
        str(place).encode()
        there = place.exists()
    except UnicodeEncodeError:
        raise UserInputError(f"{str(place)!r}: a name must be UTF-8 to stand in a YAML file; rename it") from None
    except (OSError, ValueError) as error:  # a name too long, or with a zero byte
        raise UserInputError(f"{str(place)!r:.120}: cannot be looked at: {error!s:.120}") from error
    if not there:
        raise UserInputError(f"{place}: there is no such file or folder; give one that holds your data")


def _check_out(out: Path, force: bool) -> None:
    """Refuse what cannot or should not be written."""
    try:
        if out.suffix not in (".yaml", ".yml"):
            raise UserInputError(f"--out must name a .yaml file, got {out}")
        if out.is_dir():
            raise UserInputError(f"{out}: is a folder; give a file with --out")
        if out.exists() and not force:
            raise UserInputError(f"{out}: is there already; choose another with --out, or write over it with --force")
        if not out.absolute().parent.is_dir():
            raise UserInputError(f"{out}: its folder does not exist; make it, or choose another file with --out")
    except (OSError, ValueError) as error:
        raise UserInputError(f"--out {str(out)!r:.120}: cannot be looked at: {error!s:.120}") from error


def _hint(message: str, place: Path) -> str:
    known = re.search(r"data\.skip_broken|data\.cache|data\.ignore", message)
    example = {"data.skip_broken": "data.skip_broken=true", "data.cache": "data.cache=false"}
    setting = example.get(known.group(), "data.ignore=[NAME]") if known else "data.limit=1000"
    return f"; settings go behind, as in `growkit init {shlex.quote(str(place))} {setting}`" if known else ""


def _tried(text: str, name: str) -> dict[str, Any]:
    """What a run of these settings would do, found as the run finds it."""
    from growkit.dry_run import describe

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, name)
        file.write_text(text, encoding="utf-8")
        return describe(load_config(file))


def _write(out: Path, text: str) -> None:
    from growkit.report import write_atomically

    try:
        write_atomically(out, text.encode())
    except OSError as error:
        raise UserInputError(f"{out}: cannot be written: {error.strerror}; choose another file with --out") from error


def _show(made: Draft, facts: dict[str, Any], out: Path) -> None:
    growth = "to grow as training decides"
    if facts["final"] is not None:
        growth = f"to grow to {facts['final']['params']:,} in {len(facts['plan'])} events"
    typer.echo(f"found     {made.found}")
    typer.echo(f"model     {made.why}: {facts['seed']['params']:,} parameters, {growth}")
    typer.echo(f"training  {made.values['train']['epochs']} epochs of {facts['steps_per_epoch']} steps")
    for note in dict.fromkeys([*made.notes, *facts["warnings"]]):
        typer.echo(f"note      {note}")
    typer.echo(f"file      {out}")
    typer.echo(f"next      growkit run {shlex.quote(str(out))}")
