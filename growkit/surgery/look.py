"""Looks at a scratch copy: what it computes on one batch, before widths change and after."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace

from torch import nn

from growkit.errors import ModelError
from growkit.surgery.faintness import Faintness
from growkit.surgery.recording import Recorded, Recording
from growkit.surgery.verify import Inputs, Observation, function_change, kept_change, observe

__all__ = ["Look", "example_look", "first_line", "other_look"]


@dataclass(frozen=True)
class Look:
    """One batch, the streams that are faint on it, and what a model computed on it at the old widths."""

    inputs: Inputs
    faintness: Faintness
    before: Observation

    @classmethod
    def at(cls, model: nn.Module, inputs: Inputs, faintness: Faintness) -> Look:
        with faintness.on(model):
            return cls(inputs, faintness, observe(model, inputs))

    def change(self, model: nn.Module) -> float:
        """How far the outputs, and what is kept, are from those before."""
        with self.faintness.on(model):
            after = observe(model, self.inputs)
        return max(function_change(self.before, after).worst, kept_change(self.before, after))

    @property
    def is_finite(self) -> bool:
        return function_change(self.before, self.before).worst == 0.0


def example_look(model: nn.Module, inputs: Inputs) -> tuple[Look, list[Recording], list[str]]:
    """The example, a recording per mode, and what was not checked.

    Raises:
        ModelError: the model does not run on it.
    """
    recorded = Recorded(inputs.args, inputs.kwargs)
    try:
        return replace(Look.at(model, recorded, Faintness()), inputs=inputs), recorded.runs, []
    except Exception as first:  # an operation that bears no mode of torch's around it, or else the model's own failure
        try:
            return Look.at(model, inputs, Faintness()), [], [f"calls and numbers ({type(first).__name__})"]
        except Exception as error:  # a user's forward may raise anything
            text = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(
                f"the model must run on the example, got {text}; give a batch that fits with example="
            ) from error


def other_look(model: nn.Module, inputs: Inputs, faintness: Faintness) -> tuple[Look, list[str]]:
    """Other values in a batch of another size, and faint streams: as much of that as the model bears, and the rest."""
    moved, size, eps = "other values", "another batch size", "the eps of norms, on faint streams"
    batches = [
        (inputs.moved().one_more(), []),
        (inputs.moved(), [size]),
        (inputs.one_more(), [moved]),
        (inputs, [moved, size]),
    ]
    for batch, missing in batches:
        for faint, more in ((faintness, []), (Faintness(), [eps] if faintness.factors else [])):
            with suppress(Exception):  # whatever a user's forward raises for sizes or values that it does not expect
                look = Look.at(model, batch, faint)
                if look.is_finite:
                    return look, missing + more
    return Look.at(model, inputs, Faintness()), [moved, size, eps]


def first_line(error: BaseException) -> str:
    """What an error says, cut to one line."""
    return (str(error).splitlines() or [""])[0][:160]
