"""TensorBoard: learning and growth curves, against steps and against training FLOPs, in one run of the board."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from growkit.growth.base import EpochRecord, Nothing
from growkit.growth.event import GrowthEvent
from growkit.losses import is_cross_entropy
from growkit.metrics import metric_names
from growkit.report.observer import Observer, RunFacts

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TensorBoard"]

MEGA = 1_000_000


class TensorBoard(Observer):
    """Writes `tb/`. Scalars under `by_flops/` have training MFLOPs in place of steps as their axis.

    Growth steps are drawn before and after, so set the board's smoothing to 0.
    """

    def __init__(self, folder: Path):
        from torch.utils.tensorboard import SummaryWriter  # here, for it costs seconds to import

        self._writer = SummaryWriter(str(folder))
        self._hparams: dict[str, bool | str | float | int] = {}
        self._targets: Mapping[str, int] = {}
        self._previous: Mapping[str, int] = {}

    def started(self, facts: RunFacts) -> None:
        self._targets, self._previous = facts.targets, dict(facts.widths)
        settings = facts.config.model_dump(mode="json", by_alias=True)
        self._hparams = _flatten({name: settings[name] for name in ("seed", "control", "model", "train", "growth")})
        self._hparams["data"] = facts.data["name"]
        self._writer.add_custom_scalars(
            {
                "growth": {
                    "widths": ["Multiline", [r"^width/.*"]],
                    **({"depths": ["Multiline", [r"^depth/.*"]]} if facts.depths else {}),
                    "parameters": ["Multiline", [r"^size/params$"]],
                    "FLOPs per sample": ["Multiline", [r"^size/flops$"]],
                    "accuracy": ["Multiline", [r"^accuracy/.*"]],
                    "loss": ["Multiline", [r"^loss/.*"]],
                    **{name: ["Multiline", [rf"^{name}/.*"]] for name in _metrics(facts)},
                }
            }
        )
        self._write_hparams()
        self._sizes(0, 0, facts.widths, facts.params, facts.flops)
        self._depths(0, facts.depths)

    def epoch(self, record: EpochRecord, widths: Mapping[str, int]) -> None:
        curves = {
            "loss/train": record.train_loss,
            "loss/validate": record.validate_loss,
            "accuracy/train": record.train_accuracy,
            "accuracy/validate": record.validate_accuracy,
            **{f"{name}/train": value for name, value in record.train_metrics.items()},
            **{f"{name}/validate": value for name, value in record.validate_metrics.items()},
        }
        for tag, value in curves.items():
            if value is not None:
                self._both(tag, value, record.step, record.train_flops)
        self._writer.add_scalar("learning_rate", record.learning_rate, record.step)
        self._writer.add_scalar("train_flops", record.train_flops, record.step)
        self._sizes(record.step, record.train_flops, widths, record.params, record.flops)
        self._depths(record.step, record.depths)

    def growth(self, event: GrowthEvent, widths: Mapping[str, int], train_flops: int) -> None:
        if event.undone is not None:
            self._writer.add_text("growth/undone", f"{event.undone}\n\n{event.trial or ''}".strip(), event.step)
            return
        self._sizes(event.step, train_flops, self._previous, event.params_before, event.flops_before)
        self._sizes(event.step, train_flops, widths, event.params_after, event.flops_after)
        self._writer.add_scalar("growth/function_change", event.change.worst, event.step)
        self._writer.add_text("growth/events", _markdown(event), event.step)
        if event.grown:
            self._writer.add_figure("growth/widths", _figure(self._previous, widths, self._targets), event.step)
        for growth in event.deepened:
            self._depths(event.step, {growth.place: growth.old_depth})
            self._depths(event.step, {growth.place: growth.new_depth})
        self._previous = dict(widths)

    def no_growth(self, step: int, note: Nothing) -> None:
        self._writer.add_text("growth/none", note.reason, step)

    def new_units(self, step: int, gradient_norms: Mapping[str, float]) -> None:
        for site, norm in gradient_norms.items():
            self._writer.add_scalar(f"new_units/gradient_norm/{site}", norm, step)

    def finished(self, result: Mapping[str, Any]) -> None:
        if result["test"] is not None:
            for name, value in result["test"].items():
                if value is not None:
                    self._writer.add_scalar(f"test/{name}", value, result["steps"])

    def close(self) -> None:
        self._writer.close()

    def _both(self, tag: str, value: float, step: int, train_flops: int) -> None:
        self._writer.add_scalar(tag, value, step)
        self._writer.add_scalar(f"by_flops/{tag}", value, train_flops // MEGA)

    def _sizes(self, step: int, train_flops: int, widths: Mapping[str, int], params: int, flops: int) -> None:
        self._both("size/params", params, step, train_flops)
        self._both("size/flops", flops, step, train_flops)
        for site, width in widths.items():
            self._writer.add_scalar(f"width/{site}", width, step)

    def _depths(self, step: int, depths: Mapping[str, int]) -> None:
        for place, blocks in depths.items():
            self._writer.add_scalar(f"depth/{place}", blocks, step)

    def _write_hparams(self) -> None:
        from torch.utils.tensorboard.summary import hparams

        # SummaryWriter.add_hparams opens a second run beside this one; its three summaries go into this run instead.
        for summary in hparams(self._hparams, {"accuracy/validate": 0.0, "loss/validate": 0.0, "size/params": 0.0}):
            self._writer._get_file_writer().add_summary(summary)


def _metrics(facts: RunFacts) -> tuple[str, ...]:
    return metric_names(facts.data["task"], is_cross_entropy(facts.config.train.loss))


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, bool | str | float | int]:
    flat: dict[str, bool | str | float | int] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
        elif value is not None:
            flat[prefix + key] = value if isinstance(value, bool | str | float | int) else str(value)
    return flat


def _markdown(event: GrowthEvent) -> str:
    rows = "\n".join(
        f"| {g.site} | {g.old_width} -> {g.new_width} | {g.initializer} | {g.form} | {g.reason} |" for g in event.grown
    )
    rows += "\n".join(
        f"| {g.place} | {g.old_depth} -> {g.new_depth} blocks | {g.kind} | {', '.join(g.modules)} | |"
        for g in event.deepened
    )
    reasons = "\n\n".join(dict.fromkeys(decision.reason for decision in event.decisions))
    return (
        f"**step {event.step}**: {reasons}\n\n{event.params_before:,} -> {event.params_after:,} parameters, "
        f"loss {event.loss_before:.6f} -> {event.loss_after:.6f}, change {event.change.worst:.1e}\n\n"
        + ("" if event.trial is None else f"{event.trial}\n\n")
        + f"| site | width | initializer | form | why |\n|---|---|---|---|---|\n{rows}"
    )


def _figure(before: Mapping[str, int], after: Mapping[str, int], targets: Mapping[str, int]) -> Figure:
    from matplotlib.figure import Figure

    sites = list(after)
    figure = Figure(figsize=(7, 0.9 + 0.3 * len(sites)), layout="constrained")
    axes = figure.subplots()
    positions = range(len(sites))
    axes.barh(positions, [targets.get(s, after[s]) for s in sites], color="#e6e6e6", label="target")
    axes.barh(positions, [after[s] for s in sites], color="#f28e2b", label="gained")
    axes.barh(positions, [before.get(s, after[s]) for s in sites], color="#4e79a7", label="before")
    axes.set_yticks(list(positions), sites, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("width (units)")
    figure.legend(fontsize=8, loc="outside upper center", ncols=3)
    return figure
