"""The vocabulary of growth: what policies read, what they answer, and the four interfaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from growkit.errors import UserInputError
from growkit.graph import GrowthSite

__all__ = [
    "HISTORY_VERSION",
    "Allocator",
    "Clock",
    "EpochRecord",
    "Extended",
    "GrowthDecision",
    "GrowthRecord",
    "History",
    "Initializer",
    "SiteSelector",
    "SiteState",
    "Trigger",
]

HISTORY_VERSION = 1


@dataclass(frozen=True)
class Clock:
    """The length of a run: optimizer steps per epoch, and in all."""

    steps_per_epoch: int
    total_steps: int


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave. Losses in nats or squared units, accuracies in 0..1 (None for regression), FLOPs as 2 x MAC.

    validate_* are None where the validate split is empty. flops: forward per sample. train_flops: spent so far.
    *_metrics: what the task knows besides, such as perplexity (growkit.metrics.Evaluation).
    """

    step: int
    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float | None
    validate_loss: float | None
    validate_accuracy: float | None
    params: int
    flops: int
    train_flops: int
    cpu_seconds: float
    wall_seconds: float
    train_metrics: Mapping[str, float] = field(default_factory=dict)
    validate_metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class GrowthRecord:
    """One growth event: after which optimizer step, and each grown site's old and new width."""

    step: int
    widths: Mapping[str, tuple[int, int]]


@dataclass
class History:
    """What policies may read of a run so far; they never see the trainer or the model.

    Attributes:
        clock: the run's length.
        step: optimizer steps done.
        epochs: one record per finished epoch, oldest first.
        growths: one record per growth event, oldest first.
    """

    clock: Clock
    step: int = 0
    epochs: list[EpochRecord] = field(default_factory=list)
    growths: list[GrowthRecord] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The JSON form, with a version field (docs/formats.md)."""
        return {
            "version": HISTORY_VERSION,
            "clock": asdict(self.clock),
            "step": self.step,
            "epochs": [asdict(record) for record in self.epochs],
            "growths": [{"step": g.step, "widths": {k: list(v) for k, v in g.widths.items()}} for g in self.growths],
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> History:
        """Read what `to_json` wrote.

        Raises:
            UserInputError: the record has another version.
        """
        if record.get("version") != HISTORY_VERSION:
            raise UserInputError(
                f"a history must have version {HISTORY_VERSION}, got {record.get('version')!r}; "
                "it was written by another version of growkit"
            )
        return cls(
            clock=Clock(**record["clock"]),
            step=record["step"],
            epochs=[EpochRecord(**epoch) for epoch in record["epochs"]],
            growths=[
                GrowthRecord(g["step"], {k: (v[0], v[1]) for k, v in g["widths"].items()}) for g in record["growths"]
            ],
        )


@dataclass(frozen=True)
class SiteState:
    """What selectors and allocators know of a site: its width at the start, now, and at most.

    Attributes:
        name: of the site.
        seed_width, width, target: at the start, now, and at most.
        by_copies: whether it grows by whole copies of all its units only; its target is a multiple of its width then.
    """

    name: str
    seed_width: int
    width: int
    target: int
    by_copies: bool = False

    @property
    def room(self) -> int:
        """Units it may still gain."""
        return self.target - self.width

    def possible(self, wished: int) -> int:
        """The number of units to grow by where `wished` are asked for: at most its room.

        Whole copies are rounded up, to a width from which whole copies still lead to the target.
        """
        if not self.by_copies or self.room <= 0:
            return min(wished, self.room)
        ratio = self.target // self.width
        steps = [(factor - 1) * self.width for factor in range(2, ratio + 1) if ratio % factor == 0]
        return next((units for units in steps if units >= wished), steps[-1])


@dataclass(frozen=True)
class GrowthDecision:
    """Widen `site` by `num_new` units, because `reason`; `scores` are what the selector ranked by."""

    site: str
    num_new: int
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)


class Trigger(ABC):
    """When to grow. A frozen object: all it knows comes in with the history."""

    @abstractmethod
    def due(self, history: History) -> bool:
        """Whether to grow now, after `history.step` optimizer steps."""

    @abstractmethod
    def planned_steps(self, clock: Clock) -> Sequence[int] | None:
        """The steps after which it will grow, if known in advance; None where it depends on what training gives."""


class SiteSelector(ABC):
    """Where to grow."""

    @abstractmethod
    def select(self, sites: Sequence[SiteState], history: History) -> Sequence[SiteState]:
        """The sites that grow at this event, out of those with room, in the order of the graph."""


class Allocator(ABC):
    """By how much to grow."""

    @abstractmethod
    def units(self, site: SiteState, history: History) -> int:
        """New units for `site`, at least 1; the controller caps them at its room."""


@dataclass(frozen=True)
class Extended:
    """An initializer's answer for one site.

    Attributes:
        values: (tensor name, dimension) -> new slices, as growkit.surgery.Extension takes them.
        form: what new units are at first: "zero_fan_in" or "zero_fan_out" (that side is zero), "remedied" (a norm or an
            attention product decides what is zero), "paired" (equal fan-ins, opposite fan-outs), "copied" (from old
            units, with shares of their fan-out), "split" (likewise, both moved apart), "both" (neither side is zero).
        reason: why this form.
        facts: numbers worth recording (singular values, predicted gradient norm).
        rewrites: existing tensors by name -> new values of the whole tensor, in the shape before the event. They are
            written with the event and taken back with it; what the optimizer remembers of them stays as it is. Where
            several sites rewrite one tensor, each entry changes by all factors (growkit.growth.rewriting).
    """

    values: Mapping[tuple[str, int], Tensor]
    form: str
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rewrites: Mapping[str, Tensor] = field(default_factory=dict)

    def silenced(self, site: GrowthSite, num_new: int) -> Extended:
        """What keeps the function at `site`, as it is before the event: no rewrites, and zeros where it needs them."""
        silent = {(edit.names[0], dim) for edit in site.tensor_edits(num_new) for dim in edit.silent_dims}
        values = {place: slices for place, slices in self.values.items() if place not in silent}
        return replace(self, values=values, rewrites={})


class Initializer(ABC):
    """How new units begin.

    Attributes:
        name: in settings and events.
        preserves: whether the function is kept. Where it is not, by design, surgery is first verified with the new
            units silent (what would be read of them zero, nothing rewritten), and only then given the values.
    """

    name: ClassVar[str]
    preserves: ClassVar[bool] = True

    @abstractmethod
    def refuses(self, site: GrowthSite) -> str | None:
        """Why this initializer cannot serve `site`; None where it can."""

    @abstractmethod
    def extend(self, site: GrowthSite, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        """The new slices of `site`.

        Args:
            site: where.
            num_new: how many units.
            measurement: a growkit.growth.statistics.Measurement, the facts of one batch.
            generator: source of all chance (CPU).

        Raises:
            GrowthRefused: the settings ask for what the measured facts forbid.
        """
