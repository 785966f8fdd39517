"""Learning rates of their own for the parts of a weight that came at different times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from growkit.errors import UserInputError

__all__ = ["PartRates"]

Births = tuple[NDArray[np.int64], ...]
"""By dimension, the part that every position came with."""


class PartRates:
    """Lets each part of a grown weight learn at a rate of its own, under any optimizer.

    The parts of a weight are W_0, with which it began, and W_t, the entries that its t-th growth added. W_t learns at

        eta_t = eta_0 |W_t| / |W_0|

    with Frobenius norms, as Yuan, Savarese and Maire (NeurIPS 2023) state it; here the norms are those at the beginning
    of every step, so that the rates follow the weights. The whole step of the optimizer is scaled, after it was made:

        w <- w_before + |W_t| / |W_0| (w_after - w_before)

    That is what the rate eta_t would give wherever a step is proportional to the learning rate: under SGD with
    momentum, Adam, AdamW, AdaBound (whose bounds follow the rate) and SAM around any of them. A scaled gradient would
    change nothing under Adam. Where a step is not proportional to it, as in AdaBound's `decoupled="fixed"` and `paper`
    forms, the decay and the bounds are scaled all the same. Entries of W_0 keep the step that was made to the last bit.

    Biases, gains and all else of one dimension keep eta_0. So does a part of norm 0 at its growth (the zero fan-in of
    GradMax), which by the rule would never move.

    Args:
        optimizer: any; its `step` is followed, that of SAM with a closure.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1, 4))
        >>> rates = PartRates(torch.optim.SGD([weight], lr=0.1))
        >>> weight.data = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.5]])
        >>> rates.grew([(weight, (None, np.array([0, 1, 2, 3, -1])))])
        []
        >>> rates.of(weight)
        tensor([1.0000, 0.2500], dtype=torch.float64)
    """

    def __init__(self, optimizer: torch.optim.Optimizer):
        self._parts: dict[nn.Parameter, _Parts] = {}
        self._growths: list[dict[nn.Parameter, _Parts | None]] = []  # what was before each, to take it back
        self._before: dict[nn.Parameter, Tensor] = {}
        optimizer.register_step_pre_hook(self._look)
        optimizer.register_step_post_hook(self._scale)

    def grew(self, changes: Sequence[tuple[nn.Parameter, Sequence[NDArray[np.int64] | None]]]) -> list[nn.Parameter]:
        """After a growth, with the values that the new entries begin with in place.

        Args:
            changes: in order, each parameter that grew and its index maps: per dimension the old index of every new
                position, -1 where the position is new, or None. One growth may change a parameter more than once.

        Returns:
            The parameters whose new part is 0 and so keeps the full rate.
        """
        weights = [(parameter, maps) for parameter, maps in changes if parameter.dim() > 1]
        before = {parameter: self._parts.get(parameter) for parameter, _ in weights}
        births = {one: _first(one) if parts is None else parts.births for one, parts in before.items()}
        for parameter, maps in weights:
            parts = before[parameter]
            new = 1 if parts is None else len(parts.full)
            births[parameter] = tuple(
                own if index is None else np.where(index >= 0, own[np.maximum(index, 0)], new)
                for own, index in zip(births[parameter], maps, strict=True)
            )
        for parameter, parts in before.items():
            self._parts[parameter] = _Parts.of(parameter, births[parameter], parts)
        self._growths.append(before)
        return [parameter for parameter in before if bool(self._parts[parameter].full[-1])]

    def undo(self) -> None:
        """Forget the last growth, which was undone."""
        for parameter, parts in self._growths.pop().items():
            if parts is None:
                del self._parts[parameter]
            else:
                self._parts[parameter] = parts

    def take_over(self, other: PartRates, twins: Mapping[nn.Parameter, nn.Parameter]) -> None:
        """Know in place of all else what another one knows.

        Args:
            other: of another optimizer, whose parameters have the shapes of these.
            twins: to each of its parameters the one of this optimizer.
        """
        self._parts = {twins[one]: parts for one, parts in other._parts.items()}
        self._growths = [{twins[one]: parts for one, parts in before.items()} for before in other._growths]
        self._before.clear()

    def of(self, parameter: nn.Parameter) -> Tensor:
        """The present rates of the parts of a weight, oldest first, as multiples of the optimizer's, [parts]."""
        parts = self._parts.get(parameter)
        return torch.ones(1, dtype=torch.float64) if parts is None else parts.rates(parameter.detach())

    @torch.no_grad()
    def _look(self, optimizer: Any, args: Any, settings: Any) -> None:
        for parameter, parts in self._parts.items():
            if parameter.shape != parts.labels.shape:
                raise UserInputError(
                    f"PartRates must be told how a parameter grew, got one of shape {tuple(parameter.shape)} known as "
                    f"{tuple(parts.labels.shape)}; call grew() after each growth and undo() after one was undone"
                )
            kept = self._before.get(parameter)
            if kept is None or kept.shape != parameter.shape:
                self._before[parameter] = parameter.detach().clone()
            else:
                kept.copy_(parameter)

    @torch.no_grad()
    def _scale(self, optimizer: Any, args: Any, settings: Any) -> None:
        for parameter, parts in self._parts.items():
            before = self._before[parameter]
            rates = parts.rates(before).to(parameter.dtype).index_select(0, parts.labels.reshape(-1))
            parameter.copy_(torch.lerp(before, parameter, rates.view(parameter.shape)))


@dataclass(frozen=True)
class _Parts:
    """The parts of one weight.

    Attributes:
        births: of its positions. labels: of its entries, the part each came with.
        full: by part, whether it keeps the full rate: the first one, and those that were 0 when they came. [parts]
    """

    births: Births
    labels: Tensor
    full: Tensor

    @classmethod
    def of(cls, parameter: nn.Parameter, births: Births, before: _Parts | None) -> _Parts:
        """The parts after a growth; an entry is there since all of its positions are."""
        labels = torch.zeros((), dtype=torch.int32)
        for dim, own in enumerate(births):
            view = [1] * len(births)
            view[dim] = -1
            labels = torch.maximum(labels, torch.from_numpy(own.astype(np.int32)).view(view))
        labels = labels.to(parameter.device).contiguous()
        known = torch.ones(1, dtype=torch.bool, device=parameter.device) if before is None else before.full
        zero = ~(parameter.detach() * (labels == len(known))).any()
        return cls(births, labels, torch.cat([known, zero.view(1)]))

    def rates(self, weight: Tensor) -> Tensor:
        """|W_t| / |W_0|, [parts], and 1 where there is nothing to go by; the host waits for no value."""
        squares = weight.double().square().reshape(-1)
        sums = squares.new_zeros(len(self.full)).index_add_(0, self.labels.reshape(-1), squares)
        nothing = self.full | (sums == 0) | (sums[0] == 0)
        return torch.where(nothing, torch.ones_like(sums), (sums / sums[0]).sqrt())


def _first(parameter: nn.Parameter) -> Births:
    """Of a weight that never grew, as far as is known; its size before does not matter."""
    return tuple(np.zeros(size, dtype=np.int64) for size in parameter.shape)
