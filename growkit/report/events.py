"""Everything that happens as JSON: one object per line, in events.jsonl and, on request, on standard output."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TextIO

from growkit.growth.base import EpochRecord, Nothing
from growkit.growth.event import GrowthEvent
from growkit.growth.plan import GrowthPlan
from growkit.ladder import Stage
from growkit.report.observer import Observer, RunFacts
from growkit.report.strict_json import to_json

__all__ = ["EVENTS_VERSION", "JsonLines"]

EVENTS_VERSION = 1


class JsonLines(Observer):
    """Writes each event as one line of strict JSON and flushes it: a killed run keeps all but the line being written.

    Args:
        stream: a text stream; closed with the observer unless `keep_open`.
    """

    def __init__(self, stream: TextIO, *, keep_open: bool = False):
        self._stream = stream
        self._keep_open = keep_open
        self.only_shows = keep_open  # somebody else's stream, such as standard output

    def _write(self, kind: str, **facts: Any) -> None:
        record = {"version": EVENTS_VERSION, "time": round(time.time(), 3), "event": kind, **facts}
        self._stream.write(to_json(record) + "\n")
        self._stream.flush()

    def started(self, facts: RunFacts) -> None:
        self._write(
            "started",
            folder=facts.folder,
            config=facts.config.model_dump(mode="json", by_alias=True),
            environment=facts.environment,
            data=facts.data,
            model=facts.model,
            widths=facts.widths,
            targets=facts.targets,
            refusals=[asdict(refusal) for refusal in facts.refusals],
            depths=facts.depths,
            depth_targets=facts.depth_targets,
            place_refusals=[asdict(refusal) for refusal in facts.place_refusals],
            plan=_plan(facts.plan),
            params=facts.params,
            flops=facts.flops,
            total_steps=facts.total_steps,
            steps_per_epoch=facts.steps_per_epoch,
        )

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        self._write("epoch", **asdict(record), widths=widths)

    def stage(self, stage: Stage) -> None:
        self._write("stage", **asdict(stage))

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        self._write("growth", **asdict(event), widths=widths, train_flops=train_flops)

    def no_growth(self, step: int, note: Nothing) -> None:
        self._write("no_growth", step=step, **asdict(note))

    def new_units(self, step: int, gradient_norms: Mapping[str, float]) -> None:
        self._write("new_units", step=step, gradient_norms=gradient_norms)

    def warned(self, message: str) -> None:
        self._write("warning", message=message)

    def finished(self, result: Mapping[str, Any]) -> None:
        self._write("finished", result=result)

    def interrupted(self, step: int) -> None:
        self._write("interrupted", step=step)

    def failed(self, step: int, message: str) -> None:
        self._write("failed", step=step, message=message)

    def close(self) -> None:
        if not self._keep_open:
            self._stream.close()


def _plan(plan: GrowthPlan | None) -> list[dict[str, Any]] | None:
    return None if plan is None else [{"step": event.step, "widths": dict(event.widths)} for event in plan.events]
