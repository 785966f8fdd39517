"""Whether the same calls, with the same numbers, lead to a model's outputs before an edit and after it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from growkit.rng import isolated
from growkit.surgery.recording import Change, Difference, Recorded, Recording, first_difference
from growkit.surgery.undo import Edit
from growkit.surgery.verify import Inputs, observe, untouched

__all__ = ["differences", "eps_of", "other_calls", "warm_recordings"]


def other_calls(before: Sequence[Recording], after: Sequence[Recording], edit: Edit) -> tuple[str, str | None] | None:
    """What differs in the first mode where calls part, and the user's "file:line" where that is known."""
    for found, *runs in zip(differences(before, after, edit), after, before, strict=True) if before else ():
        if found is not None:
            places = next((run.places for run in runs if len(run.places) > found.call), [None])
            return found.text, places[min(found.call, len(places) - 1)]
    return None


def differences(before: Sequence[Recording], after: Sequence[Recording], edit: Edit) -> list[Difference | None]:
    """Per mode, where the calls part by more than the eps that the edit itself changed; none without recordings."""
    eps = eps_of(edit)
    return [first_difference(old, new, eps) for old, new in zip(before, after, strict=True)] if before else []


def eps_of(edit: Edit) -> set[Change]:
    """The numbers in attributes that an edit changed, such as the eps of norms."""
    changes: dict[tuple[str, str], Change] = {}
    for change in (one for record in edit.records for one in record.attributes):
        if isinstance(change.old, float):
            first = changes.get((change.module, change.name), (change.old, change.old))[0]
            changes[change.module, change.name] = first, float(change.new)
    return set(changes.values())


def warm_recordings(model: nn.Module, inputs: Inputs) -> list[Recording]:
    """With lines, of a model that has run already and kept what it keeps; one recording per mode.

    What a model makes anew for another width and keeps is no other path.
    """
    recorded = Recorded(inputs.args, inputs.kwargs, places=True)
    with untouched(model):
        for training in (False, True):
            model.train(training)
            with torch.no_grad(), isolated(0):
                inputs.call(model)
        observe(model, recorded)
    return recorded.runs
