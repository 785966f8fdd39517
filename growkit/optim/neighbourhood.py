"""Where SAM looks: which weights it moves, how far, and in which norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal

import torch
from torch import Tensor, nn

from growkit.errors import UserInputError
from growkit.optim.ascent import LEAST, Pull, WalkedPull, in_units, largest_entry, norm_of, pulls_of, sensitive_steps
from growkit.optim.checks import Range, check_ranges

__all__ = ["Moved", "Moves", "Neighbourhood", "Schedule", "patterns_of"]

Group = dict[str, Any]
Schedule = Callable[[int], float] | Literal["lr"] | None
Moved = Literal["all", "norms"] | Sequence[str]
AnyPull = Pull | WalkedPull
Moves = list[tuple[AnyPull, float]]


@dataclass
class Neighbourhood:
    """The rule by which weights are moved; what differs from group to group stands in the groups.

    Attributes:
        owner: the optimizer, for messages.
        norm: 2, or infinity.
        scope: "all" measures one norm over all groups, "group" one for each.
        schedule: of the radius, by steps, or "lr".
        moved: which parameters are moved: "all", those of "norms", or patterns of their names.
        model: that is trained, if it is known.
        inner_lr: the largest factor of a gradient; infinite but for adversarial model perturbation.
    """

    owner: str
    norm: float
    scope: Literal["all", "group"]
    schedule: Schedule
    moved: Moved
    model: nn.Module | None
    inner_lr: float = math.inf
    _seen: tuple[int, ...] = ()
    _weights: set[Tensor] = field(default_factory=set)
    _filters: dict[Tensor, int] = field(default_factory=dict)
    _chosen: set[Tensor] | None = None

    def look_at(self, groups: Sequence[Group]) -> None:
        """Find out which parameters are weights, filters, and moved; anew if the groups hold others than before.

        Raises:
            UserInputError: the choice of parameters, or ASAM's of weights, is of none, or of complex ones.
        """
        plain = self.moved == "all" and self.norm == 2
        for group in groups:
            plain = plain and not group["adaptive"]
        if plain:
            return
        held = [one for group in groups for one in group["params"]]
        seen = tuple(map(id, held))
        if seen == self._seen:
            return
        self._weights, self._filters = _called_weights(self.model, held), _filters_of(self.model, held)
        self._chosen = None if self.moved == "all" else _chosen(self.owner, self.moved, self.model, held)
        self._check_weights(groups)
        self._seen = seen

    def _check_weights(self, groups: Sequence[Group]) -> None:
        named = [one for group in groups if group["adaptive"] is True for one in group["params"]]
        if named and not self._weights & {*named}:
            raise UserInputError(
                f"{self.owner}: adaptive=True normalises the parameters of the model with 'weight' in their name, got "
                f"none among {len(named)}; use adaptive='all'"
            )
        for group in groups:
            rule = "adaptive" if group["adaptive"] else "norm=inf" if self.norm == math.inf else None
            if rule and any(one.is_complex() for one in group["params"]):
                raise UserInputError(
                    f"{self.owner}: {rule} needs real parameters, got a complex one; use adaptive=False and norm=2, or "
                    f"torch.view_as_real"
                )

    def moves(self, groups: Sequence[Group], steps: int, scale: float = 1.0) -> Moves | None:
        """What is added to which weights, as directions with factors; None where a gradient is not finite.

        Args:
            groups: of the optimizer.
            steps: that were done.
            scale: by which gradients are too large.
        """
        self.look_at(groups)
        moves: Moves = []
        for together in self._scopes(groups):
            (pulls, owners), unit = self._pulls(together), 1.0
            length = norm_of(pulls)
            if not LEAST < length < math.inf:
                unit = largest_entry(self._gradients(together))
                if unit and math.isfinite(unit) and self.norm == 2:
                    pulls, owners = self._pulls(together, unit)
                    length = norm_of(pulls)
                if not math.isfinite(unit if self.norm == math.inf else length):
                    return None
            length = 1.0 if self.norm == math.inf else length
            for pull, group in zip(pulls, owners, strict=True):
                radius = self._radius(group, steps)
                factor = min(self.inner_lr * unit / scale, radius / length) if length else 0.0
                moves.append((pull, -factor if group.get("maximize") else factor))
        return moves

    def sensitive_steps(
        self, groups: Sequence[Group], steps: int, gradients: Mapping[Tensor, Tensor]
    ) -> dict[Tensor, Tensor]:
        """The moves themselves, as functions of the weights that autograd can follow."""
        self.look_at(groups)
        found: dict[Tensor, Tensor] = {}
        for together in self._scopes(groups):
            places = [(one, group) for group in together for one in self._moved_in(group) if one in gradients]
            found |= sensitive_steps(
                [one for one, _ in places],
                [gradients[one] for one, _ in places],
                [self._is_normalised(one, group) for one, group in places],
                [self._radius(group, steps) * (-1.0 if group.get("maximize") else 1.0) for _, group in places],
                infinite=self.norm == math.inf,
                etas=[group["eta"] for _, group in places],
                filters={one: self._filters[one] for one, group in places if self._has_filters(one, group)},
            )
        return found

    def _scopes(self, groups: Sequence[Group]) -> list[list[Group]]:
        """The groups that one norm is measured over."""
        return [[group] for group in groups] if self.scope == "group" else [list(groups)]

    def _pulls(self, groups: Sequence[Group], unit: float | None = None) -> tuple[list[AnyPull], list[Group]]:
        """Those of groups, and the group of each; if so wanted of gradients in float64 and another unit."""
        pulls: list[AnyPull] = []
        owners: list[Group] = []
        for group in groups:
            filters = self._filters if group["adaptive"] and group["by"] == "filter" else {}
            for (_, _, normalised), (parameters, gradients) in self._alike(group, unit).items():
                eta = group["eta"] if normalised else None
                pulls += pulls_of(parameters, gradients, eta=eta, infinite=self.norm == math.inf, filters=filters)
            owners += [group] * (len(pulls) - len(owners))
        return pulls, owners

    def _alike(self, group: Group, unit: float | None) -> dict[Any, tuple[list[Tensor], list[Tensor]]]:
        """The parameters that are moved and their gradients, by device, type, and whether they have the T of ASAM."""
        adaptive, alike, last = group["adaptive"], {}, None
        parameters: list[Tensor] = []
        gradients: list[Tensor] = []
        for parameter in self._moved_in(group):
            gradient = parameter.grad
            if gradient is None or not parameter.requires_grad:
                continue
            if gradient.layout != torch.strided:
                gradient = gradient.to_dense()
            if unit is not None:
                gradient = in_units(gradient, unit)
            place = parameter.is_cpu or parameter.device  # True for the CPU: devices are slow to compare
            kind = place, parameter.dtype, adaptive and self._is_normalised(parameter, group)
            if kind != last:  # most often all are of one
                (parameters, gradients), last = alike.setdefault(kind, ([], [])), kind
            parameters.append(parameter)
            gradients.append(gradient)
        return alike

    def _gradients(self, groups: Sequence[Group]) -> list[Tensor]:
        moved = [one for group in groups for one in self._moved_in(group) if one.requires_grad]
        return [one.grad for one in moved if one.grad is not None]

    def _moved_in(self, group: Group) -> Sequence[Tensor]:
        if not group["rho"]:
            return ()
        chosen = self._chosen
        return group["params"] if chosen is None else [one for one in group["params"] if one in chosen]

    def _is_normalised(self, parameter: Tensor, group: Group) -> bool:
        """Whether a parameter has the T of ASAM: by the released rule those that are called a weight."""
        return bool(group["adaptive"]) and (group["adaptive"] == "all" or parameter in self._weights)

    def _has_filters(self, parameter: Tensor, group: Group) -> bool:
        return bool(group["adaptive"]) and group["by"] == "filter" and parameter in self._filters

    def _radius(self, group: Group, steps: int) -> float:
        if self.schedule is None:
            return group["rho"]
        if self.schedule == "lr":
            base_lr = group["base_lr"]
            factor = float(group["lr"]) / base_lr if base_lr else float(group["lr"] > 0)
        else:
            factor = self.schedule(steps)  # type: ignore[operator]
            check_ranges(self.owner, {"the schedule's factor": factor}, {"the schedule's factor": Range(0.0)})
        return group["rho"] * factor


def patterns_of(owner: str, moved: Any) -> Moved:
    """The choice of parameters to move, checked.

    Raises:
        UserInputError: it is none.
    """
    if isinstance(moved, str) and moved in ("all", "norms"):
        return moved  # type: ignore[return-value]
    moved = list(moved) if isinstance(moved, Iterable) and not isinstance(moved, str) else moved
    if not isinstance(moved, list) or not moved or not all(isinstance(one, str) for one in moved):
        raise UserInputError(f"{owner}: moved must be 'all', 'norms' or patterns of names, got {moved!r}")
    return tuple(moved)


def _called_weights(model: nn.Module | None, held: Sequence[Tensor]) -> set[Tensor]:
    """The parameters with "weight" in their name, as the released code of ASAM tells weights from the rest.

    Without a model, those of more than one dimension.
    """
    if model is None:
        return {one for one in held if one.dim() > 1}
    return {one for name, one in model.named_parameters() if "weight" in name}


FIRST_CONV, TRANSPOSED = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def _filters_of(model: nn.Module | None, held: Sequence[Tensor]) -> dict[Tensor, int]:
    """Along which dimension the filters of a convolution lie; without a model, of what has as many dimensions."""
    if model is None:
        return {one: 0 for one in held if one.dim() > 2}
    places = [(module, 0) for module in model.modules() if isinstance(module, FIRST_CONV)]
    places += [(module, 1) for module in model.modules() if isinstance(module, TRANSPOSED) and module.groups == 1]
    return {one: dim for module, dim in places for name, one in module.named_parameters() if name == "weight"}


def _chosen(owner: str, moved: Moved, model: nn.Module | None, held: Sequence[Tensor]) -> set[Tensor]:
    if model is None:
        raise UserInputError(f"{owner}: moved={moved!r} chooses parameters of a model, so it needs model=")
    trained = {*held}
    if moved == "norms":
        found = {"norms": set[Tensor](_of_norms(model)) & trained}
    else:
        named = list(model.named_parameters())
        found = {each: {one for name, one in named if fnmatchcase(name, each)} & trained for each in moved}
    for pattern, parameters in found.items():
        if not parameters:
            names = [name for name, one in model.named_parameters() if one in trained]
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            raise UserInputError(
                f"{owner}: moved must choose parameters that the optimizer holds, got {pattern!r}, which fits none of "
                f"{shown}"
            )
    return set().union(*found.values())


def _of_norms(model: nn.Module) -> Iterator[Tensor]:
    """The parameters of layers with "norm" in the name of their class, as all of torch's have it."""
    for module in model.modules():
        if "norm" in type(module).__name__.lower():
            yield from module.parameters(recurse=False)
