"""The drawing as SVG: self-contained, without scripts, with a tooltip wherever a text was shortened."""

from __future__ import annotations

from collections.abc import Iterator

from growkit.inspection import ink
from growkit.inspection.facts import Facts
from growkit.inspection.frames import Drawing, pattern
from growkit.inspection.ink import MUTED, REFUSED
from growkit.inspection.layout import Box, Ring, Route, layout_of
from growkit.inspection.legend import LEGEND, legend_of
from growkit.inspection.steps import Wire, relative
from growkit.report.console import human

__all__ = ["svg_of"]

PALETTE = (
    "#1f6feb", "#c2410c", "#2b8a3e", "#9333a8", "#c2255c", "#0b7285",
    "#8a5a00", "#5f3dc4", "#4d7c0f", "#a61e4d", "#1e3a8a", "#7a4b35",
)  # fmt: skip
SHADES = "#f3f6f9", "#e9edf2"
FONT = "'Liberation Sans', Arial, 'Helvetica Neue', 'Segoe UI', sans-serif"


def svg_of(drawing: Drawing, facts: Facts) -> str:
    """The drawing of a model as an SVG document.

    Args:
        drawing: what stands where.
        facts: for heading and legend.
    """
    layout = layout_of(drawing)
    colours = _colours(drawing)
    legend_x = layout.width + 36
    legend, legend_bottom = legend_of(drawing, facts, colours, legend_x)
    outgoing: dict[int, list[Wire]] = {}
    for wire in drawing.wires:
        outgoing.setdefault(wire.source, []).append(wire)
    parts = [*_heading(facts, legend_x + LEGEND - 24)]
    parts += [part for ring in layout.rings for part in _ring(ring, min(box.x for box in layout.boxes.values()))]
    parts += [_route(route, colours) for route in layout.routes]
    parts += [_box(box, colours) for box in layout.boxes.values()]
    parts += [part for box in layout.boxes.values() for part in _widths(box, outgoing, colours)]
    width, height = legend_x + LEGEND + 24, max(layout.height, legend_bottom)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="{FONT}">',
            f"<title>{ink.clean(facts.target)}</title>",
            '<rect width="100%" height="100%" fill="#ffffff"/>',
            *parts,
            *legend,
            "</svg>\n",
        ]
    )


def _colours(drawing: Drawing) -> dict[str, str]:
    """A colour for each site that is drawn, in the order of the forward pass; twins have one."""
    seen: dict[str, None] = {}
    inner = {step.number: step.inner for step in drawing.root.steps()}
    wires: dict[int, list[Wire]] = {}
    for wire in drawing.wires:
        wires.setdefault(wire.source, []).append(wire)
    for number, sites in inner.items():
        seen.update(dict.fromkeys([*sites, *(name for wire in wires.get(number, []) for name in wire.movers)]))
    first = {name: drawn for drawn, names in drawing.twins.items() for name in names}
    drawn = dict.fromkeys(first.get(name, name) for name in seen)
    by_drawn = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(drawn)}
    return {name: by_drawn[first.get(name, name)] for name in [*seen, *first] if first.get(name, name) in by_drawn}


def _heading(facts: Facts, room: float) -> Iterator[str]:
    yield ink.text(24, 38, "", bold=ink.fit(facts.target, room, 18), size=18, tooltip=facts.target)
    sites = f"{len(facts.standing)} growth site" + "s" * (len(facts.standing) != 1)
    size = f"{facts.model}, {facts.params:,} parameters, {human(facts.flops)}FLOPs per sample"
    note = "; only the path of the example" if facts.path_specialised else ""
    yield ink.text(24, 60, f"{size}; {sites} reach {facts.reach:.0%} of the parameters{note}", fill=MUTED)


def _ring(ring: Ring, left: float) -> Iterator[str]:
    """A frame with its title right of the main column's spine, so that no wire runs through the text."""
    frame, right = ring.frame, ring.x + ring.width
    yield ink.rect(ring.x, ring.y, ring.width, ring.height, radius=8, fill=SHADES[(ring.depth + 1) % 2])
    x, room = left + 48, right - left - 60 - (48 if frame.count > 1 else 0)
    short = relative(pattern(frame.paths), ring.within)
    title = ink.fit(short if short.strip("*0123456789.") else pattern(frame.paths), room)
    kind = frame.type if room > 7.0 * (len(title) + 1 + len(frame.type)) else ""
    tooltip = f"{frame.type} {', '.join(frame.paths)}"
    yield ink.text(x, ring.y + 18, kind, bold=title, fill=MUTED, tooltip=tooltip)
    if frame.count > 1:
        yield ink.rect(right - 50, ring.y + 5, 42, 18, radius=9, fill=ink.INK, stroke="none")
        yield ink.text(right - 29, ring.y + 18, "", bold=f"× {frame.count}", fill="#ffffff", anchor="middle")


def _route(route: Route, colours: dict[str, str]) -> str:
    wire, path = route.wire, ink.rounded(route.points)
    names = [colours[name] for name in wire.movers]
    main = names[0] if names else REFUSED
    strokes = ink.line(path, main, 3 if names else 2)
    others = [colour for colour in names if colour != main]
    if others:  # a concatenation has the units of several sites
        strokes += ink.line(path, others[0], 3, dashed=True)
    return f"<g>{strokes}{ink.arrow(route.points, main)}<title>{ink.clean(_meaning(wire))}</title></g>"


def _meaning(wire: Wire) -> str:
    """What a tooltip says of a wire."""
    shape = "×".join(map(str, wire.shape)) or "no tensor"
    if wire.movers:
        return f"width {wire.width} of [{shape}], grows with {', '.join(wire.movers)}"
    return f"width {wire.width} of [{shape}] cannot grow: it {wire.reason or 'has one unit'}"


def _box(box: Box, colours: dict[str, str]) -> str:
    step, width = box.step, box.width
    fill = {"module": "#ffffff", "input": "#dfe9f7", "output": "#dfe9f7"}.get(step.kind, "#fff7e0")
    radius = 6 if step.kind == "module" else 14
    chips, room = _chips(box, colours)
    parts = [ink.rect(box.x, box.y, width, box.height, radius=radius, fill=fill, stroke="#98a1ac")]
    bold, rest = step.caption(box.frame)
    if step.kind == "module":
        bold = ink.fit(bold, room - min(len(rest), 16) * 6.6)
        rest = _shortened(rest, room - len(bold) * 6.2)
    parts.append(ink.text(box.x + 12, box.y + 18.5, rest, bold=bold))
    if step.notes and step.kind == "module":
        notes = _shortened(" · ".join(step.notes), width - 24)
        parts.append(ink.text(box.x + 12, box.y + 36, notes, size=11, fill=MUTED))
    full = " · ".join(filter(None, [step.name, step.what, *step.notes, step.location]))
    return f"<g>{''.join(parts)}<title>{ink.clean(full)}</title></g>{''.join(chips)}"


def _shortened(content: str, room: float) -> str:
    most = int(room / (11 * ink.ADVANCE))
    return content if len(content) <= most else content[: most - 1] + "…"


def _chips(box: Box, colours: dict[str, str]) -> tuple[list[str], float]:
    """The widths that stay inside a step, at its right end, and the room that is left of them."""
    right, parts = box.x + box.width - 6, []
    for name, size in box.step.inner.items():
        wide = 14 + 7.0 * len(str(size))
        right -= wide + 4
        colour = colours.get(name, REFUSED)
        title = f"<title>{ink.clean(f'width {size} inside, grows with {name}')}</title>"
        shape = ink.rect(right, box.y + 5, wide, 18, radius=9, fill="#ffffff", stroke=colour)
        label = ink.text(right + wide / 2, box.y + 18, "", bold=str(size), fill=colour, anchor="middle")
        parts.append(f"<g>{shape}{label}{title}</g>")
    return parts, right - box.x - 16


def _widths(box: Box, outgoing: dict[int, list[Wire]], colours: dict[str, str]) -> Iterator[str]:
    """The widths that leave a step, beside its spine."""
    x, y, seen = box.spine + 8, box.y + box.height + 17, set()
    for wire in outgoing.get(box.step.number, []):
        if wire.width is None or (wire.width, wire.movers) in seen:
            continue
        seen.add((wire.width, wire.movers))
        parts = [] if wire.movers else [ink.lock(x, y)]
        x += 0 if wire.movers else 13
        colour = colours[wire.movers[0]] if wire.movers else MUTED
        parts.append(ink.text(x, y, "", bold=str(wire.width), fill=colour))
        yield f"<g>{''.join(parts)}<title>{ink.clean(_meaning(wire))}</title></g>"
        x += 10 + 7.2 * len(str(wire.width))
