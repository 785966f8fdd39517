"""The frames of a drawing: steps by the modules they stand in; equal neighbours are drawn once, with their number."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from growkit.inspection.steps import Step, Wire, relative

__all__ = ["Drawing", "Frame", "drawing_of", "pattern"]

FEW = 2  # a frame around so few steps says nothing


@dataclass
class Frame:
    """A module that contains others.

    Attributes:
        path: the module; for several equal ones the first.
        type: name of its class.
        items: steps and frames in the order of the forward pass.
        paths: of all equal ones that this one stands for.
    """

    path: str
    type: str
    items: list[Step | Frame] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """How many equal modules it stands for."""
        return len(self.paths)

    def steps(self) -> Iterator[Step]:
        """All steps in it, in order."""
        for item in self.items:
            yield from (item,) if isinstance(item, Step) else item.steps()


@dataclass
class Drawing:
    """What is drawn.

    Attributes:
        root: the model as a frame.
        wires: between the steps that are drawn.
        twins: for each site that is drawn the sites it stands for, itself first.
    """

    root: Frame
    wires: list[Wire]
    twins: dict[str, list[str]]


def drawing_of(steps: Sequence[Step], wires: Sequence[Wire], model: nn.Module) -> Drawing:
    """Put steps into the frames of their modules and draw equal neighbours once."""
    types = {name: type(module).__name__ for name, module in model.named_modules()}
    root = _nested(steps, types)
    folder = _Folder(wires)
    folder.fold(root)
    _flatten(root)
    return Drawing(root, folder.wires_left(), folder.twins)


def pattern(names: Sequence[str]) -> str:
    """One name for several: what they share at both ends, with a star between."""
    if len(set(names)) == 1:
        return names[0]
    prefix = _shared_start(names)
    suffix = _shared_start([name[len(prefix) :][::-1] for name in names])[::-1]
    return f"{prefix}*{suffix}"


def _shared_start(texts: Sequence[str]) -> str:
    columns = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False))
    return "".join(letters[0] for letters in columns)


def _nested(steps: Sequence[Step], types: dict[str, str]) -> Frame:
    """A frame opens where the forward pass enters a module and closes where it leaves it."""
    root = Frame("", types[""], paths=[""])
    stack = [root]
    for step in steps:
        while not _within(step.scope, stack[-1].path):
            stack.pop()
        for path in _below(step.scope, stack[-1].path):
            frame = Frame(path, types.get(path, ""), paths=[path])
            stack[-1].items.append(frame)
            stack.append(frame)
        stack[-1].items.append(step)
    return root


def _within(path: str, container: str) -> bool:
    return not container or path == container or path.startswith(container + ".")


def _below(path: str, container: str) -> list[str]:
    """The modules on the way from a container down to a path."""
    parts = path.split(".") if path else []
    depth = len(container.split(".")) if container else 0
    return [".".join(parts[:i]) for i in range(depth + 1, len(parts) + 1)]


class _Folder:
    """Draws runs of equal frames once and redirects the wires."""

    def __init__(self, wires: Sequence[Wire]):
        self._wires = list(wires)
        self._incoming: dict[int, list[Wire]] = {}
        for wire in wires:
            self._incoming.setdefault(wire.target, []).append(wire)
        self._stands_in: dict[int, int] = {}
        self.twins: dict[str, list[str]] = {}

    def fold(self, frame: Frame) -> None:
        """Fold the inner frames first, then runs of equal neighbours, in place."""
        items: list[Step | Frame] = []
        for item in frame.items:
            if isinstance(item, Frame):
                self.fold(item)
                last = items[-1] if items else None
                if isinstance(last, Frame) and self._repeats(last, item):
                    self._merge(last, item)
                    continue
            items.append(item)
        frame.items = items

    def wires_left(self) -> list[Wire]:
        """The wires between the steps that are drawn; those that lead from one repetition to the next are not."""
        left: dict[tuple[int, int], Wire] = {}
        for w in self._wires:
            source, target = self._drawn(w.source), self._drawn(w.target)
            if source < target:
                left.setdefault((source, target), replace(w, source=source, target=target))
        return list(left.values())

    def _repeats(self, first: Frame, again: Frame) -> bool:
        """Whether the second is fed by the first and equal to it; equal branches beside each other stay apart."""
        inside = {step.number for step in first.steps()}
        incoming = [wire for step in again.steps() for wire in self._incoming.get(step.number, [])]
        fed = any(self._drawn(wire.source) in inside for wire in incoming)
        return fed and self._signature(first) == self._signature(again)

    def _drawn(self, number: int) -> int:
        while number in self._stands_in:
            number = self._stands_in[number]
        return number

    def _signature(self, frame: Frame) -> Any:
        """What two frames share if they are the same but for their names."""
        inside = {step.number: i for i, step in enumerate(frame.steps())}
        outside: dict[int, str] = {}

        def end(number: int) -> int | str:
            number = self._drawn(number)
            return inside[number] if number in inside else outside.setdefault(number, f"from outside {len(outside)}")

        def of(item: Step | Frame) -> Any:
            name = relative(item.name if isinstance(item, Step) else item.path, frame.path)
            if isinstance(item, Frame):
                return name, item.type, item.count, tuple(of(inner) for inner in item.items)
            wires = [(end(w.source), w.shape, bool(w.movers), w.reason) for w in self._incoming.get(item.number, [])]
            return name, item.kind, item.what, tuple(item.notes), tuple(wires), tuple(item.inner.values())

        return frame.type, tuple(of(item) for item in frame.items)

    def _merge(self, first: Frame, again: Frame) -> None:
        first.paths += again.paths
        for one, other in zip(first.steps(), again.steps(), strict=True):
            self._stands_in[other.number] = one.number
            for mine, its in zip(one.inner, other.inner, strict=True):
                self._twin(mine, its)
            for mine, its in zip(self._incoming.get(one.number, []), self._incoming.get(other.number, []), strict=True):
                for a, b in zip(mine.movers, its.movers, strict=False):
                    self._twin(a, b)

    def _twin(self, drawn: str, other: str) -> None:
        known = self.twins.setdefault(drawn, [drawn])
        for name in self.twins.pop(other, [other]) if other != drawn else ():
            if name not in known:
                known.append(name)


def _flatten(frame: Frame) -> None:
    """Take away frames that hold one thing, or few steps."""
    items: list[Step | Frame] = []
    for item in frame.items:
        if isinstance(item, Step):
            items.append(item)
            continue
        _flatten(item)
        plain = all(isinstance(inner, Step) for inner in item.items)
        if item.count == 1 and (len(item.items) == 1 or (plain and len(item.items) <= FEW)):
            items += item.items
        else:
            items.append(item)
    frame.items = items
