"""Trials: sites are widened on a perturbed copy of the model before anyone relies on them.

A trace tells sizes, not where they come from. So every site is tried: outputs must stay in eval and in train mode, for
other values in a batch of another size too, on which streams are as faint as the eps of their norms; the same calls
must lead to them, with the same numbers; and a gradient must reach new units, by which wrong ones would be noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from growkit.device import lacks_memory
from growkit.errors import GrowthRefused, ModelError, SurgeryError
from growkit.graph import GrowthSite, SizeAttribute, copy_of
from growkit.surgery.attributes import read_attribute
from growkit.surgery.caches import Emptied, caches_of
from growkit.surgery.calls import differences, other_calls, warm_recordings
from growkit.surgery.faintness import faintness_of
from growkit.surgery.faults import fault_of
from growkit.surgery.look import Look, example_look, first_line, other_look
from growkit.surgery.products import changed, hidden_factor
from growkit.surgery.reaction import brighten, control, reactions
from growkit.surgery.recording import Factor, Recorded
from growkit.surgery.records import AttributeChange
from growkit.surgery.transaction import Extension, Growth, grow
from growkit.surgery.undo import Edit, UndoLog
from growkit.surgery.values import lookup
from growkit.surgery.verify import Inputs, new_entries

__all__ = ["CHANGED", "LARGEST_BATCH", "SIZE_FAULTS", "TOLERANCE", "UNREACHED", "Outcome", "Trial"]

TOLERANCE = 1e-5
LARGEST_ROUNDING = (
    1.0  # of an fp32 output: batch norm over two values is nearly a sign, and blows rounding up to anything
)
EXACT = 1e-9
OTHER_KERNELS = 1e-2  # torch may compute otherwise where gradients are recorded, and batch norms blow that up
LEAST = 1e-12  # change of an output in float64 that is more than rounding
LARGEST_BATCH = 8
DRAWS = 8


@dataclass(frozen=True)
class Outcome:
    """How one trial ended.

    Attributes:
        reason: why the sites may not grow, None where the function stayed.
        worst: the largest change of an output, relative to the largest output.
        control: that change for an edit that is wrong on purpose.
        location: the user's "file:line" where the model failed, or passed another number, at another width.
        hidden: sites whose wrong units would not be noticed, each with the reaction of the outputs to them.
    """

    reason: str | None
    worst: float = 0.0
    control: float = 0.0
    location: str | None = None
    hidden: tuple[tuple[GrowthSite, float], ...] = ()


UNREACHED = "no gradient reaches its new units"
CANNOT_TELL = "the check cannot tell: a wrong edit does not change the outputs either"
CHANGED = "widening it changes the outputs by"
"""How the reason of a changed function begins."""
SIZE_FAULTS = ("the model fails", "widening it changes the outputs' shape")
"""How reasons begin that a size written as a number may lead to; other outputs of the same shape are no sign of it."""


class Trial:
    """A copy of the model that may be changed, and what it computes.

    Args:
        model: the copy.
        inputs: a batch it runs on.
        tolerance: the largest relative change of an fp32 output that needs no second look in float64.
        sites: those that will be tried, parts of joint ones among them.

    Attributes:
        not_checked: what is left out because the model does not bear it.

    Raises:
        ModelError: the model does not run on the batch, or gives nothing that can be compared.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, tolerance: float, sites: Sequence[GrowthSite] = ()):
        self.model, self.inputs, self.tolerance = model, inputs, tolerance
        self._faintness = faintness_of(model, sites)
        self._caches = caches_of(model, inputs)
        self._look()

    def _look(self) -> None:
        """What the model computes at the old widths."""
        first, self._recordings, unrecorded = example_look(self.model, self.inputs)
        if not first.before.eval or not first.before.train:
            raise ModelError("the model must give floating-point tensors to be compared, got none on the example")
        second, missing = other_look(self.model, self.inputs, self._faintness)
        self.looks, self.not_checked = [first, second], (*unrecorded, *missing)
        if not all(look.is_finite for look in self.looks):
            raise ModelError("the model's outputs on the example must be numbers, got NaN, or infinite ones alone")
        self._double: tuple[nn.Module, dict[int, Look]] | None = None

    def of(self, sites: Sequence[GrowthSite]) -> Outcome:
        """Widen sites together, look, and put the copy back.

        New units that happen to be silent on the whole batch, as those of a ReLU may be, prove nothing: others are
        drawn before the trial says that they cannot learn. Branches too faint to be noticed are made stronger first.
        """
        outcome = Outcome(None)
        for draw in range(DRAWS):
            outcome = self._attempt(sites, draw)
            if outcome.reason not in (UNREACHED, CANNOT_TELL):
                return outcome
            if outcome.hidden and not self._brighten(outcome.hidden):
                return outcome
        return outcome

    def glance(self, sites: Sequence[GrowthSite], turn: int = 0) -> Outcome:
        """Widen sites together and look at the example alone: enough to find out what must change along.

        Nothing is accepted on that alone.

        Args:
            sites: to widen.
            turn: 0 by as many units as in a trial, 1 by others.
        """
        try:
            edit = self._widen(self.model, sites, 0, self._caches, turn)
        except (GrowthRefused, SurgeryError) as error:
            return _refused(error)
        try:
            change = self.looks[0].change(self.model)
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            return _failed(error)
        finally:
            edit.undo()
        if change <= self.tolerance or (change < LARGEST_ROUNDING and self._is_rounding(sites, 0, [0], turn)):
            return Outcome(None, change)
        return _changed(change)

    def reads(self, attributes: Sequence[SizeAttribute]) -> bool:
        """Whether the forward minds smaller numbers in attributes that hold sizes, at the widths as they are.

        Larger ones would not show in a slice; that they suffice, as for a bound, need not be known: widths only grow.
        """
        log = UndoLog(self.model)
        try:
            log.set(_smaller(self.model, attributes))
            log.clear_caches(self._caches)
            return self.looks[0].change(self.model) > 0.0
        except Exception as error:  # a forward that fails does mind
            _check_memory(error)
            return True
        finally:
            log.roll_back()

    def _attempt(self, sites: Sequence[GrowthSite], draw: int) -> Outcome:
        try:
            edit = self._widen(self.model, sites, draw, self._caches)
        except (GrowthRefused, SurgeryError) as error:
            return _refused(error)
        recorded = Recorded(self.inputs.args, self.inputs.kwargs)
        looks = [replace(self.looks[0], inputs=recorded), *self.looks[1:]] if self._recordings else self.looks
        try:
            changes = [look.change(self.model) for look in looks]
            worst = max(changes)
            if worst == float("inf"):
                return Outcome("widening it changes the outputs' shape, or they are not finite")
            if worst >= LARGEST_ROUNDING:
                return _changed(worst)
            factors = changed(self._recordings, recorded.runs, edit)
            hidden_number = self._hidden_number(sites, draw, factors) if any(factors) else None
            entries = new_entries(self.model, edit)
            shown, with_gradients = reactions(self.model, self.inputs, entries, looks[0].before.train)
            noticed = control(self.model, self.inputs, entries, looks[0].before.eval)
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            return _failed(error)
        finally:
            edit.undo()
        doubtful = [number for number, change in enumerate(changes) if change > self.tolerance]
        if doubtful and not self._is_rounding(sites, draw, doubtful):
            return _changed(worst)
        if with_gradients >= OTHER_KERNELS:
            return Outcome(f"{CHANGED} {with_gradients:.1e} of their size where gradients are recorded", worst)
        if not all(shown.values()):
            return Outcome(UNREACHED, worst)
        if hidden_number is not None:
            return Outcome(hidden_number[0], worst, location=hidden_number[1])
        if any(differences(self._recordings, recorded.runs, edit)) and (found := self._differs(sites, draw)):
            return replace(found, worst=worst)
        hidden = tuple((site, shown[site.name]) for site in sites if shown[site.name] <= self.tolerance)
        noticeable = not hidden and noticed > self.tolerance
        return Outcome(None if noticeable else CANNOT_TELL, worst, noticed, hidden=hidden)

    def _hidden_number(
        self, sites: Sequence[GrowthSite], draw: int, factors: Sequence[Sequence[Factor]]
    ) -> tuple[str, str | None] | None:
        """A number in a product that changed and that no output shows; in float64 where fp32 shows too little."""
        found = hidden_factor(self.model, self.inputs, factors, self.tolerance)
        if found is None or self.tolerance <= EXACT:
            return found
        try:
            twin, _ = self._twin()
            edit = self._widen(twin, sites, draw)
        except Exception as error:  # not every model runs in float64
            _check_memory(error)
            return hidden_factor(self.model, self.inputs, factors, 0.0)
        try:
            return hidden_factor(twin, self.inputs.double(), factors, LEAST)
        except Exception as error:
            _check_memory(error)
            return hidden_factor(self.model, self.inputs, factors, 0.0)
        finally:
            edit.undo()

    def _twin(self) -> tuple[nn.Module, dict[int, Look]]:
        """The model in float64, and what it computes at the old widths."""
        self._double = self._double or (copy_of(self.model).double(), {})
        return self._double

    def _is_rounding(self, sites: Sequence[GrowthSite], draw: int, looks: Sequence[int], turn: int = 0) -> bool:
        """Whether nothing is left of a change in float64."""
        if self.tolerance <= EXACT:
            return False
        try:
            twin, before = self._twin()
            for number in looks:
                look = self.looks[number]
                before[number] = before.get(number) or Look.at(twin, look.inputs.double(), look.faintness)
            edit = self._widen(twin, sites, draw, turn=turn)
        except Exception as error:  # not every model runs in float64
            _check_memory(error)
            return False
        try:
            return max(before[number].change(twin) for number in looks) <= EXACT
        except Exception as error:
            _check_memory(error)
            return False
        finally:
            edit.undo()

    def _differs(self, sites: Sequence[GrowthSite], draw: int) -> Outcome | None:
        """Whether calls or numbers differ once more on a model that ran before, at both widths."""
        before = warm_recordings(self.model, self.inputs)
        edit = self._widen(self.model, sites, draw, self._caches)
        try:
            after = warm_recordings(self.model, self.inputs)
        except Exception as error:
            return _failed(error)
        finally:
            edit.undo()
        other = other_calls(before, after, edit)
        return None if other is None else Outcome(other[0], location=other[1])

    def _brighten(self, hidden: Sequence[tuple[GrowthSite, float]]) -> bool:
        """Make hidden branches of the copy stronger, for good; not where it can bear no such weights."""
        saved = brighten(self.model, hidden)
        try:
            self._look()
        except ModelError:
            for tensor, values in saved:
                tensor.data = values
            self._look()
            return False
        return bool(saved)

    def _widen(
        self,
        model: nn.Module,
        sites: Sequence[GrowthSite],
        draw: int,
        caches: Sequence[Emptied] | None = None,
        turn: int = 0,
    ) -> Edit:
        growths = [Growth(site, num, _random(model, site, num, draw)) for site, num in _units(sites, turn)]
        return grow(model, growths, caches=caches)


def _smaller(model: nn.Module, attributes: Sequence[SizeAttribute]) -> list[AttributeChange]:
    """Every attribute smaller, by 1 and 2 in turn: neighbours that are subtracted must not stay as far apart."""
    places = dict.fromkeys((one.module, one.path) for one in attributes)
    numbers = [(place, read_attribute(model, *place)) for place in places]
    return [AttributeChange(*place, number, number - 1 - turn % 2) for turn, (place, number) in enumerate(numbers)]


def _random(model: nn.Module, site: GrowthSite, num_new: int, draw: int) -> Extension:
    """Gaussian new slices everywhere but where they must be silent."""
    generator = torch.Generator().manual_seed(draw)
    values = {}
    for edit in site.tensor_edits(num_new):
        if edit.kind != "parameter" or edit.pass_through:
            continue
        tensor = lookup(model, edit.names[0], edit.kind)
        for dim, index in enumerate(edit.index_maps):
            if index is None or dim in edit.silent_dims:
                continue
            shape = list(tensor.shape)
            shape[dim] = int((index < 0).sum())
            values[edit.names[0], dim] = torch.randn(shape, generator=generator).to(tensor) * 0.1
    return Extension(values)


def _units(sites: Sequence[GrowthSite], turn: int) -> list[tuple[GrowthSite, int]]:
    """How many units each site gets: unequal numbers, and others in the second turn.

    Widths that are tied behind the graph's back must not stay equal, or in proportion, by chance.
    """
    copied = [site for site in sites if site.by_copies]
    return [
        (site, site.width * (1 + (copied.index(site) + turn) % 2) if site.by_copies else _share(site, number, turn))
        for number, site in enumerate(sites)
    ]


def _share(site: GrowthSite, number: int, turn: int) -> int:
    """About a quarter; at least 8 once where a unit is one channel, for `C // 8` must take a step.

    A narrow width may be one of heads, which make a forward long: it gets 2 in the trial, 8 in the glance. One channel
    alone may be silent by chance.
    """
    quarter, single, narrow = site.width // 4, len(site.atoms) == 1, site.width <= 4
    if turn == 0:
        return max(1 if not single else 2 if narrow else 8, quarter) + number % 3
    return 8 + number % 3 if single and narrow else 1 + max(8 if single else 1, quarter) // 2 + 2 * number % 5


def _changed(worst: float) -> Outcome:
    return Outcome(f"{CHANGED} {worst:.1e} of their size", worst)


def _check_memory(error: BaseException) -> None:
    """That a machine has too little memory for a trial says nothing about the sites.

    Raises:
        ModelError: it was that.
    """
    if lacks_memory(error):
        raise ModelError(
            f"widths are tried out on a copy of the model, and no memory was left for it: {first_line(error)}; give a "
            "smaller example, or a machine with more memory"
        ) from error


def _refused(error: BaseException) -> Outcome:
    _check_memory(error)
    return Outcome(f"surgery cannot widen it: {error}")


def _failed(error: BaseException) -> Outcome:
    """What went wrong in the user's forward, where, and the remedy if it is a known one."""
    _check_memory(error)
    text, place = fault_of(error)
    return Outcome(f"the model fails at another width: {text}", location=place)
