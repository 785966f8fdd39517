"""SAM: the gradient at the worst place nearby, with any base optimizer.

Foret, Kleiner, Mobahi and Neyshabur, "Sharpness-aware minimization for efficiently improving generalization", ICLR
2021; Kwon, Kim, Park and Choi, "ASAM", ICML 2021.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim.apart import apart
from growkit.optim.checks import Range, check_choice, check_ranges, check_whole
from growkit.optim.displacement import Displacement
from growkit.optim.exact import exact_gradient
from growkit.optim.final_step import Scaler, final_step, forget_unscaling, is_unscaled, tell_overflow, usable
from growkit.optim.neighbourhood import Moved, Moves, Neighbourhood, Schedule, patterns_of
from growkit.optim.two_passes import KeptBuffers, Marks, Replay
from growkit.optim.wrapping import Wrapping

__all__ = ["SAM", "Adaptive"]

Adaptive = bool | Literal["all"]

NO_MODEL = (
    "SAM was made without model=: statistics of batch norms are then updated by both passes, which groups hold norms "
    "and biases is guessed from shapes, and gradients of a first pass are averaged over processes"
)
INNER_MODEL = (
    "{}: sync=False keeps the first gradient each process's own by the no_sync() of a model, got {}, which has none: "
    "what wraps it averages that gradient too; give the DistributedDataParallel module as model=, or take sync=True"
)
NO_CLOSURE = (
    "SAM.step needs a closure that computes the loss and its gradients, for it is called twice; or call first_step() "
    "after the first backward and second_step() after the second; got {!r}. What steps without one, as "
    "torch.distributed.checkpoint does, takes optimizer.base"
)


class SAM(Wrapping):
    """Sharpness-aware minimisation around any optimizer.

    A step computes the gradient g, moves the weights to w + rho T^2 g / |T g| (T = 1), computes the gradient there on
    the same batch, puts the weights back bit for bit, and lets the base optimizer step with the second gradient. Weight
    decay is the base's affair.

        optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, model=model, lr=0.1, momentum=0.9)
        loss = optimizer.step(closure)      # the closure computes the loss and its gradients, and returns the loss

    Both passes draw the same random numbers. With `model`, buffers that a forward writes to (running statistics) are
    those of the first pass, and with DistributedDataParallel the first gradient stays each process's own, as in the
    paper, unless `sync`. Without `model` these three protections are lost, which one warning says.

    A first gradient that is not finite skips the step, as a gradient scaler would: weights and the base's state stay,
    `skipped` counts it, and a warning says so once. The second gradient is the base's affair, as in any training; only
    a scaler looks at it. An exception in the second pass leaves the weights as they were.

    The host reads the norm once a step. Gradients of parameters that SAM does not hold add up over both passes.

    Args:
        params: parameters, (name, parameter) pairs, or groups with settings of their own (`rho`, `adaptive`, `eta`,
            `by` and those of the base). A group of rho 0 is not moved and does not count in the norm.
        base: an optimizer class, made from the groups with `base_settings`, or an instance with the same parameters.
            Given `model`, torch's SGD, Adam and AdamW are made with fused=True, unless a module has sparse gradients or
            `base_settings` choose a form themselves.
        rho: radius of the neighbourhood.
        adaptive: True gives weights their T of ASAM, and biases and shifts T = 1; "all" gives it to all parameters.
        eta: added to T. At 0 weights that are 0, as those of units that just grew, would never be moved.
        by: "element" for T = |w|, "filter" for the norm of a convolution's filter.
        norm: 2, or infinity.
        scope: "all" measures one norm over all groups, "group" one for each.
        schedule: a function of the number of steps done that gives a factor of rho, or "lr" for a rho in proportion to
            each group's learning rate; None for a constant rho.
        interval: only every so many steps moves the weights; the others are plain steps of the base.
        m: so many samples of a batch are moved together by their own gradient, and the final gradient is the mean over
            all (m-sharpness, on one device); `step` then takes `samples`. None for the whole batch.
        clip: largest norm of the final gradient, over all groups; None for no limit.
        second_order: the exact gradient of the loss at w + e(w), with the derivative of e, which the paper leaves out.
            The closure then only returns the loss, without backward(); a step costs about a third pass.
        sync: average the first gradient over processes too. That happens anyway where `model` is not the module which
            averages, as DistributedDataParallel, but what it wraps.
        moved: which parameters are moved: "all"; "norms", the scales and shifts of normalising layers (SAM-ON, Mueller
            et al., 2023), for which `model` is needed; or patterns of their names, as in a shell.
        model: the module that is trained.
        base_settings: of the base class.

    Attributes:
        base: the base optimizer; groups and state are shared with it. Give it to torch.distributed.checkpoint, which
            steps without a closure to make state, and save `steps` beside.
        steps: how many steps were made. skipped: how many were skipped for gradients that were not finite.

    Raises:
        UserInputError: a value is out of its range, or the base holds other parameters.
    """

    grad_scale: Tensor | None
    found_inf: Tensor | None
    _step_supports_amp_scaling = True  # makes a scaler whose own step is called say so here, where it is refused

    def __init__(
        self,
        params: Iterable[Any],
        base: type[torch.optim.Optimizer] | torch.optim.Optimizer = torch.optim.SGD,
        *,
        rho: float = 0.05,
        adaptive: Adaptive = False,
        eta: float = 0.01,
        by: Literal["element", "filter"] = "element",
        norm: float = 2,
        scope: Literal["all", "group"] = "all",
        schedule: Schedule = None,
        interval: int = 1,
        m: int | None = None,
        clip: float | None = None,
        second_order: bool = False,
        sync: bool = False,
        moved: Moved = "all",
        model: nn.Module | None = None,
        **base_settings: Any,
    ):
        name = type(self).__name__
        if isinstance(norm, bool) or norm not in (2, math.inf):
            raise UserInputError(f"{name}: norm must be 2 or float('inf'), got {norm!r}")
        check_choice(name, "scope", scope, ("all", "group"))
        for setting, flag in (("second_order", second_order), ("sync", sync)):
            check_choice(name, setting, flag, (False, True))
        check_whole(name, "interval", interval)
        check_whole(name, "m", 1 if m is None else m)
        if clip is not None:
            check_ranges(name, {"clip": clip}, {"clip": Range(0.0, open_below=True)})
        if not (schedule in (None, "lr") or callable(schedule)):
            raise UserInputError(f"{name}: schedule must be None, 'lr' or a function of the steps, got {schedule!r}")
        if second_order and hasattr(model, "no_sync"):
            raise UserInputError(
                f"{name}: second_order must see the module itself, got {type(model).__name__}, whose processes would "
                f"drift apart, for its gradients come without a backward pass"
            )
        own = {"rho": rho, "adaptive": adaptive, "eta": eta, "by": by}
        self.check_group(own)
        if model is None:
            warnings.warn(NO_MODEL, stacklevel=2)
        elif not (sync or hasattr(model, "no_sync")) and _among_others():
            warnings.warn(INNER_MODEL.format(name, type(model).__name__), stacklevel=2)
        self.interval, self.m, self.clip = interval, m, clip
        self.second_order, self.sync = second_order, sync
        self._averages = hasattr(model, "no_sync")  # over processes, in a backward
        self.neighbourhood = Neighbourhood(name, float(norm), scope, schedule, patterns_of(name, moved), model)
        self._displacement = Displacement()
        self._lost = False  # the first gradient of a step in two calls was not finite
        self._through: int | None = None  # the scaler of the first of two calls
        self._used: Marks | None = None  # the gradients of the first of two calls, where they stayed
        self._between: KeptBuffers | None = None
        super().__init__(params, base, own, model, base_settings)
        self.neighbourhood.look_at(self.param_groups)

    @property
    def displaced(self) -> bool:
        """Whether the weights are away from where they belong, between two passes."""
        return self._displacement.active

    def check_group(self, group: Mapping[str, Any]) -> None:
        """Refuse settings out of their ranges, before a group is added."""
        name = type(self).__name__
        check_ranges(name, group, RANGES)
        check_choice(name, "adaptive", group["adaptive"], (False, True, "all"))
        check_choice(name, "by", group["by"], ("element", "filter"))
        whole = [setting for setting in WHOLE if setting in group and setting not in self.base.defaults]
        if whole:
            raise UserInputError(f"{name}: {', '.join(whole)} must be the same for all groups, got it in one of them")

    # --- the step

    def step(
        self,
        closure: Callable[..., Any] | None = None,
        *,
        scaler: Scaler = None,
        samples: int | None = None,
    ) -> Any:
        """One step in two passes.

        Args:
            closure: computes the loss and its gradients (of all micro-batches, if there are several), and returns the
                loss. Gradients are forgotten before each call. It must open its autocast itself.
            scaler: scales the loss in the closure; the step then goes through it, and `scaler.update()` is yours.
                Without `m` the closure may call `scaler.unscale_(optimizer.base)` behind its backward.
            samples: size of the batch, with `m` alone. The closure then takes a slice of the batch and computes the
                mean over it.

        Returns:
            The loss at the weights that the step began with.

        Raises:
            UserInputError: there is no closure, it computes no gradients, or the weights are between two passes.
        """
        scaler = usable(self, scaler)
        self.check_in_place("stepped")
        self.complete_groups()
        if not callable(closure):
            raise UserInputError(NO_CLOSURE.format(closure))
        forget_unscaling(self.base, scaler)  # as the gradients from before will be
        if self.second_order and scaler is not None:
            raise UserInputError("SAM.step takes no scaler with second_order, whose closure makes no backward pass")
        if (samples is None) != (self.m is None):
            raise UserInputError(f"SAM.step takes samples where SAM has m, got samples={samples} with m={self.m}")
        if samples is not None:
            check_whole("SAM.step", "samples", samples)
        if self.steps % self.interval:
            loss, finite = self._plainly(closure if samples is None else lambda: closure(slice(0, samples))), True
        elif samples is not None and self.m is not None:
            loss, finite = self._in_chunks(closure, samples, self.m, scaler)
        else:
            loss, finite = self._looked_around(closure, scaler)
        self._finish(scaler, finite)
        torch.clear_autocast_cache()  # under an autocast around the step it holds copies of the weights from before
        return loss

    def _looked_around(self, closure: Callable[[], Any], scaler: Scaler) -> tuple[Any, bool]:
        """The gradient of SAM in the place of the gradients; the loss, and whether all was finite."""
        return self._exactly(closure) if self.second_order else self._two_passes(closure, scaler)

    def _two_passes(self, closure: Callable[[], Any], scaler: Scaler) -> tuple[Any, bool]:
        """Without the derivative of the move, as in the paper."""
        replay = Replay()
        with torch.enable_grad(), self._first_gradient_alone():
            loss = self._pass(closure)
        try:
            if not self._move(scaler):
                return loss, False
            with replay.again(), torch.enable_grad():
                self._pass(closure)
        finally:
            self.restore()
        return loss, True

    def _exactly(self, closure: Callable[[], Tensor]) -> tuple[Tensor, bool]:
        """With the derivative of the move."""
        trained = [one for group in self.param_groups for one in group["params"] if one.requires_grad]
        return exact_gradient(
            lambda: self._loss_of(closure),
            trained,
            partial(self.neighbourhood.sensitive_steps, self.param_groups, self.steps),
            self.model,
            self._displacement,
        )

    def _loss_of(self, closure: Callable[[], Tensor]) -> Tensor:
        torch.clear_autocast_cache()
        self.zero_grad()
        loss = closure()
        if self.gradients() or not (isinstance(loss, Tensor) and loss.requires_grad and loss.dim() == 0):
            raise UserInputError("SAM.step with second_order needs a closure that returns the loss, without backward()")
        return loss

    def _in_chunks(self, closure: Callable[[slice], Any], samples: int, chunk: int, scaler: Scaler) -> tuple[Any, bool]:
        sums: dict[Tensor, Tensor] = {}
        mean, finite = None, True
        for start in range(0, samples, chunk):
            part = slice(start, min(start + chunk, samples))
            share = (part.stop - part.start) / samples
            loss, fine = self._looked_around(lambda part=part: closure(part), scaler)
            finite = finite and fine
            if is_unscaled(self.base, scaler):
                raise UserInputError("SAM.step with m adds up scaled gradients: call no unscale_() in the closure")
            if loss is not None:
                loss = share * (loss.detach() if isinstance(loss, Tensor) else loss)
                mean = loss if mean is None else mean + loss
            for parameter in self.with_gradients():
                gradient = parameter.grad * share
                sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient
        self.zero_grad()
        for parameter, gradient in sums.items():
            parameter.grad = gradient
        return mean, finite

    def _plainly(self, closure: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            if not self.second_order:
                return self._pass(closure)
            loss = self._loss_of(closure)
            loss.backward()
            return loss.detach()

    def _pass(self, closure: Callable[[], Any]) -> Any:
        torch.clear_autocast_cache()  # it may hold copies of the weights from before they were moved
        self.zero_grad()
        loss = closure()
        if not self.gradients():
            raise UserInputError("SAM.step: the closure must call backward() on the loss; no parameter has a gradient")
        return loss

    def first_step(self, *, scaler: Scaler = None, zero_grad: bool = True) -> bool:
        """Move the weights along the gradients, after a first backward; call `second_step` after a second.

        Random numbers are yours to repeat here: dropout draws other masks in the second pass. With several processes
        the gradients are averaged before they come here, so that `sync` must be True.

        Args:
            scaler: that scaled the loss; gradients may be unscaled by `scaler.unscale_(optimizer.base)`.
            zero_grad: forget the gradients then.

        Returns:
            Whether the weights were moved; gradients that are not finite move nothing, and `second_step` will skip.

        Raises:
            UserInputError: there is no gradient, the weights were moved already, or interval, m, second_order or a
                first gradient of each process's own were asked for, which need `step`.
        """
        if self._displacement.active:
            self.check_in_place("stepped")
        self.complete_groups()
        if self.interval > 1 or self.second_order or self.m is not None:
            raise UserInputError("SAM: interval, m and second_order need step(closure): two calls cannot follow them")
        if self._is_local() and dist.get_world_size(getattr(self.model, "process_group", None)) > 1:
            raise UserInputError(
                "SAM.first_step gets gradients that are averaged over processes, where sync=False moves each process "
                "by its own; call step(closure), or take sync=True"
            )
        gradients = self.gradients()
        if not gradients:
            raise UserInputError("SAM.first_step comes after backward(), got no parameter with a gradient")
        scaler = usable(self, scaler)
        moved = self._move(scaler)
        self._lost, self._through = not moved, None if scaler is None else id(scaler)
        if moved and not zero_grad:
            self._used = Marks(gradients)
        torch.clear_autocast_cache()  # of the weights as they were, under an autocast around both passes
        if zero_grad:
            self.zero_grad()
        return moved

    def second_step(self, *, scaler: Scaler = None, zero_grad: bool = True) -> None:
        """Put the weights back and let the base step, after the second backward; hooks of steps are called around it.

        Raises:
            UserInputError: `first_step` was not called, or with another scaler, or there is no gradient or only the
                first one; the weights are put back.
        """
        lost, used = self._lost, self._used
        known = self._displacement.active or lost
        self.restore()
        gradients = self.gradients()
        if not known or not gradients or (used is not None and used.fit(gradients)):
            raise UserInputError("SAM.second_step comes after first_step and a second backward()")
        scaler = usable(self, scaler)
        if self._through != (None if scaler is None else id(scaler)):
            raise UserInputError("SAM.second_step takes the scaler that first_step was given, got another one or none")
        if self._optimizer_step_pre_hooks:
            self.call_hooks(self._optimizer_step_pre_hooks)
        self._finish(scaler, not lost)
        self._opt_called = True  # what a scheduler asks for, which knows only step()
        if self._optimizer_step_post_hooks:
            self.call_hooks(self._optimizer_step_post_hooks)
        if zero_grad:
            self.zero_grad()

    @apart
    def restore(self) -> None:
        """Put the weights back to where they were before the first pass, bit for bit; nothing if they are there."""
        buffers, self._between, self._used, self._lost = self._between, None, None, False
        torch.clear_autocast_cache()  # an autocast around both passes would go on with the moved weights
        try:
            self._displacement.restore()
        finally:
            if buffers is not None:
                buffers.restore()

    def _finish(self, scaler: Scaler, finite: bool) -> None:
        self.steps += 1
        if finite:
            final_step(self.base, self.clip, scaler)
        elif scaler is not None:
            tell_overflow(self.base, scaler)
        else:
            if not self.skipped:
                message = f"SAM skipped step {self.steps}: the gradient of its first pass is not finite"
                warnings.warn(message, stacklevel=4)
            self.skipped += 1

    @apart
    def _move(self, scaler: Scaler) -> bool:
        """Move the weights to where the loss is largest, to first order; False where a gradient is not finite."""
        scale = 1.0 if scaler is None or forget_unscaling(self.base, scaler) else scaler.get_scale()
        moves = self.neighbourhood.moves(self.param_groups, self.steps, scale)
        if self._is_local():
            moves = self._agreed(moves)
        if moves is None:
            return False
        self._between = KeptBuffers(self.model)
        try:
            self._displacement.move(moves)
        except BaseException:  # also an interrupt
            self.restore()
            raise
        return True

    def _agreed(self, moves: Moves | None) -> Moves | None:
        """None for all processes where it is for one, which else would wait for each other in the second pass."""
        fine = torch.tensor(float(moves is not None), device=self.gradients()[0].device)
        dist.all_reduce(fine, dist.ReduceOp.MIN, group=getattr(self.model, "process_group", None))
        return moves if fine.item() else None

    def _is_local(self) -> bool:
        """Whether the first gradient shall be each process's own."""
        return self._averages and not self.sync and dist.is_available() and dist.is_initialized()

    def _first_gradient_alone(self) -> AbstractContextManager[Any]:
        no_sync = getattr(self.model, "no_sync", None)
        return nullcontext() if self.sync or no_sync is None else no_sync()


def _among_others() -> bool:
    """Whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


RANGES = {"rho": Range(0.0), "eta": Range(0.0)}
WHOLE = ("norm", "scope", "schedule", "interval", "m", "clip", "second_order", "sync", "moved", "model", "inner_lr")
