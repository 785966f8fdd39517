"""What becomes of the optimizer and of the learning rate after a growth event that stands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from growkit.config.growth import AfterGrowthSettings
from growkit.optim import PartRates
from growkit.schedule import rewarm_factor
from growkit.surgery import EditRecord, IndexMap, Record, forget_state

__all__ = ["Aftermath"]


@dataclass
class Aftermath:
    """Does to an optimizer what `growth.optimizer` says, event by event.

    Attributes:
        settings: what is done.
        model: that grows. optimizer: that trains it.
    """

    settings: AfterGrowthSettings
    model: nn.Module
    optimizer: torch.optim.Optimizer
    _told: set[str] = field(default_factory=set, repr=False)
    _last: int | None = field(default=None, repr=False)  # the step after which the last event came

    def __post_init__(self) -> None:
        self.part_rates = PartRates(self.optimizer) if self.settings.part_rates == "norm_ratio" else None

    def follow(self, records: Sequence[Record], step: int) -> list[str]:
        """After an event; one that was undone left no records, and nothing is done.

        Args:
            records: of its edits, in order; new blocks have no part of their own in any old parameter.
            step: after how many optimizer steps it came.

        Returns:
            What the user should know.
        """
        if not records:
            return []
        self._last = step
        self._forget(records)
        return [] if self.part_rates is None else self._notes(self.part_rates.grew(list(self._grown(records))))

    def rate(self, step: int) -> float:
        """What the scheduled learning rate is multiplied by for optimizer step number `step`, from 0."""
        return 1.0 if self._last is None else rewarm_factor(self.settings, step - self._last)

    def fork(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> Aftermath:
        """The same of twins of the model and the optimizer, to go on from here on its own."""
        other = replace(self, model=model, optimizer=optimizer, _told=set(self._told))
        other._learn_parts(self)
        return other

    def rejoin(self, fork: Aftermath) -> None:
        """Go on from where a fork has come to, the model having its old structure again."""
        self._told, self._last = fork._told, fork._last
        self._learn_parts(fork)

    def _learn_parts(self, other: Aftermath) -> None:
        if self.part_rates is not None and other.part_rates is not None:
            twins = dict(zip(other.model.parameters(), self.model.parameters(), strict=True))
            self.part_rates.take_over(other.part_rates, twins)

    def _forget(self, records: Sequence[Record]) -> None:
        if self.settings.state == "reset_all":
            self.optimizer.state.clear()
        elif self.settings.state == "reset_grown":
            for parameter in dict.fromkeys(parameter for parameter, _ in self._grown(records)):
                if parameter in self.optimizer.state:
                    forget_state(self.optimizer, parameter)

    def _notes(self, zero: Sequence[nn.Parameter]) -> list[str]:
        """Which weights keep the full rate; each is named once."""
        names = [name for name, one in self.model.named_parameters() if any(one is other for other in zero)]
        new = [name for name in names if name not in self._told]
        self._told.update(new)
        if not new:
            return []
        return [f"growth.optimizer.part_rates: new parts that are 0 keep the full learning rate: {', '.join(new)}"]

    def _grown(self, records: Sequence[Record]) -> Iterator[tuple[nn.Parameter, Sequence[IndexMap | None]]]:
        """Every change of a parameter, in order; two sites may change the same one."""
        for record in records:
            for change in record.tensors if isinstance(record, EditRecord) else ():
                if change.kind == "parameter":
                    yield self.model.get_parameter(change.names[0]), change.index_maps
