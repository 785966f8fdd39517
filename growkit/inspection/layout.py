"""Where everything stands: steps in rows from top to bottom, branches beside each other, skips in lanes on the left.

All boxes of a column share one left edge and one spine, the line along which the main flow runs; frames are drawn
around whole rows. So a wire is straight where nothing stands in its way, turns into the neighbouring column where two
branches part or meet, and otherwise takes a lane.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from growkit.inspection.frames import Drawing, Frame
from growkit.inspection.steps import Step, Wire

__all__ = ["Box", "Layout", "Ring", "Route", "layout_of"]

BOX = 290.0  # width of a box
SPINE = 30.0  # from the left edge of a box
LINE, LINES = 28.0, 44.0  # height of a row with one line of text, with two
GAP = 34.0  # between rows: room for a width
HEADER = 26.0  # of a frame
FOOTER = 24.0  # below the last row of a frame: the width that leaves it
PAD = 12.0  # around the inside of a frame
LANE, NARROW_LANE = 14.0, 7.0
COLUMN = BOX + 34.0
MARGIN = 24.0
TOP = 92.0  # room for the heading


@dataclass
class Box:
    """A step at its place, in the frame of a module; x and y are of its top left corner."""

    step: Step
    frame: str
    row: int
    column: int
    x: float = 0.0
    y: float = 0.0
    height: float = LINE

    @property
    def width(self) -> float:
        """Modules have wide boxes; what is no module is as wide as its text."""
        bold, plain = self.step.caption(self.frame)
        return BOX if self.step.kind == "module" else min(BOX, max(64.0, 30.0 + 7.4 * len(bold) + 6.6 * len(plain)))

    @property
    def spine(self) -> float:
        """Where wires enter and leave."""
        return self.x + SPINE


@dataclass
class Ring:
    """A frame at its place within the frame of a module; x and y are of its top left corner."""

    frame: Frame
    within: str
    depth: int
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0
    height: float = 0.0


@dataclass(frozen=True)
class Route:
    """The corners of a wire, from the step it leaves to the step it enters."""

    wire: Wire
    points: tuple[tuple[float, float], ...]


@dataclass
class Layout:
    """A drawing with places; all lengths are in pixels.

    Attributes:
        boxes: by the number of the step.
        rings: outer before inner.
        routes: of all wires.
        leads: for each row where the frames that open before it begin.
        width: of boxes, frames and lanes.
        height: likewise.
    """

    boxes: dict[int, Box] = field(default_factory=dict)
    rings: list[Ring] = field(default_factory=list)
    routes: list[Route] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    width: float = 0.0
    height: float = 0.0


def layout_of(drawing: Drawing) -> Layout:
    """Find a place for everything."""
    layout = Layout()
    _Stack(layout, drawing.wires).frame(drawing.root, "", 0)
    rows = _rows(layout.boxes.values())
    lanes = _lanes([w for w in drawing.wires if _kind(w, layout, rows) == "lane"], layout)
    _place_across(layout, max(lanes.values(), default=-1) + 1)
    layout.routes = [Route(wire, _points(wire, layout, rows, lanes)) for wire in drawing.wires]
    return layout


class _Stack:
    """Walks through the frames and gives each step its row, column and height."""

    def __init__(self, layout: Layout, wires: Sequence[Wire]):
        self.layout = layout
        self.y = TOP
        self.row = 0
        self.wires = wires
        self.lead: float | None = None

    def frame(self, frame: Frame, within: str, depth: int) -> None:
        ring = Ring(frame, within, depth, y=self.y)
        if depth:
            self.layout.rings.append(ring)
            self.lead = self.y if self.lead is None else self.lead
            self.y += HEADER
        run: list[Step] = []
        for item in frame.items:
            if isinstance(item, Step):
                run.append(item)
                continue
            self._run(run, frame)
            run = []
            self.frame(item, frame.path, depth + 1)
        self._run(run, frame)
        if depth:
            self.y += (PAD if isinstance(frame.items[-1], Frame) else FOOTER) - GAP
            ring.height = self.y - ring.y
            self.y += GAP
        self.layout.height = self.y

    def _run(self, steps: list[Step], frame: Frame) -> None:
        for row in _ranked(steps, self.wires):
            height = LINES if any(step.notes and step.kind == "module" for step in row.values()) else LINE
            self.layout.leads.append(self.y if self.lead is None else self.lead)
            self.lead = None
            for column, step in row.items():
                self.layout.boxes[step.number] = Box(step, frame.path, self.row, column, y=self.y, height=height)
            self.y += height + GAP
            self.row += 1


def _ranked(steps: Sequence[Step], wires: Sequence[Wire]) -> list[dict[int, Step]]:
    """Steps in rows of at most two columns, branches side by side; one below the other where two are not enough."""
    numbers = {step.number for step in steps}
    before: dict[int, list[int]] = {number: [] for number in numbers}
    for wire in wires:
        if wire.target in numbers and wire.source in numbers:
            before[wire.target].append(wire.source)
    rank: dict[int, int] = {}
    column: dict[int, int] = {}
    rows: dict[int, dict[int, Step]] = {}
    for step in steps:
        sources = before[step.number]
        rank[step.number] = max((rank[source] + 1 for source in sources), default=0)
        row = rows.setdefault(rank[step.number], {})
        free = [place for place in (0, 1) if place not in row]
        if not free:
            return [{0: one} for one in steps]
        wanted = column[sources[0]] if sources else 0
        column[step.number] = wanted if wanted in free else free[0]
        row[column[step.number]] = step
    for row in rows.values():
        if len(row) == 1:  # alone in its row a step stands in the main column
            (step,) = row.values()
            row.clear()
            row[0] = step
    return [rows[number] for number in sorted(rows)]


def _rows(boxes: Iterable[Box]) -> dict[int, set[int]]:
    """For each column the rows in which something stands."""
    rows: dict[int, set[int]] = {0: set(), 1: set()}
    for box in boxes:
        rows[box.column].add(box.row)
    return rows


def _kind(wire: Wire, layout: Layout, rows: dict[int, set[int]]) -> str:
    """How a wire runs: "straight", "part" (into the next column), "meet" (back from it) or through a "lane"."""
    source, target = layout.boxes[wire.source], layout.boxes[wire.target]

    def clear(column: int) -> bool:
        return not any(row in rows[column] for row in range(source.row + 1, target.row))

    if source.column == target.column:
        return "straight" if clear(source.column) else "lane"
    if source.column < target.column:
        return "part" if clear(target.column) else "lane"
    return "meet" if clear(source.column) else "lane"


def _lanes(wires: Sequence[Wire], layout: Layout) -> dict[int, int]:
    """A lane for each step that needs one, the nearest for the shortest; one lane serves all wires of a step."""
    spans: dict[int, tuple[int, int]] = {}
    for wire in wires:
        start, end = layout.boxes[wire.source].row, layout.boxes[wire.target].row
        spans[wire.source] = start, max(end, spans.get(wire.source, (0, 0))[1])
    taken: list[list[tuple[int, int]]] = []
    lanes: dict[int, int] = {}
    for number, (start, end) in sorted(spans.items(), key=lambda item: item[1][1] - item[1][0]):
        lane = next((i for i, used in enumerate(taken) if all(end <= a or b <= start for a, b in used)), len(taken))
        taken += [[]] if lane == len(taken) else []
        taken[lane].append((start, end))
        lanes[number] = lane
    return lanes


def _place_across(layout: Layout, num_lanes: int) -> None:
    depth = max((ring.depth for ring in layout.rings), default=0)
    left = MARGIN + depth * PAD + 10 + num_lanes * _lane_width(num_lanes)
    columns = 1 + max((box.column for box in layout.boxes.values()), default=0)
    right = left + BOX + (columns - 1) * COLUMN
    for box in layout.boxes.values():
        box.x = left + box.column * COLUMN
    for ring in layout.rings:
        inset = (ring.depth - 1) * PAD
        ring.x = MARGIN + inset
        ring.width = right + (depth - ring.depth + 1) * PAD - ring.x
    layout.width = right + depth * PAD


def _lane_width(num_lanes: int) -> float:
    return LANE if num_lanes <= 6 else NARROW_LANE


def _points(wire: Wire, layout: Layout, rows: dict[int, set[int]], lanes: dict[int, int]) -> tuple:
    source, target = layout.boxes[wire.source], layout.boxes[wire.target]
    start, bottom, top = source.spine, source.y + source.height, target.y
    kind = _kind(wire, layout, rows)
    if kind == "straight":
        return (start, bottom), (target.spine, top)
    if kind == "part":
        turn = layout.leads[source.row + 1] - 10
        return (start, bottom), (start, turn), (target.spine, turn), (target.spine, top)
    middle = target.y + target.height / 2
    if kind == "meet":
        return (start, bottom), (start, middle), (target.x + target.width, middle)
    left = min(box.x for box in layout.boxes.values())
    num_lanes = max(lanes.values()) + 1
    lane = left - 10 - (lanes[wire.source] + 0.5) * _lane_width(num_lanes)
    turn = bottom + 8
    if target.column:
        return (
            (start, bottom),
            (start, turn),
            (lane, turn),
            (lane, top - 9),
            (target.spine, top - 9),
            (target.spine, top),
        )
    return (start, bottom), (start, turn), (lane, turn), (lane, middle), (target.x, middle)
