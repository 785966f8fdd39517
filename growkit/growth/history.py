"""What growth policies may read of a run: its length, its epochs, its growth events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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


@dataclass
class History:
    """What policies may read of a run so far; they never see the trainer or the model.

    Attributes:
        clock: the run's length.
        step: optimizer steps done.
        epochs: one record per finished epoch, oldest first.
        growths: one record per growth event, oldest first.
        wall_seconds: of the run so far.
        ended: why there will be no more growth; None while there may be.
    """

    clock: Clock
    step: int = 0
    epochs: list[EpochRecord] = field(default_factory=list)
    growths: list[GrowthRecord] = field(default_factory=list)
    wall_seconds: float = 0.0
    ended: str | None = None

    @property
    def epoch_closed(self) -> bool:
        """Whether the last step closed an epoch."""
        return bool(self.epochs) and self.epochs[-1].step == self.step

    def epochs_since_growth(self) -> list[EpochRecord]:
        """The epochs that began after the last growth event, oldest first."""
        if not self.growths:
            return list(self.epochs)
        grown, starts = self.growths[-1].step, [0, *(record.step for record in self.epochs)]
        return [record for record, start in zip(self.epochs, starts, strict=False) if start >= grown]

    def to_json(self) -> dict[str, Any]:
        """The JSON form, with a version field (docs/formats.md)."""
        return {
            "version": HISTORY_VERSION,
            "clock": asdict(self.clock),
            "step": self.step,
            "epochs": [asdict(record) for record in self.epochs],
            "growths": [
                {"step": g.step, "widths": {k: list(v) for k, v in g.widths.items()}, "flops": g.flops}
                for g in self.growths
            ],
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
            growths=[
                GrowthRecord(g["step"], {k: (v[0], v[1]) for k, v in g["widths"].items()}, g.get("flops"))
                for g in record["growths"]
            ],
            wall_seconds=record["wall_seconds"],
            ended=record["ended"],
        )
