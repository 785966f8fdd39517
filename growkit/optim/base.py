"""The optimizer that another one is put around."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from growkit.errors import UserInputError

__all__ = ["base_of"]


def base_of(
    owner: str, base: Any, params: Iterable[Any], settings: Mapping[str, Any], own: Collection[str]
) -> torch.optim.Optimizer:
    """The base optimizer on the parameters.

    Args:
        owner: the optimizer around it, for messages.
        base: a class or an instance.
        params: in any form that optimizers take.
        settings: of a class.
        own: what the owner keeps in the groups under names of its own.

    Raises:
        UserInputError: it is no optimizer, has other parameters, or keeps something under a name of SAM's.
    """
    if isinstance(base, type) and issubclass(base, torch.optim.Optimizer):
        made = base(params, **settings)  # type: ignore[call-arg]
    elif isinstance(base, torch.optim.Optimizer):
        if settings:
            raise UserInputError(f"{owner}: settings of a base that is made already are its own, got {dict(settings)}")
        made = base
        if _ids(params) != {id(one) for group in base.param_groups for one in group["params"]}:
            raise UserInputError(f"{owner}: a base optimizer must hold the parameters that SAM is given, got others")
    else:
        raise UserInputError(
            f"{owner}: base must be an optimizer of torch's kind, a class or an instance, got {base!r}"
        )
    taken = sorted({*own} & {*made.defaults})
    if taken or hasattr(made, "base"):
        what = "that is not SAM itself" if hasattr(made, "base") else f"that keeps no {', '.join(taken)} of its own"
        raise UserInputError(f"{owner}: base must be an optimizer {what}, got {type(made).__name__}")
    return made


def _ids(params: Iterable[Any]) -> set[int]:
    """The parameters in any form that optimizers take: tensors, pairs with names, groups of either."""
    found: set[int] = set()
    for one in params:
        if isinstance(one, Tensor):
            found.add(id(one))
        elif isinstance(one, tuple):
            found.add(id(one[1]))
        else:
            found |= _ids([one["params"]] if isinstance(one["params"], Tensor) else one["params"])
    return found
