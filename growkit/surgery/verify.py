"""What a model computes, before and after an edit, with the model left as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from growkit.device import exact_arithmetic
from growkit.errors import ModelError
from growkit.graph import attributes_kept, output_tensors, outside_inference_mode, values_kept
from growkit.rng import isolated
from growkit.surgery.dropout import WithoutDropout
from growkit.surgery.tensors import grow_values, is_new
from growkit.surgery.undo import Edit
from growkit.surgery.values import lookup

__all__ = [
    "FunctionChange",
    "Inputs",
    "Observation",
    "at_least_fp32",
    "function_change",
    "kept_change",
    "live_entries",
    "new_entries",
    "observe",
    "untouched",
]

SMALL = 2**20  # entries of a buffer that is looked at: larger ones hold data
FAINT = 1e-2  # what is kept is judged by its largest entry, or by this: a mean of nearly 0 is rounding
FILLS = 8  # values that masks and constants may have filled an output with


@dataclass(frozen=True)
class Inputs:
    """Arguments a model is called with."""

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None

    def call(self, model: nn.Module) -> list[Tensor]:
        """The floating-point outputs of `model`, flattened, whatever the classes that hold them."""
        outputs = output_tensors(model(*self.args, **(self.kwargs or {})))
        return [output for output in outputs if output.is_floating_point()]

    @property
    def batch(self) -> int | None:
        """The number of samples: the first dimension of the first tensor that has one."""
        leaves = pytree.tree_leaves((self.args, self.kwargs or {}))
        return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)

    def at_most(self, samples: int) -> Inputs:
        """The first samples of the batch."""
        return self._each_sample(lambda x: x[:samples])

    def double(self) -> Inputs:
        """The same batch in float64."""
        args, kwargs = pytree.tree_map_only(
            Tensor, lambda x: x.double() if x.is_floating_point() else x, (self.args, self.kwargs or {})
        )
        return Inputs(args, kwargs)

    def one_more(self) -> Inputs:
        """The same batch with its first sample repeated at the end: a batch of another size."""
        return self._each_sample(lambda x: torch.cat([x, x[:1]]))

    def moved(self) -> Inputs:
        """Other values: noise on floating-point entries, another order of the samples elsewhere.

        An example of equal entries, such as zeros, hides what depends on their differences: it gets values that differ.
        """
        generator = torch.Generator().manual_seed(0)
        leaves = [x for x in pytree.tree_leaves((self.args, self.kwargs or {})) if _is_dense(x) and x.numel()]
        dummy = all(bool((x == x.flatten()[0]).all()) for x in leaves)

        def move(x: Tensor) -> Tensor:
            if x.is_floating_point():
                noise = torch.randn(x.shape, generator=generator).to(x)
                known = x.isfinite() if dummy else x.isfinite() & (x != 0)
                return torch.where(known, x + noise * (1.0 if dummy else 0.1 * x.abs()), x)
            if dummy and x.dtype != torch.bool and not x.is_complex():
                steps = torch.randint(0, 2, x.shape, generator=generator).to(x)
                return torch.where(x > 0, x - steps, x + steps)  # neighbours that a table of such numbers has
            return x.roll(1, 0)

        return self._each_sample(move)

    def _each_sample(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """Change the tensors that have one entry per sample; sparse ones, such as the edges of a graph, stay."""
        batch = self.batch
        args, kwargs = pytree.tree_map_only(
            Tensor,
            lambda x: change(x) if _is_dense(x) and x.dim() and len(x) == batch else x,
            (self.args, self.kwargs or {}),
        )
        return Inputs(args, kwargs)


def _is_dense(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


@dataclass(frozen=True)
class Observation:
    """What a model computes on one batch in eval and in train mode, in fp32 or better.

    In train mode dropout is left out and all other random numbers are replayed.

    Attributes:
        eval, train: the outputs.
        kept: what the model keeps for later calls after the one in train mode: small buffers of floats, by name.
    """

    eval: list[Tensor]
    train: list[Tensor]
    kept: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class FunctionChange:
    """max |difference| / max |output| of two observations, by the entries of `live_entries`.

    It is infinite where shapes differ, or values that are not finite; NaN is never the same.
    """

    eval: float
    train: float

    @property
    def worst(self) -> float:
        """The larger of the two."""
        return max(self.eval, self.train)


@contextmanager
def untouched(model: nn.Module) -> Iterator[list[Tensor]]:
    """Put back after a block, whatever it ran, all that a model holds, and the global random states.

    That is parameters and buffers (as the objects and with the values they were, also where the model's code put
    others in their place), train/eval modes, plain attributes and what they hold. Gradients stay as the block left
    them.

    Yields:
        A list that afterwards holds the tensors whose values are lost: no torch operation wrote to them.
    """
    with isolated(), attributes_kept(model) as held, values_kept(held.tensors, at_once=model.buffers()) as lost:
        yield lost


@outside_inference_mode()
def observe(model: nn.Module, inputs: Inputs, *, seed: int = 0) -> Observation:
    """Run `model` on `inputs` in both modes, without gradients; all it holds and all random streams are as before.

    Raises:
        ModelError: the forward wrote to a tensor of the model behind torch's back, so that it cannot be put back.
    """

    def run(training: bool) -> list[Tensor]:
        model.train(training)
        with torch.no_grad(), exact_arithmetic(), isolated(seed), WithoutDropout():
            return [at_least_fp32(output.detach()) for output in inputs.call(model)]

    with untouched(model) as lost:
        seen = Observation(run(False), run(True), dict(_small_buffers(model)))
    if lost:
        raise ModelError(
            f"a forward must write to its tensors with torch operations, but one of shape {tuple(lost[0].shape)} was "
            "written to in another way and cannot be put back; compiled code does so: grow the model before compiling"
        )
    return seen


def _small_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and 0 < buffer.numel() <= SMALL:
            yield name, at_least_fp32(buffer.detach()).clone()


def at_least_fp32(output: Tensor) -> Tensor:
    """In the precision that outputs are compared in."""
    return output if output.dtype == torch.float64 else output.float()


def function_change(before: Observation, after: Observation) -> FunctionChange:
    """How far two observations lie apart."""
    return FunctionChange(_relative(before.eval, after.eval), _relative(before.train, after.train))


def kept_change(before: Observation, after: Observation) -> float:
    """How far what is kept lies apart, where names and shapes are the same: for edits that move no module."""
    return max(
        (_kept_change(before.kept[name], after.kept[name]) for name in before.kept.keys() & after.kept.keys()),
        default=0.0,
    )


def _kept_change(before: Tensor, after: Tensor) -> float:
    if before.shape != after.shape or torch.equal(before, after):
        return 0.0
    scale = before.abs().nan_to_num(0.0, 0.0).max().clamp_min(FAINT)
    change = float((after - before).abs().max() / scale)
    return change if change == change else float("inf")


def _relative(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    if [b.shape for b in before] != [a.shape for a in after]:
        return float("inf")
    return max((_relative_one(b, a) for b, a in zip(before, after, strict=True) if b.numel()), default=0.0)


def _relative_one(before: Tensor, after: Tensor) -> float:
    finite = before.isfinite()
    if not bool(finite.any()) or not bool((after.isfinite() == finite).all()):
        return float("inf")
    if not bool(finite.all()) and not torch.equal(before[~finite], after[~finite]):  # NaN equals nothing
        return float("inf")
    difference = torch.where(finite, after - before, 0.0).abs().max()
    return float(difference / before[live_entries(before)].abs().max().clamp_min(torch.finfo(before.dtype).tiny))


def live_entries(output: Tensor) -> Tensor:
    """The entries of an output that its size is judged by: not those that a mask, or a constant, has filled.

    These are infinite, or the largest ones and equal to the last bit in several places. Where no entry is left that way
    all finite ones count, as in outputs of few values.
    """
    size = output.detach().abs()
    finite = live = size.isfinite()
    for _ in range(FILLS):
        shared = live & (size == torch.where(live, size, -1.0).max())
        if int(shared.sum()) < 2:
            return live
        live = live & ~shared
        if not bool(live.any()):
            break
    return finite


def new_entries(model: nn.Module, edit: Edit) -> dict[str, list[tuple[nn.Parameter, Tensor]]]:
    """Per site, the parameters it changed with the mask of their new entries; valid until the next edit."""
    masks: dict[tuple[str, str], Tensor] = {}
    for record in edit.records:
        for change in record.tensors:
            parameter = lookup(model, change.names[0], change.kind)
            if not isinstance(parameter, nn.Parameter):
                continue
            name = change.names[0]
            for (site, other), mask in masks.items():  # an earlier site of the same event changed this tensor too
                if other == name:
                    masks[site, other] = grow_values(mask, change.index_maps, False)
            masks[record.site, name] = is_new(change.index_maps, change.new_shape, parameter.device).clone()
    found: dict[str, list[tuple[nn.Parameter, Tensor]]] = {record.site: [] for record in edit.records}
    for (site, name), mask in masks.items():
        found[site].append((model.get_parameter(name), mask))
    return found
