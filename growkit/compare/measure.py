"""The number that arms are compared by: a metric on a split, as result.json holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from growkit.compare.prospect import Prospect
from growkit.config import Config
from growkit.data.records import CLASSIFICATION, REGRESSION
from growkit.errors import UserInputError
from growkit.losses import is_cross_entropy
from growkit.metrics import metric_names

__all__ = ["Measure", "choose_measure"]

HIGHER_IS_BETTER = ("accuracy", "r2")


@dataclass(frozen=True)
class Measure:
    """A metric on a split."""

    split: str
    metric: str

    @property
    def higher_is_better(self) -> bool:
        """The direction."""
        return self.metric in HIGHER_IS_BETTER

    @property
    def name(self) -> str:
        """As in a table's head."""
        return f"{self.split} {self.metric.replace('_', '-')}"

    def on(self, split: str) -> Measure:
        """The same metric on another split."""
        return Measure(split, self.metric)

    def of(self, result: Mapping[str, Any]) -> float | None:
        """Its value in a result; None where it is no finite number."""
        value = (result.get(self.split) or {}).get(self.metric)
        return value if value is not None and math.isfinite(value) else None


def choose_measure(split: str, metric: str | None, prospects: Sequence[Prospect], *, tunes: bool) -> Measure:
    """What was asked for, or what the task is judged by: accuracy of classes, perplexity of tokens, loss of values.

    Args:
        split: test, validate, or train (over the last epoch).
        metric: as in result.json; None chooses.
        prospects: of the arms.
        tunes: whether learning rates are chosen, on the validate split.

    Raises:
        UserInputError: a split is empty, there is no such metric, or arms mean different things by it.
    """
    data = prospects[0].parts.data
    for wanted, why in ((split, "--split"), *([("validate", "--tune-lr")] if tunes else [])):
        if len(data.split(wanted)) == 0:
            other = "; choose another, such as --split train" if why == "--split" else ""
            raise UserInputError(
                f"{why} reads the {wanted} split, which is empty (data.split.{wanted} is 0): give it a share{other}"
            )
    configs = [one.parts.config for one in prospects]
    known = ["loss", *([] if data.task == REGRESSION else ["accuracy"]), *_metrics(data.task, configs, split)]
    metric = metric or {CLASSIFICATION: "accuracy", REGRESSION: "loss"}.get(data.task, "perplexity")
    if metric not in known:
        raise UserInputError(f"--metric must be one of {', '.join(known)} for {data.task}, got {metric!r}")
    if metric == "loss":
        _check_one_loss(data.task, configs, split)
    return Measure(split, metric)


def _metrics(task: str, configs: Sequence[Config], split: str) -> list[str]:
    """The metrics that all arms have."""
    known = [
        metric_names(task, is_cross_entropy(config.train.loss, config.train.label_smoothing if split == "train" else 0))
        for config in configs
    ]
    return [name for name in known[0] if all(name in names for names in known)]


def _check_one_loss(task: str, configs: Sequence[Config], split: str) -> None:
    """Refuse to compare numbers that are called loss and are not the same."""
    losses = {_loss(task, config) for config in configs}
    smoothing = {config.train.label_smoothing for config in configs}
    if len(losses) > 1 or (split == "train" and len(smoothing) > 1):
        what = "train.loss" if len(losses) > 1 else "train.label_smoothing"
        raise UserInputError(f"--metric loss needs one {what} for all arms, but they differ in it; take another metric")


def _loss(task: str, config: Config) -> str:
    loss = config.train.loss
    usual = {"name": "mse" if task == REGRESSION else "cross_entropy"}
    return str(usual if loss.name == "auto" else loss.model_dump())
