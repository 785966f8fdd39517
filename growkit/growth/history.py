"""What growth policies may read of a run: its length, its epochs, its growth events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from growkit.errors import UserInputError

__all__ = ["HISTORY_VERSION", "Clock", "EpochRecord", "GrowthRecord", "History"]

HISTORY_VERSION = 1


@dataclass(frozen=True)
class Clock:
    """The length of a run: optimizer steps per epoch, and in all; and what a step costs.

    total_steps: where `flops` ends the run, those that its plan makes of them; where growth depends on training, those
    that there will be if nothing grows any more: the most there can be, and fewer after every event. forwards_per_step:
    forward passes of one sample that an optimizer step costs in the mean, a backward pass counted as two; 0 where
    nobody asks for training FLOPs. flops: training FLOPs that end the run; None where the steps do.
    """

    steps_per_epoch: int
    total_steps: int
    forwards_per_step: float = 0.0
    flops: int | None = None

    @property
    def setting(self) -> str:
        """What a user would raise for a longer run."""
        return "train.epochs" if self.flops is None else "train.flops"

    @property
    def epochs(self) -> str:
        """How many epochs there are, in words."""
        count = -(-self.total_steps // self.steps_per_epoch)
        return f"{count}" if self.flops is None else f"at most {count}"


@dataclass(frozen=True)
class EpochRecord:
    """What one epoch gave. Losses in nats or squared units, accuracies in 0..1 (None for regression), FLOPs as 2 x MAC.

    validate_* are None where the validate split is empty. flops: forward per sample. train_flops: spent so far.
    *_metrics: what the task knows besides, such as perplexity (growkit.metrics.Evaluation). depths: number of blocks at
    every place that may become deeper.
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
    depths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class GrowthRecord:
    """One growth event: after which optimizer step, and each grown site's old and new width.

    A place that became deeper stands among the sites as `depth/NAME`, with its numbers of blocks. flops: forward per
    sample of the model before the event, where the present model cannot tell it from widths; None where it can.
    """

    step: int
    widths: Mapping[str, tuple[int, int]]
    flops: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The JSON form."""
        widths = {site: list(widths) for site, widths in self.widths.items()}
        return {"step": self.step, "widths": widths, "flops": self.flops}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> GrowthRecord:
        """Read what `to_json` wrote."""
        widths = {site: (old, new) for site, (old, new) in record["widths"].items()}
        return cls(record["step"], widths, record.get("flops"))


@dataclass
class History:
    """What policies may read of a run so far; they never see the trainer or the model.

    Attributes:
        clock: the run's length.
        step: optimizer steps done.
        epochs: one record per finished epoch, oldest first.
        growths: one record per growth event, oldest first.
        tried: likewise of events that were undone after their trial; in all else they have left no trace here.
        wall_seconds: of the run so far.
        ended: why there will be no more growth; None while there may be.
    """

    clock: Clock
    step: int = 0
    epochs: list[EpochRecord] = field(default_factory=list)
    growths: list[GrowthRecord] = field(default_factory=list)
    wall_seconds: float = 0.0
    ended: str | None = None
    tried: list[GrowthRecord] = field(default_factory=list)

    @property
    def events(self) -> list[GrowthRecord]:
        """All that grew or was tried, oldest first: what sets the pace."""
        return sorted([*self.growths, *self.tried], key=lambda record: record.step)

    @property
    def epoch_closed(self) -> bool:
        """Whether the last step closed an epoch."""
        return bool(self.epochs) and self.epochs[-1].step == self.step

    def epochs_since_growth(self) -> list[EpochRecord]:
        """The epochs that began after the last growth event, also one that was undone after its trial, oldest first."""
        if not self.events:
            return list(self.epochs)
        grown, starts = self.events[-1].step, [0, *(record.step for record in self.epochs)]
        return [record for record, start in zip(self.epochs, starts, strict=False) if start >= grown]

    def fork(self) -> History:
        """The same so far, to go on from here on its own."""
        return replace(self, epochs=list(self.epochs), growths=list(self.growths), tried=list(self.tried))

    def to_json(self) -> dict[str, Any]:
        """The JSON form, with a version field (docs/formats.md)."""
        return {
            "version": HISTORY_VERSION,
            "clock": asdict(self.clock),
            "step": self.step,
            "epochs": [asdict(record) for record in self.epochs],
            "growths": [record.to_json() for record in self.growths],
            "tried": [record.to_json() for record in self.tried],
            "wall_seconds": self.wall_seconds,
            "ended": self.ended,
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
            growths=[GrowthRecord.from_json(growth) for growth in record["growths"]],
            tried=[GrowthRecord.from_json(growth) for growth in record.get("tried", ())],
            wall_seconds=record["wall_seconds"],
            ended=record["ended"],
        )
