"""The facts of a model as a table: with colours on a terminal, as plain lines in a pipe."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from growkit.inspection.facts import Facts, RefusalGroup, SiteFacts
from growkit.report.console import human

__all__ = ["print_facts", "short_location"]

COLUMNS = ("site", "width", "producers", "consumers", "pass-through", "params/unit", "FLOPs/unit", "where")
NUMBERS = ("width", "params/unit", "FLOPs/unit")
MOST = 3  # names or places that are listed before the rest is counted


def print_facts(facts: Facts, console: Console) -> None:
    """Print the header, the sites and the refusals."""
    rows = [_row(site, inside=console.is_terminal) for site in facts.standing]
    header = [*_header(facts), *([""] if rows else [])]
    if not console.is_terminal:
        print("\n".join([*header, *(_aligned([COLUMNS, *rows]) if rows else ()), *_refusals(facts.refusals)]))
        return
    console.print(Text("\n".join(header)))
    if rows:
        console.print(_table(COLUMNS, rows))
    console.print(Text("\n".join(_refusals(facts.refusals))))


def short_location(location: str | None) -> str:
    """A "file:line" seen from the working folder or from site-packages; "" for None."""
    if not location:
        return ""
    here = os.getcwd() + os.sep
    if location.startswith(here):
        return location[len(here) :]
    return re.sub(r"^.*[/\\](?:site|dist)-packages[/\\]", "", location)


def _header(facts: Facts) -> Iterator[str]:
    shapes = ", ".join("x".join(map(str, shape)) for shape in facts.input_shapes)
    yield f"model     {facts.target}: {facts.model} on {shapes}"
    yield f"size      {facts.params:,} parameters, {human(facts.flops)}FLOPs per sample"
    yield f"sites     {len(facts.standing)} may grow and reach {facts.reach:.1%} of the parameters"
    tried = [site for site in facts.sites if site.verified is not None]
    if facts.worst_change is not None:
        yield (
            f"verified  {len(facts.standing)} of {len(tried)}, grown together on a perturbed copy; the outputs changed "
            f"by {facts.worst_change:.1e} of their size"
        )
    elif tried:
        yield f"verified  none of {len(tried)}: each failed on a perturbed copy, for the reason given below"
    if facts.not_checked:
        yield f"unchecked {', '.join(facts.not_checked)}: the model does not bear it"
    if facts.path_specialised:
        yield "path      the forward branches on values: all this holds for the path of the example only"
    if facts.unknown_ops:
        yield "unknown   " + ", ".join(f"{op} ({count})" for op, count in facts.unknown_ops.items())


def _row(site: SiteFacts, *, inside: bool) -> tuple[str, ...]:
    """The cells of a site; `inside` writes modules beside the site's own as ".name", for lack of room."""
    beside = site.name.rpartition(".")[0] if inside else ""
    return (
        site.name,
        _width(site),
        _listed(site.producers, beside),
        _listed(site.consumers, beside),
        _listed(site.pass_through, beside),
        f"{site.params_per_unit:,}",
        human(site.flops_per_unit),
        short_location(site.location),
    )


def _width(site: SiteFacts) -> str:
    """Units, and what they are channels of where they are none themselves; "xn" where growth is by whole copies."""
    width = str(site.width) if site.channels in (None, site.width) else f"{site.width} ({site.channels})"
    return f"{width} xn" if site.by_copies else width


def _listed(names: Sequence[str], beside: str) -> str:
    """The first module of several tensors, and how many other modules there are; raw parameters by their own name."""
    owners = list(dict.fromkeys(re.sub(r"[._](weight|bias|running_mean|running_var)$", "", name) for name in names))
    if not owners:
        return "-"
    first = owners[0].removeprefix(beside) if beside and owners[0].startswith(beside + ".") else owners[0]
    return first + (f" +{len(owners) - 1}" if len(owners) > 1 else "")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        table.add_column(
            name,
            justify="right" if name in NUMBERS else "left",
            style="bold" if name == "site" else "",
            no_wrap=name in NUMBERS,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.rjust(width) if name in NUMBERS else cell.ljust(width)
            for cell, width, name in zip(row, widths, rows[0], strict=True)
        ]
        yield "  ".join(cells).rstrip()


def _refusals(groups: Sequence[RefusalGroup]) -> Iterator[str]:
    for tried, heading in ((True, "failed    {} when tried"), (False, "refused   {} may not grow")):
        some = [group for group in groups if group.tried is tried]
        if some:
            yield ""
            yield heading.format(sum(len(group.widths) for group in some))
            yield from _reasons(some)


def _reasons(groups: Sequence[RefusalGroup]) -> Iterator[str]:
    for group in groups:
        yield f"  {len(group.widths):>4} × {group.reason}"
        yield "         " + _some([f"{name} ({width})" for name, width in group.widths])
        if group.locations:
            yield "         at " + _some([short_location(place) for place in group.locations])


def _some(items: Sequence[str]) -> str:
    more = len(items) - MOST
    return ", ".join(items[:MOST]) + (f" and {more} more" if more > 0 else "")
