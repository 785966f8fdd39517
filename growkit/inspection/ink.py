"""The strokes an SVG is made of: text that fits, rounded lines, arrow heads, locks. All lengths are in pixels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape

__all__ = [
    "INK",
    "MUTED",
    "REFUSED",
    "RULE",
    "arrow",
    "clean",
    "fit",
    "line",
    "lock",
    "rect",
    "rounded",
    "text",
    "wrap",
]

INK, MUTED, RULE, REFUSED = "#1c2128", "#59626e", "#c9ced6", "#8b929c"
ADVANCE = 0.56  # of a letter, as a share of the font size: sans-serif fonts stay below it on average
CORNER = 9.0

Point = tuple[float, float]


def clean(content: object) -> str:
    """Text as XML can hold it."""
    return escape(_FORBIDDEN.sub("\ufffd", str(content)), quote=True)


_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def text(
    x: float,
    y: float,
    content: str,
    *,
    size: int = 12,
    fill: str = INK,
    bold: str = "",
    anchor: str = "start",
    tooltip: str = "",
) -> str:
    """One line of text, its beginning `bold`; y is of the baseline."""
    strong = f'<tspan font-weight="bold">{clean(bold)}</tspan>' if bold else ""
    space = " " if bold and content else ""
    title = f"<title>{clean(tooltip)}</title>" if tooltip else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{fill}" text-anchor="{anchor}">'
        f"{strong}{space}{clean(content)}{title}</text>"
    )


def fit(content: str, room: float, size: int = 12) -> str:
    """Text cut to a length, at its beginning: the end of a module's path tells more than its start."""
    most = max(4, int(room / (size * ADVANCE)))
    return content if len(content) <= most else "…" + content[-(most - 1) :]


def wrap(content: str, room: float, size: int = 12) -> list[str]:
    """Text in lines of a length; a longer word gets a line of its own."""
    most = max(8, int(room / (size * ADVANCE)))
    lines = [""]
    for word in content.split():
        lines += [""] if lines[-1] and len(lines[-1]) + 1 + len(word) > most else []
        lines[-1] = f"{lines[-1]} {word}".strip()
    return [fit(one, room, size) for one in lines]


def rect(x: float, y: float, width: float, height: float, *, radius: float, fill: str, stroke: str = RULE) -> str:
    """A rectangle with round corners."""
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" fill="{fill}" '
        f'stroke="{stroke}"/>'
    )


def line(path: str, colour: str, width: float, *, dashed: bool = False) -> str:
    """A stroke along a path."""
    dash = ' stroke-dasharray="7 7"' if dashed else ""
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="{width:g}"{dash}/>'


def rounded(points: Sequence[Point]) -> str:
    """A path through points with its corners rounded."""
    path = [f"M{points[0][0]:.1f} {points[0][1]:.1f}"]
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        enter, leave = _towards(corner, before), _towards(corner, after)
        path.append(f"L{enter[0]:.1f} {enter[1]:.1f}Q{corner[0]:.1f} {corner[1]:.1f} {leave[0]:.1f} {leave[1]:.1f}")
    return "".join([*path, f"L{points[-1][0]:.1f} {points[-1][1]:.1f}"])


def _towards(start: Point, end: Point) -> Point:
    length = math.dist(start, end) or 1.0
    share = min(CORNER, length / 2) / length
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def arrow(points: Sequence[Point], colour: str) -> str:
    """A head at the end of a line."""
    (x0, y0), (x, y) = points[-2], points[-1]
    length = math.dist((x0, y0), (x, y)) or 1.0
    dx, dy = (x - x0) / length, (y - y0) / length
    corners = [(x, y), (x - 8 * dx - 4.5 * dy, y - 8 * dy + 4.5 * dx), (x - 8 * dx + 4.5 * dy, y - 8 * dy - 4.5 * dx)]
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" fill="{colour}"/>'


def lock(x: float, y: float) -> str:
    """A small lock that stands on the baseline y; 9 wide."""
    return (
        f'<g transform="translate({x:.1f} {y - 10:.1f})"><path d="M2 5V3.5a2.5 2.5 0 0 1 5 0V5" fill="none" '
        f'stroke="{REFUSED}" stroke-width="1.4"/>'
        f'<rect x="0.5" y="4.6" width="8" height="6" rx="1" fill="{REFUSED}"/></g>'
    )
