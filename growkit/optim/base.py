"""The optimizer that another one is put around."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from growkit.errors import UserInputError
from growkit.optim.blocks import is_dense

__all__ = ["base_of"]


def base_of(
    owner: str,
    base: Any,
    params: Iterable[Any],
    settings: Mapping[str, Any],
    own: Collection[str],
    model: nn.Module | None,
) -> torch.optim.Optimizer:
    """The base optimizer on the parameters.

    Args:
        owner: the optimizer around it, for messages.
        base: a class or an instance.
        params: in any form that optimizers take.
        settings: of a class.
        own: what the owner keeps in the groups under names of its own.
        model: the module that is trained, if it is known.

    Raises:
        UserInputError: it is no optimizer, has other parameters, or keeps something under a name of SAM's.
    """
    if isinstance(params, Tensor):
        raise UserInputError(f"{owner}: params must be a list of parameters or of groups, got one tensor; put it in []")
    params = list(params)
    if any(is_lazy(one) for one in _tensors(params)):
        raise UserInputError(
            f"{owner}: parameters must hold numbers, got some of lazy layers; run the model on one batch first"
        )
    if isinstance(base, type) and issubclass(base, torch.optim.Optimizer):
        made = base(params, **_fused(base, params, settings, model))  # type: ignore[call-arg]
    elif isinstance(base, torch.optim.Optimizer):
        if settings:
            raise UserInputError(f"{owner}: settings of a base that is made already are its own, got {dict(settings)}")
        made = base
        if any(isinstance(one, dict) and {*one} != {"params"} for one in params):
            raise UserInputError(
                f"{owner}: settings of groups belong into the base that is made already, got them beside"
            )
        if _ids(params) != {id(one) for group in base.param_groups for one in group["params"]}:
            raise UserInputError(f"{owner}: a base optimizer must hold the parameters that SAM is given, got others")
    else:
        raise UserInputError(
            f"{owner}: base must be an optimizer of torch's kind, a class or an instance, got {base!r}"
        )
    if any(one.is_meta for group in made.param_groups for one in group["params"]):
        raise UserInputError(
            f"{owner}: parameters must hold numbers, got some on the meta device; use model.to_empty()"
        )
    if isinstance(made, torch.optim.LBFGS):
        raise UserInputError(f"{owner}: base must step from gradients alone, got LBFGS, which asks a closure itself")
    taken = sorted({*own} & {*made.defaults})
    if taken:
        raise UserInputError(
            f"{owner}: base must be an optimizer that keeps no {', '.join(taken)} of its own, got {type(made).__name__}"
        )
    return made


FUSED = (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)
FORMS = {"fused", "foreach", "capturable", "differentiable"}


def _fused(base: type, params: list[Any], settings: Mapping[str, Any], model: nn.Module | None) -> Mapping[str, Any]:
    """The settings, with fused=True where torch has one kernel for a step and nobody chose another form.

    That kernel takes no views with gaps and no sparse gradients, and whether there will be some only a model tells.
    """
    if model is None or base not in FUSED or FORMS & {*settings}:
        return settings
    able = all(
        one.is_floating_point() and one.device.type in ("cpu", "cuda") and (one.is_contiguous() or is_dense(one))
        for one in _tensors(params)
    )
    sparse = any(getattr(module, "sparse", False) for module in model.modules())
    return {**settings, "fused": True} if able and not sparse else settings


def _ids(params: Iterable[Any]) -> set[int]:
    return {id(one) for one in _tensors(params)}


def _tensors(params: Iterable[Any]) -> Iterator[Tensor]:
    """The parameters in any form that optimizers take: tensors, pairs with names, groups of either."""
    for one in params:
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, tuple):
            yield one[1]
        else:
            inside = one["params"]
            one["params"] = [inside] if isinstance(inside, Tensor) else list(inside)  # a generator serves once
            yield from _tensors(one["params"])
