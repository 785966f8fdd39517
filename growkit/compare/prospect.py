"""What an arm will cost, before it trains: the run is put together as it would be, and asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from growkit.assembly import Assembly, assemble
from growkit.compare.baselines import uniform_growth
from growkit.config import Config
from growkit.data import Data, load_data
from growkit.errors import UserInputError
from growkit.growth.plan import resolve_targets
from growkit.length import first_that

__all__ = ["Foresight", "Prospect"]

TINY = 1e-6  # of a factor on widths


@dataclass(frozen=True)
class Prospect:
    """One arm, put together.

    Attributes:
        parts: of its run, on the CPU.
    """

    parts: Assembly

    @property
    def steps(self) -> int:
        """Optimizer steps by the arm's own settings, or the most there can be; see `knows_steps`."""
        return self.parts.clock.total_steps

    @property
    def knows_steps(self) -> bool:
        """Whether so many it will be: not where train.flops ends a run whose growth depends on training."""
        return self.parts.clock.flops is None or self.parts.plan is not None

    @property
    def flops(self) -> int | None:
        """Training FLOPs; None where they depend on training, that is on growth without train.flops."""
        return self.parts.planned_flops

    @property
    def final_params(self) -> int | None:
        """Parameters at the end; None where growth depends on training."""
        plan = self.parts.plan
        return None if plan is None else self.parts.controller.costs.params(plan.final_widths)

    def steps_for(self, flops: int) -> int | None:
        """The number of steps, at least 1, whose training FLOPs are nearest; likewise."""
        if self.parts.plan is None:
            return None
        return _nearest(lambda steps: self.parts.outlook.flops(steps) or 0, flops)

    def events_lost(self, steps: int) -> int:
        """How many of the planned growth events a run of so many steps does not reach."""
        ours, shorter = self.parts.plan, self.parts.outlook.plan(steps)
        return 0 if ours is None or shorter is None else max(0, len(ours.events) - len(shorter.events))

    def factor_for(self, params: int) -> float:
        """The factor on the widths of all sites at which the parameters are nearest to `params`, at least 1.

        Widths are whole, so a range of factors gives the same; it is the middle of that.
        """
        tracked, graph = self.parts.controller.tracked, self.parts.controller.sites.graph

        def size(factor: float) -> int:
            return graph.params(resolve_targets(tracked, factor))

        least = _first_factor(lambda factor: size(factor) >= params)
        below = max(1.0, least - TINY)
        wanted = size(below) if params - size(below) < size(least) - params else size(least)
        if wanted == size(1.0):
            return 1.0
        edges = (
            _first_factor(lambda factor: size(factor) >= wanted),
            _first_factor(lambda factor: size(factor) > wanted),
        )
        return round(sum(edges) / 2, 4)


def _first_factor(holds: Callable[[float], bool]) -> float:
    """The least factor within the bounds of growth.target from which on something holds, or the upper bound."""
    low, high = 1.0, 1000.0
    if holds(low):
        return low
    while high - low > TINY / 2:
        middle = (low + high) / 2
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high


def _nearest(cost: Callable[[int], int], wanted: int) -> int:
    """The whole number from 1 on whose cost, which rises, is nearest to what is wanted."""
    high = first_that(lambda number: cost(number) >= wanted)
    low = max(1, high - 1)
    return low if wanted - cost(low) < cost(high) - wanted else high


@dataclass
class Foresight:
    """Puts arms together, each kind of settings once, and shares the data between them.

    Args:
        seed: of the seeds, the one that is looked at; sizes and plans are the same for all.
    """

    seed: int
    _known: dict[str, Prospect] = field(default_factory=dict, repr=False)
    _data: dict[str, Data] = field(default_factory=dict, repr=False)

    def __call__(self, config: Config) -> Prospect:
        """The prospect of settings; the learning rate has no part in it.

        Raises:
            UserInputError: the settings do not fit the data or each other.
        """
        # on the CPU, so that this process keeps no memory of a GPU that the runs need; FLOPs and plans are the same
        config = config.model_copy(
            update={
                "seed": self.seed,
                "train": config.train.model_copy(update={"device": "cpu", "precision": "fp32"}),
            }
        )
        key = config.model_dump_json(exclude={"run"})
        if key not in self._known:
            data = config.data.model_dump_json()
            if data not in self._data:
                self._data[data] = load_data(config.data)
            self._known[key] = Prospect(assemble(config, data=self._data[data], writes=False))
        return self._known[key]

    def uniform(self, config: Config, params: int, name: str) -> Config:
        """Settings of uniform growth to the number of parameters nearest to `params`.

        Raises:
            UserInputError: there is nothing to grow.
        """
        factor = self(config).factor_for(params)
        if factor == 1.0:
            raise UserInputError(
                f"baseline {name} needs growth, but the arm that it is derived from ends with the parameters of its "
                f"seed, {params:,}; train longer, or leave it out"
            )
        return uniform_growth(config, factor)
