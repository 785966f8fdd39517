"""Trials: sites are widened on a perturbed copy of the model before anyone relies on them.

A trace tells sizes, not where they come from. So every site is tried: outputs must stay in eval and in train mode, for
other values in a batch of another size too, new units must receive a gradient, and a control that is wrong on purpose
must be noticed.
"""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from growkit.device import exact_arithmetic
from growkit.errors import GrowthRefused, ModelError, SurgeryError
from growkit.graph import GrowthSite, attributes_kept, copy_of
from growkit.rng import isolated
from growkit.surgery.transaction import Extension, Growth, grow
from growkit.surgery.undo import Edit
from growkit.surgery.values import lookup
from growkit.surgery.verify import Inputs, Observation, function_change, new_entries, observe, untouched

__all__ = ["LARGEST_BATCH", "TOLERANCE", "Outcome", "Trial", "scratch_copy"]

TOLERANCE = 1e-5
LARGEST_ROUNDING = (
    1.0  # of an fp32 output: batch norm over two values is nearly a sign, and blows rounding up to anything
)
EXACT = 1e-9
LARGEST_BATCH = 8
DRAWS = 4


@dataclass
class Outcome:
    """How one trial ended.

    Attributes:
        reason: why the sites may not grow, None where the function stayed.
        worst: the largest change of an output, relative to the largest output.
        control: that change for an edit that is wrong on purpose.
        location: the user's "file:line" where the model failed at another width.
    """

    reason: str | None
    worst: float = 0.0
    control: float = 0.0
    location: str | None = None


UNREACHED = "no gradient reaches its new units"
CANNOT_TELL = "the check cannot tell: a wrong edit does not change the outputs either"


class Trial:
    """A copy of the model that may be changed, and what it computes."""

    def __init__(self, model: nn.Module, inputs: Inputs, tolerance: float):
        self.model, self.inputs, self.tolerance = model, inputs, tolerance
        self._exact: Trial | None = None
        try:
            first = observe(model, inputs)
        except Exception as error:  # a user's forward may raise anything
            text = f"{type(error).__name__}: {_first_line(error)}"
            raise ModelError(f"the model must run on the example, got {text}; give a batch that fits") from error
        other, second = _second_look(model, inputs)
        self.batches, self.before = [inputs, other], [first, second]
        if not first.eval or not first.train:
            raise ModelError("the model must give floating-point tensors to be compared, got none on the example")
        if any(function_change(one, one).worst > 0.0 for one in self.before):
            raise ModelError("the model's outputs on the example must be finite, got inf or NaN")

    def of(self, sites: Sequence[GrowthSite]) -> Outcome:
        """Widen sites together, look, and put the copy back.

        New units that happen to be silent on the whole batch, as those of a ReLU may be, prove nothing: others are
        drawn before the trial says that they cannot learn or cannot be checked.
        """
        outcome = Outcome(None)
        for draw in range(DRAWS):
            outcome = self._attempt(sites, draw)
            if outcome.reason not in (UNREACHED, CANNOT_TELL):
                return outcome
        return outcome

    def _attempt(self, sites: Sequence[GrowthSite], draw: int) -> Outcome:
        try:
            edit = self._widen(sites, draw, wrong=False)
        except (GrowthRefused, SurgeryError) as error:
            return Outcome(f"surgery cannot widen it: {error}")
        try:
            worst = max(function_change(*pair).worst for pair in zip(self.before, self._look(), strict=True))
            if worst == float("inf"):
                return Outcome("widening it changes the outputs' shape, or they are not finite")
            if worst > self.tolerance:
                edit.undo()
                return self._rounding(sites, draw, worst)
            unreached = self._without_gradient(edit)
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            return _failed(error)
        finally:
            if not edit.undone:
                edit.undo()
        if unreached:
            return Outcome(UNREACHED, worst)
        control = self._control(sites, draw)
        return Outcome(None if control > self.tolerance else CANNOT_TELL, worst, control)

    def _rounding(self, sites: Sequence[GrowthSite], draw: int, worst: float) -> Outcome:
        """A change that may be rounding is looked at in float64, where none is left."""
        outcome = Outcome(f"widening it changes the outputs by {worst:.1e} of their size", worst)
        if not self.tolerance < worst < LARGEST_ROUNDING or self.tolerance <= EXACT:
            return outcome
        if self._exact is None:
            try:
                self._exact = Trial(copy_of(self.model).double(), self.inputs.double(), EXACT)
            except Exception:  # not every model runs in float64
                return outcome
        exact = self._exact._attempt(sites, draw)
        return replace(exact, worst=worst) if exact.reason is None else outcome

    def _look(self) -> list[Observation]:
        return [observe(self.model, batch) for batch in self.batches]

    def _widen(self, sites: Sequence[GrowthSite], draw: int, *, wrong: bool) -> Edit:
        # unequal numbers: widths that are tied behind the graph's back must not stay equal, or in proportion, by chance
        units = [(site, trial_units(site) + number % 3) for number, site in enumerate(sites)]
        growths = [
            Growth(site, num, self._random(site, num, draw, wrong=wrong), remedied=not wrong) for site, num in units
        ]
        return grow(self.model, growths)

    def _control(self, sites: Sequence[GrowthSite], draw: int) -> float:
        """The change of the outputs when nothing is silenced; the check must see it."""
        edit = self._widen(sites, draw, wrong=True)
        try:
            return function_change(self.before[0], observe(self.model, self.batches[0])).worst
        finally:
            edit.undo()

    def _without_gradient(self, edit: Edit) -> list[str]:
        with untouched(self.model), exact_arithmetic(), torch.enable_grad(), isolated(0):
            self.model.train()
            self.model.zero_grad()
            outputs = [output.float() for output in self.batches[0].call(self.model) if output.requires_grad]
            if not outputs:  # all weights are frozen
                return list(new_entries(self.model, edit))
            torch.stack([(output * torch.randn_like(output)).sum() for output in outputs]).sum().backward()
        unreached = [
            site
            for site, entries in new_entries(self.model, edit).items()
            if not _learns([p.grad * mask for p, mask in entries if p.grad is not None])
        ]
        self.model.zero_grad()
        return unreached

    def _random(self, site: GrowthSite, num_new: int, draw: int, *, wrong: bool) -> Extension:
        """Gaussian new slices everywhere but where they must be silent; with `wrong` there too."""
        generator = torch.Generator().manual_seed(draw)
        values = {}
        for edit in site.tensor_edits(num_new):
            tensor = lookup(self.model, edit.names[0], edit.kind)
            if edit.kind != "parameter" or (edit.pass_through and not (wrong and edit.silent_dims)):
                continue
            for dim, index in enumerate(edit.index_maps):
                if index is None or (dim in edit.silent_dims and not wrong):
                    continue
                shape = list(tensor.shape)
                shape[dim] = int((index < 0).sum())
                values[edit.names[0], dim] = torch.randn(shape, generator=generator).to(tensor) * 0.1
        return Extension(values)


def _second_look(model: nn.Module, inputs: Inputs) -> tuple[Inputs, Observation]:
    """Other values in a batch of another size; of the same size where the model itself is bound to one."""
    larger = inputs.moved().one_more()
    try:
        return larger, observe(model, larger)
    except Exception:  # whatever a user's forward raises for a batch size that it does not expect
        return inputs.moved(), observe(model, inputs.moved())


def _learns(gradients: Sequence[Tensor]) -> bool:
    """Whether the gradients of new entries are finite, and not all zero."""
    return all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)


def trial_units(site: GrowthSite) -> int:
    """A quarter; at least 4 where a unit is one channel, for a single one may be silent by chance."""
    single = len(site.atoms) == 1 and site.width > 4
    return max(4 if single else 1, site.width // 4)


def _failed(error: BaseException) -> Outcome:
    """What went wrong in the user's forward, where, and the remedy if it is a known one."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(_NOT_THE_USERS)]
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else None
    text = _first_line(error)
    advice = next((advice for sign, advice in ADVICE.items() if sign in text), "")
    return Outcome(f"the model fails at another width: {type(error).__name__}: {text}{advice}", location=place)


ADVICE = {
    "is invalid for input of size": "; write flatten, -1 or an attribute for a size that is written as a number there",
    "don't multiply up to the size": "; write -1 or an attribute for a size that is computed from another one there",
    "split_with_sizes expects split_sizes": "; keep the sizes of the split in an attribute of their own",
}
"""What to do about errors that sizes written into a forward lead to."""

_NOT_THE_USERS = (torch.__path__[0], str(Path(__file__).parent), "<")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:160]


@contextmanager
def scratch_copy(model: nn.Module, inputs: Inputs) -> Iterator[nn.Module]:
    """A perturbed copy to try things on; where a model cannot be copied, itself, put back to the last bit."""
    try:
        clone = copy_of(model)
    except Exception:
        with _borrowed(model):
            _perturb(model, inputs)
            yield model
        return
    clone.zero_grad()
    _perturb(clone, inputs)
    yield clone


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    tensors = [*model.parameters(), *model.buffers()]
    saved = [(tensor, tensor.data, tensor.grad) for tensor in tensors]
    for tensor in tensors:
        tensor.data = tensor.data.clone()
    try:
        yield
    finally:
        for tensor, values, gradient in saved:
            tensor.data, tensor.grad = values, gradient


@torch.no_grad()
def _perturb(model: nn.Module, inputs: Inputs) -> None:
    """Move all weights a little: a model full of zeros (zero-initialised residual branches) would pass any check.

    The running statistics of norms are set to those of the batch, and moved too: with the ones of a new model, what
    the first layers do may be lost on the way.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.add_(0.02 * noise(parameter))
    _calibrate(model, inputs)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.add_(0.05 * noise(buffer))
        elif name.endswith("running_var"):
            buffer.mul_(1.0 + 0.2 * noise(buffer).tanh())


def _calibrate(model: nn.Module, inputs: Inputs) -> None:
    """One pass in train mode in which running statistics forget what was."""
    norms = [(module, module.momentum) for module in model.modules() if isinstance(module, _NormBase)]
    modes = [(module, module.training) for module in model.modules()]
    if not norms:
        return
    try:
        for norm, _ in norms:
            norm.momentum = 1.0
        model.train()
        with attributes_kept(model), isolated(0), contextlib.suppress(Exception):  # Trial reports what fails
            inputs.call(model)
    finally:
        for norm, momentum in norms:
            norm.momentum = momentum
        for module, training in modes:
            module.training = training
