"""Where SAM looks: which weights it moves, how far, and in which norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim.ascent import Pull, WalkedPull, norm_of, pulls_of, sensitive_steps

__all__ = ["Moved", "Neighbourhood", "Schedule"]

Group = dict[str, Any]
Schedule = Callable[[int], float] | Literal["lr"] | None
Moved = Literal["all", "norms"] | Sequence[str]


@dataclass
class Neighbourhood:
    """The rule by which weights are moved; what differs from group to group stands in the groups.

    Attributes:
        scope: "all" measures one norm over all groups, "group" one for each.
        schedule: of the radius, by steps, or "lr".
        moved: which parameters are moved: "all", those of "norms", or patterns of their names.
        model: that is trained, if it is known.
        inner_lr: the largest factor of a gradient; infinite but for adversarial model perturbation.
    """

    scope: Literal["all", "group"]
    schedule: Schedule
    moved: Moved
    model: nn.Module | None
    inner_lr: float = math.inf
    _weights: set[Tensor] = field(default_factory=set)
    _chosen: set[Tensor] | None = None

    def look_at_the_model(self) -> None:
        """Find out which parameters are weights, and which are moved.

        Raises:
            UserInputError: some are chosen without a model to choose from, or none is.
        """
        self._weights = _called_weights(self.model)
        self._chosen = None if self.moved == "all" else _chosen(self.moved, self.model)

    def moves(self, groups: Sequence[Group], steps: int) -> list[tuple[Pull | WalkedPull, float]] | None:
        """What is added to which weights, as directions with factors; None where a gradient is not finite."""
        moves: list[tuple[Pull | WalkedPull, float]] = []
        for together in self._scopes(groups):
            pulls = [(pull, self._radius(group, steps)) for group in together for pull in self._pulls(group)]
            length = norm_of([pull for pull, _ in pulls])
            if not math.isfinite(length):
                return None
            if together and together[0]["norm"] == math.inf:
                length = 1.0
            moves += [(pull, min(self.inner_lr, radius / length) if length else 0.0) for pull, radius in pulls]
        return moves

    def sensitive_steps(
        self, groups: Sequence[Group], steps: int, gradients: Mapping[Tensor, Tensor]
    ) -> dict[Tensor, Tensor]:
        """The moves themselves, as functions of the weights that autograd can follow."""
        found: dict[Tensor, Tensor] = {}
        for together in self._scopes(groups):
            places = [(one, group) for group in together for one in self._moved_in(group) if one in gradients]
            found |= sensitive_steps(
                [one for one, _ in places],
                [gradients[one] for one, _ in places],
                [self._is_normalised(one, group) for one, group in places],
                [self._radius(group, steps) for _, group in places],
                infinite=together[0]["norm"] == math.inf,
                etas=[group["eta"] for _, group in places],
                filters=[group["by"] == "filter" for _, group in places],
            )
        return found

    def _scopes(self, groups: Sequence[Group]) -> list[list[Group]]:
        """The groups that one norm is measured over."""
        return [[group] for group in groups] if self.scope == "group" else [list(groups)]

    def _pulls(self, group: Group) -> list[Pull | WalkedPull]:
        adaptive, alike = group["adaptive"], {}
        for parameter in self._moved_in(group):
            gradient = parameter.grad
            if gradient is None:
                continue
            kind = parameter.device, parameter.dtype, adaptive and self._is_normalised(parameter, group)
            if kind not in alike:
                alike[kind] = [], []
            alike[kind][0].append(parameter)
            alike[kind][1].append(gradient if gradient.layout == torch.strided else gradient.to_dense())
        return [
            pull
            for (_, _, normalised), (parameters, gradients) in alike.items()
            for pull in pulls_of(
                parameters,
                gradients,
                eta=group["eta"] if normalised else None,
                infinite=group["norm"] == math.inf,
                filters=group["by"] == "filter",
            )
        ]

    def _moved_in(self, group: Group) -> Sequence[Tensor]:
        if not group["rho"]:
            return ()
        chosen = self._chosen
        return group["params"] if chosen is None else [one for one in group["params"] if one in chosen]

    def _is_normalised(self, parameter: Tensor, group: Group) -> bool:
        """Whether a parameter has the T of ASAM: by the released rule those that are called a weight."""
        if group["adaptive"] in (False, "all"):
            return bool(group["adaptive"])
        return parameter in self._weights if self.model is not None else parameter.dim() > 1

    def _radius(self, group: Group, steps: int) -> float:
        if self.schedule is None:
            return group["rho"]
        if self.schedule == "lr":
            base_lr = group["base_lr"]
            return group["rho"] * (float(group["lr"]) / base_lr if base_lr else float(group["lr"] > 0))
        return group["rho"] * self.schedule(steps)  # type: ignore[operator]


def _called_weights(model: nn.Module | None) -> set[Tensor]:
    """The parameters with "weight" in their name, as the released code of ASAM tells weights from the rest."""
    return set() if model is None else {one for name, one in model.named_parameters() if "weight" in name}


def _chosen(moved: Literal["norms"] | Sequence[str], model: nn.Module | None) -> set[Tensor]:
    if model is None:
        raise UserInputError(f"SAM: moved={moved!r} chooses parameters of a model, so it needs model=")
    if moved == "norms":
        found: set[Tensor] = set(_of_norms(model))
    else:
        named = list(model.named_parameters())
        found = {one for name, one in named if any(fnmatchcase(name, pattern) for pattern in moved)}
    if not found:
        names = [name for name, _ in model.named_parameters()]
        shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
        raise UserInputError(f"SAM: moved must choose at least one parameter, got {moved!r} for {shown}")
    return found


def _of_norms(model: nn.Module) -> Iterator[Tensor]:
    """The parameters of layers with "norm" in the name of their class, as all of torch's have it."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            yield from module.parameters(recurse=False)
