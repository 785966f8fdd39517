"""The legend of a drawing: every site with its colour and cost, every reason for a refusal with its count."""

from __future__ import annotations

from collections.abc import Iterator

from growkit.inspection import ink
from growkit.inspection.facts import Facts, RefusalGroup, SiteFacts
from growkit.inspection.frames import Drawing, pattern
from growkit.inspection.ink import MUTED, REFUSED
from growkit.report.console import human

__all__ = ["LEGEND", "legend_of"]

LEGEND = 336.0  # width
TOP = 92.0
ENTRY = 38.0


def legend_of(drawing: Drawing, facts: Facts, colours: dict[str, str], x: float) -> tuple[list[str], float]:
    """The legend as SVG, and where it ends.

    Args:
        drawing: for the sites that stand for others.
        facts: the sites and refusals.
        colours: of the sites that are drawn, by name.
        x: its left edge.
    """
    parts = [ink.text(x, TOP + 4, "", bold="Widths that can grow")]
    y = TOP + 26
    for group in _groups(drawing, facts):
        parts += _entry(group, colours.get(group[0].name, REFUSED), x, y)
        y += ENTRY
    if not facts.sites:
        parts.append(ink.text(x, y, "none", fill=MUTED))
        y += 22
    if facts.refusals:
        y += 12
        parts.append(ink.text(x, y, "", bold="Widths that cannot, and why"))
        y += 22
    for refusal in facts.refusals:
        lines = [*_refusal(refusal, x, y)]
        parts += lines
        y += 16 * len(ink.wrap(_sentence(refusal), LEGEND - 16, 11)) + 22
    return parts, y + 20


def _groups(drawing: Drawing, facts: Facts) -> list[list[SiteFacts]]:
    """The sites, those that are drawn as one together."""
    first = {name: drawn for drawn, names in drawing.twins.items() for name in names}
    groups: dict[str, list[SiteFacts]] = {}
    for site in facts.sites:
        groups.setdefault(first.get(site.name, site.name), []).append(site)
    return list(groups.values())


def _entry(group: list[SiteFacts], colour: str, x: float, y: float) -> Iterator[str]:
    site, names = group[0], [one.name for one in group]
    title = f"<title>{ink.clean(', '.join(names))}</title>"
    swatch = ink.line(f"M{x:.1f} {y - 4:.1f}h22", colour, 4)
    width = ink.text(x + 30, y, "", bold=str(site.width), fill=colour)
    name_x = x + 40 + 7.2 * len(str(site.width))
    name = ink.text(name_x, y, ink.fit(pattern(names), x + LEGEND - name_x))
    cost = f"{site.params_per_unit:,} parameters, {human(site.flops_per_unit)}FLOPs per unit"
    verified = [one.verified for one in group]
    mark = "" if None in verified else (" ✓ verified" if all(verified) else " ✗ not verified")
    times = f"{len(group)} sites; " if len(group) > 1 else ""
    steps = "by whole copies; " if site.by_copies else ""
    below = ink.text(x + 30, y + 15, times + steps + cost + mark, size=11, fill=MUTED)
    yield f"<g>{swatch}{width}{name}{below}{title}</g>"


def _refusal(refusal: RefusalGroup, x: float, y: float) -> Iterator[str]:
    names = ", ".join(f"{name} ({width})" for name, width in refusal.widths)
    lines = ink.wrap(_sentence(refusal), LEGEND - 16, 11)
    body = "".join(ink.text(x + 16, y + 16 * i, one, size=11) for i, one in enumerate(lines))
    where = ink.text(x + 16, y + 16 * len(lines), ink.fit(names, LEGEND - 16, 11), size=11, fill=MUTED)
    yield f"<g>{ink.lock(x, y)}{body}{where}<title>{ink.clean(names)}</title></g>"


def _sentence(refusal: RefusalGroup) -> str:
    return f"{len(refusal.widths)} × {refusal.reason}"
