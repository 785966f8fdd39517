"""Proof that an edit kept the function: on the live model at every event, on a perturbed copy before the first one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.device import exact_arithmetic
from growkit.errors import GrowthRefused, SurgeryError
from growkit.graph import GrowthSite, Refusal
from growkit.rng import isolated
from growkit.surgery.dropout import WithoutDropout
from growkit.surgery.records import TensorChange
from growkit.surgery.tensors import is_new
from growkit.surgery.transaction import Edit, Extension, Growth, grow, lookup

__all__ = [
    "FunctionChange",
    "Inputs",
    "Observation",
    "function_change",
    "new_entries",
    "observe",
    "unsafe_sites",
    "untouched",
]


@dataclass(frozen=True)
class Inputs:
    """Arguments a model is called with."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def call(self, model: nn.Module) -> list[Tensor]:
        """The floating-point outputs of `model`, flattened."""
        leaves = pytree.tree_leaves(model(*self.args, **(self.kwargs or {})))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]

    def one_more(self) -> Inputs:
        """The same batch with its first sample repeated at the end: a batch of another size."""
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: torch.cat([x, x[:1]]) if x.dim() else x, (self.args, self.kwargs or {})
        )
        return Inputs(args, kwargs)


@dataclass(frozen=True)
class Observation:
    """What a model computes on one batch in eval and in train mode, in fp32 or better.

    In train mode dropout is left out and all other random numbers are replayed.
    """

    eval: list[Tensor]
    train: list[Tensor]


@dataclass(frozen=True)
class FunctionChange:
    """max |difference| / max |output| of two observations; infinite where shapes differ or values are not finite."""

    eval: float
    train: float

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.eval, self.train)


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put back buffers, train/eval modes and torch's random state after a block, whatever it ran.

    A buffer comes back as the object it was, also where the model's code put another tensor in its place.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        with isolated():
            yield
    finally:
        for module, training in modes:
            module.training = training
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                buffer.copy_(value)


def observe(model: nn.Module, inputs: Inputs, *, seed: int = 0) -> Observation:
    """Run `model` on `inputs` in both modes, without gradients; its state, mode and random streams are as before."""

    def run(training: bool) -> list[Tensor]:
        model.train(training)
        with torch.no_grad(), exact_arithmetic(), isolated(seed), WithoutDropout():
            return [_at_least_fp32(output.detach()) for output in inputs.call(model)]

    with untouched(model):
        return Observation(eval=run(False), train=run(True))


def _at_least_fp32(output: Tensor) -> Tensor:
    return output if output.dtype == torch.float64 else output.float()


def function_change(before: Observation, after: Observation) -> FunctionChange:
    """How far two observations lie apart."""
    return FunctionChange(_relative(before.eval, after.eval), _relative(before.train, after.train))


def _relative(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    if [b.shape for b in before] != [a.shape for a in after]:
        return float("inf")
    worst = 0.0
    for b, a in zip(before, after, strict=True):
        if not (bool(torch.isfinite(a).all()) and bool(torch.isfinite(b).all())):
            return float("inf")
        if b.numel() == 0:
            continue
        worst = max(worst, float((a - b).abs().max() / b.abs().max().clamp_min(torch.finfo(b.dtype).tiny)))
    return worst


def new_entries(model: nn.Module, edit: Edit) -> dict[str, list[tuple[nn.Parameter, Tensor]]]:
    """Per site, the parameters it changed with the mask of their new entries; valid until the next edit."""
    return {
        record.site: [
            (parameter, is_new(change.index_maps, parameter.shape, parameter.device))
            for change in record.tensors
            if isinstance(parameter := lookup(model, change.names[0], change.kind), nn.Parameter)
            and _still_fits(change, parameter)
        ]
        for record in edit.records
    }


def _still_fits(change: TensorChange, parameter: nn.Parameter) -> bool:
    """Whether no later edit of the same event changed the same dimension again."""
    maps = zip(change.index_maps, parameter.shape, strict=True)
    return all(index is None or len(index) == size for index, size in maps)


def unsafe_sites(
    model: nn.Module, sites: Sequence[GrowthSite], inputs: Inputs, *, tolerance: float = 1e-4
) -> list[Refusal]:
    """Widen all sites together on a perturbed copy and find those that would not keep the function.

    The weights of the copy are perturbed first: a model full of zeros (zero-initialised residual branches) would pass
    any check. New units get a random fan-in and a zero fan-out. Checked are the outputs in eval and train mode, another
    batch size, and that a gradient reaches the new units. A control with a random fan-out must change the outputs.

    Args:
        model: left untouched.
        sites: the candidates.
        inputs: an example batch of at least 2 samples.
        tolerance: largest relative change of an fp32 output taken for rounding.

    Returns:
        A refusal for each site that fails, alone or together with those before it that are kept, with the reason.
    """
    trial = _Trial(_perturbed_copy(model), inputs, tolerance)
    refusals: list[Refusal] = []
    candidates = list(sites)
    safe = _safe_part(trial, candidates, refusals)
    if safe is candidates or trial.failure(safe) is None:
        return refusals
    # each part was safe alone, together they are not: from the first on, keep what is safe with those kept before it
    kept: list[GrowthSite] = []
    for site in safe:
        reason = trial.failure([*kept, site])
        if reason is None:
            kept.append(site)
        else:
            names = ", ".join(other.name for other in kept)
            refusals.append(_refusal(site, f"it cannot grow at the same events as {names or 'others'}: {reason}"))
    return refusals


def _safe_part(trial: _Trial, sites: list[GrowthSite], refusals: list[Refusal]) -> list[GrowthSite]:
    if not sites:
        return []
    reason = trial.failure(sites)
    if reason is None:
        return sites
    if len(sites) == 1:
        refusals.append(_refusal(sites[0], reason))
        return []
    half = len(sites) // 2
    return _safe_part(trial, sites[:half], refusals) + _safe_part(trial, sites[half:], refusals)


def _refusal(site: GrowthSite, reason: str) -> Refusal:
    return Refusal(name=site.name, width=site.width, reason=reason, location=site.location)


DRAWS = 4
UNREACHED = "no gradient reaches its new units"
CANNOT_TELL = "the check cannot tell: a wrong edit does not change the outputs either"


@dataclass
class _Trial:
    model: nn.Module  # a copy that may be changed and is put back after each trial
    inputs: Inputs
    tolerance: float

    def failure(self, sites: Sequence[GrowthSite]) -> str | None:
        """Why widening `sites` together would be wrong; None where it is right.

        New units that happen to be silent on the whole batch, as those of a ReLU may be, prove nothing: others are
        drawn before the trial says that they cannot learn or cannot be checked.
        """
        reason: str | None = None
        for draw in range(DRAWS):
            reason = self._attempt(sites, draw)
            if reason not in (UNREACHED, CANNOT_TELL):
                return reason
        return reason

    def _attempt(self, sites: Sequence[GrowthSite], draw: int) -> str | None:
        batches = [self.inputs, self.inputs.one_more()]
        before = [observe(self.model, batch) for batch in batches]
        try:
            edit = self._widen(sites, draw, fan_out=False)
        except (GrowthRefused, SurgeryError) as error:
            return f"surgery cannot widen it: {error}"
        try:
            changes = [function_change(b, observe(self.model, batch)) for b, batch in zip(before, batches, strict=True)]
            worst = max(change.worst for change in changes)
            if worst == float("inf"):
                return "widening it changes the outputs' shape, or they are not finite"
            if worst > self.tolerance:
                return f"widening it changes the outputs by {worst:.1e} of their size"
            unreached = self._without_gradient(edit)
        except Exception as error:  # the model's own code may fail in any way at a width it did not expect
            return f"the model fails at another width: {type(error).__name__}: {str(error).splitlines()[0][:160]}"
        finally:
            edit.undo()
        if unreached:
            return UNREACHED
        return None if self._control(sites, draw, before[0]) else CANNOT_TELL

    def _widen(self, sites: Sequence[GrowthSite], draw: int, *, fan_out: bool) -> Edit:
        units = [(site, _trial_units(site)) for site in sites]
        return grow(
            self.model, [Growth(site, num, self._random(site, num, draw, fan_out=fan_out)) for site, num in units]
        )

    def _control(self, sites: Sequence[GrowthSite], draw: int, before: Observation) -> bool:
        edit = self._widen(sites, draw, fan_out=True)
        try:
            return function_change(before, observe(self.model, self.inputs)).eval > self.tolerance
        finally:
            edit.undo()

    def _without_gradient(self, edit: Edit) -> list[str]:
        with untouched(self.model), exact_arithmetic(), torch.enable_grad(), isolated(0):
            self.model.train()
            self.model.zero_grad()
            loss = torch.stack(
                [(output.float() * torch.randn_like(output.float())).sum() for output in self.inputs.call(self.model)]
            ).sum()
            loss.backward()
        unreached = [
            site
            for site, entries in new_entries(self.model, edit).items()
            if not _learns([p.grad[mask] for p, mask in entries if p.grad is not None])
        ]
        self.model.zero_grad()
        return unreached

    def _random(self, site: GrowthSite, num_new: int, draw: int, *, fan_out: bool) -> Extension:
        generator = torch.Generator().manual_seed(draw)
        values = {}
        for edit in site.tensor_edits(num_new):
            tensor = lookup(self.model, edit.names[0], edit.kind)
            if edit.pass_through:
                continue
            for dim, index in enumerate(edit.index_maps):
                if index is None or (dim in edit.consumer_dims and not fan_out):
                    continue
                shape = list(tensor.shape)
                shape[dim] = int((index < 0).sum())
                values[edit.names[0], dim] = torch.randn(shape, generator=generator).to(tensor) * 0.1
        return Extension(values)


def _learns(gradients: Sequence[Tensor]) -> bool:
    """Whether the gradients of new entries are finite, and not all zero."""
    return all(bool(g.isfinite().all()) for g in gradients) and any(bool(g.any()) for g in gradients)


def _trial_units(site: GrowthSite) -> int:
    return max(4, site.width // 4)


def _perturbed_copy(model: nn.Module) -> nn.Module:
    clone = copy.deepcopy(model)
    clone.zero_grad()
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator).to(like)

    with torch.no_grad():
        for parameter in clone.parameters():
            if parameter.is_floating_point():
                parameter.add_(0.02 * noise(parameter))
        for name, buffer in clone.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.05 * noise(buffer))
            elif name.endswith("running_var"):
                buffer.mul_(1.0 + 0.2 * noise(buffer).tanh())
    return clone
