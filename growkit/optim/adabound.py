"""AdaBound and AMSBound: Adam whose step sizes are clipped between bounds that close in on those of SGD.

Luo, Xiong, Liu and Sun, "Adaptive gradient methods with dynamic bound of learning rate", ICLR 2019, and the code that
its authors released, which differs from the paper in bias correction and in the bounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, Literal

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from growkit.errors import UserInputError
from growkit.optim.bounded_step import HALVES, bounded_step
from growkit.optim.checks import Range, check_choice, check_mapping, check_ranges, check_state, check_whole
from growkit.optim.compiled import compiled_kernel
from growkit.optim.rates import Rates

__all__ = ["AMSBound", "AdaBound"]

Paper = bool | Literal["slides"]
Decoupled = bool | Literal["fixed"]


class AdaBound(torch.optim.Optimizer):
    """Adam early, SGD late, with no switch between them.

    With m and v the moving means of the gradient and of its square, t the steps of the parameter and F = final_lr *
    lr / base_lr, as the released code has it:

        w <- w - clip(lr * sqrt(1 - beta2^t) / (1 - beta1^t) / (sqrt(v) + eps), F (1 - 1/(gamma t + 1)),
                      F (1 + 1/(gamma t))) * m

    m is not bias-corrected behind the clipping: the late phase is SGD of rate F with dampened momentum, 1 / (1 - beta1)
    times slower than `torch.optim.SGD(lr=F, momentum=beta1)`.

    Every parameter counts its own steps, so that those which join late begin as all others did. Those in fp16 or bf16
    have their means in fp32, in which alone the squares of small gradients are not 0.

    Args:
        params: parameters, or groups of them.
        lr: of the adaptive phase. A scheduler that changes it scales the bounds along (base_lr is what it was when the
            group was added; where that was 0, the bounds are those of final_lr as soon as lr is not 0).
        betas: of the moving means, each in [0, 1).
        final_lr: the step size in the end.
        gamma: how fast the bounds close.
        eps: added to the root of v.
        weight_decay: times the weights, added to the gradient; see `decoupled`.
        amsbound: divide by the largest v so far (AMSBound).
        paper: True for the algorithm as printed: no bias correction, 1 - beta2 in the place of gamma, bounds that no
            schedule scales; "slides" likewise, for the printing with "+ 1" in both denominators of the bounds.
        root_decay: divide the clipped step size by sqrt(t), as the paper does.
        decoupled: True takes lr * weight_decay * w from the weights (as AdamW), "fixed" takes weight_decay * w (as the
            released AdaBoundW).
        maximize: climb.
        compile: one kernel, made by torch.compile when a group is added, which takes seconds and a C++ compiler, for
            each parameter of 32 768 entries and more whose gradient lies in memory as it does; the others step as
            without it. Growth needs no new one.

    Raises:
        UserInputError: a value is out of its range, or nothing can be compiled.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
        *,
        paper: Paper = False,
        root_decay: bool = False,
        decoupled: Decoupled = False,
        maximize: bool = False,
        compile: bool = False,
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "final_lr": final_lr,
            "gamma": gamma,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsbound": amsbound,
            "paper": paper,
            "root_decay": root_decay,
            "decoupled": decoupled,
            "maximize": maximize,
            "compile": compile,
        }
        _check(type(self).__name__, defaults)
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its present lr is what its bounds belong to.

        Raises:
            UserInputError: a setting is out of its range, or a parameter is on the meta device.
        """
        _check(type(self).__name__, {**self.defaults, **param_group})
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if any(parameter.is_meta for parameter in group["params"]):
            self.param_groups.pop()
            name = type(self).__name__
            raise UserInputError(f"{name}: parameters must hold numbers, got some on the meta device; use to_empty()")
        group.setdefault("base_lr", float(group["lr"]))
        if group["compile"]:
            try:
                for device, dtype in {(parameter.device, _wide(parameter)) for parameter in group["params"]}:
                    compiled_kernel(device, dtype, group["amsbound"])
            except BaseException:  # also an interrupt: it takes seconds
                self.param_groups.pop()
                raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave.

        Raises:
            UserInputError: it is of other groups or shapes, or its settings are out of range.
        """
        name = type(self).__name__
        check_mapping(name, state_dict)
        taken = dict(state_dict)

        def check(_: torch.optim.Optimizer, adapted: dict[str, Any]) -> None:
            """As a hook after those of others, which may have made another one of it."""
            check_state(name, self, adapted)
            for group in adapted["param_groups"]:
                _check(name, group)
            taken.update(adapted)

        with self.register_load_state_dict_pre_hook(check):
            super().load_state_dict(state_dict)
        keys = chain(*(group["params"] for group in taken["param_groups"]))
        for parameter, key in zip(chain(*(group["params"] for group in self.param_groups)), keys, strict=True):
            if parameter.dtype in HALVES:  # torch has made halves of their means
                for kept, value in taken["state"].get(key, {}).items():
                    if kept in MEANS:
                        self.state[parameter][kept] = value.to(parameter.device, torch.float32)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; parameters without a gradient stay.

        Args:
            closure: computes the loss anew, with its gradients; optional.

        Returns:
            What the closure gave.

        Raises:
            UserInputError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling():  # there the count of steps would make a new graph at every step
            self._step_uncompiled()
        else:
            self._step_groups()
        return loss

    def bounds(self, t: int, group: int = 0) -> tuple[float, float]:
        """The smallest and the largest step size in the t-th step (t >= 1), at the present learning rate."""
        check_whole(type(self).__name__, "t", t)
        return _bounds(self.param_groups[group], t)

    def _step_groups(self) -> None:
        trained = [(group, self._with_gradients(group)) for group in self.param_groups]
        with torch.set_grad_enabled(False):  # no_grad() costs three times as much, which small models notice
            for group, places in trained:
                self._step_group(group, places)

    _step_uncompiled = _disable_dynamo(_step_groups)

    def _with_gradients(self, group: dict[str, Any]) -> list[tuple[Tensor, Tensor, Any]]:
        """The parameters to step with their gradients and states, checked, before anything moves."""
        places = []
        for parameter in group["params"]:
            if (gradient := parameter.grad) is None:
                continue
            if gradient.layout != torch.strided or parameter.dtype.is_complex:
                kind = "complex" if parameter.is_complex() else "sparse"
                raise UserInputError(
                    f"{type(self).__name__} needs dense real gradients, got a {kind} one of shape "
                    f"{tuple(parameter.shape)}; use sparse=False, or torch.view_as_real for complex weights"
                )
            state = self.state.get(parameter)
            if state and state["exp_avg"].shape != parameter.shape:
                raise UserInputError(
                    f"{type(self).__name__} needs state of the shape of its parameter, got {tuple(parameter.shape)} "
                    f"with a mean of {tuple(state['exp_avg'].shape)}; resize parameters by growkit.widen(..., "
                    f"optimizer=...), which resizes both"
                )
            places.append((parameter, gradient, state))
        return places

    def _step_group(self, group: dict[str, Any], places: list[tuple[Tensor, Tensor, Any]]) -> None:
        amsbound, together = group["amsbound"], {}
        for parameter, gradient, known in places:
            state = known or self._begun(parameter)
            state["step"] += 1
            tensors = parameter, gradient, state["exp_avg"], state["exp_avg_sq"]
            if amsbound:
                if "max_exp_avg_sq" not in state:
                    state["max_exp_avg_sq"] = torch.zeros_like(parameter, dtype=_wide(parameter))
                tensors += (state["max_exp_avg_sq"],)
            together.setdefault(state["step"], []).append(tensors)
        for t, tensors in together.items():
            bounded_step(tensors, _rates(group, t), group["compile"])

    def _begun(self, parameter: Tensor) -> dict[str, Any]:
        """The state of a parameter that was never stepped."""
        state = self.state[parameter]
        state["step"] = 0
        state["exp_avg"] = torch.zeros_like(parameter, dtype=_wide(parameter))
        state["exp_avg_sq"] = torch.zeros_like(parameter, dtype=_wide(parameter))
        return state


class AMSBound(AdaBound):
    """AdaBound that divides by the largest v so far; see there for the other arguments."""

    def __init__(self, params: Iterable[Tensor] | Iterable[dict[str, Any]], lr: float = 1e-3, **settings: Any):
        super().__init__(params, lr, **settings, amsbound=True)


MEANS = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
RANGES = {
    "lr": Range(0.0),
    "final_lr": Range(0.0, open_below=True),
    "gamma": Range(0.0),
    "eps": Range(0.0),
    "weight_decay": Range(0.0),
    "beta1": Range(0.0, 1.0),
    "beta2": Range(0.0, 1.0),
}


def _wide(parameter: Tensor) -> torch.dtype:
    """The type of its means."""
    return torch.float32 if parameter.dtype in HALVES else parameter.dtype


def _check(owner: str, group: dict[str, Any]) -> None:
    betas = group["betas"]
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise UserInputError(f"{owner}: betas must be two numbers, got {betas!r}")
    check_ranges(owner, {**group, "beta1": betas[0], "beta2": betas[1]}, RANGES)
    for name in ("amsbound", "root_decay", "maximize", "compile"):
        check_choice(owner, name, group[name], (False, True))
    check_choice(owner, "paper", group["paper"], (False, True, "slides"))
    check_choice(owner, "decoupled", group["decoupled"], (False, True, "fixed"))


def _bounds(group: dict[str, Any], t: int) -> tuple[float, float]:
    closing = (1.0 - group["betas"][1] if group["paper"] else group["gamma"]) * t
    upper = closing + 1.0 if group["paper"] == "slides" else closing
    final = group["final_lr"] * (1.0 if group["paper"] else _schedule(group))
    return final * (1.0 - 1.0 / (closing + 1.0)), final * (1.0 + 1.0 / upper) if upper else math.inf


def _schedule(group: dict[str, Any]) -> float:
    """What a scheduler has made of the learning rate."""
    lr, base_lr = float(group["lr"]), group["base_lr"]
    return lr / base_lr if base_lr else float(lr > 0.0)


def _rates(group: dict[str, Any], t: int) -> Rates:
    beta1, beta2 = group["betas"]
    correction = 1.0 if group["paper"] else math.sqrt(1.0 - beta2**t) / (1.0 - beta1**t)
    lower, upper = _bounds(group, t)
    lr, decay, decoupled = float(group["lr"]), group["weight_decay"], group["decoupled"]
    return Rates(
        step=lr * correction,
        lower=lower,
        upper=upper,
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        scale=1.0 / math.sqrt(t) if group["root_decay"] else 1.0,
        decay=0.0 if decoupled else decay,
        shrinkage=decay * (1.0 if decoupled == "fixed" else lr) if decoupled else 0.0,
        maximize=group["maximize"],
    )
