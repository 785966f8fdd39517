"""The vocabulary of growth: what policies read, what they answer, and the four interfaces."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from growkit.cost import BACKWARD_AND_FORWARD
from growkit.graph import GrowthSite
from growkit.growth.history import Clock, EpochRecord, GrowthRecord, History

if TYPE_CHECKING:
    from growkit.growth.limits import Limits

__all__ = [
    "Allocator",
    "Clock",
    "EpochRecord",
    "Extended",
    "GrowthDecision",
    "GrowthRecord",
    "History",
    "Initializer",
    "Later",
    "Nothing",
    "Prospect",
    "Prospects",
    "SiteSelector",
    "SiteState",
    "Trigger",
    "Why",
]


NEGLIGIBLE = 1e-10  # gains below this share of the largest are rounding, whatever chance gives


@dataclass(frozen=True)
class SiteState:
    """What selectors and allocators know of a site: its width at the start, now, and at most.

    A place that may become deeper is one too: its width is its depth, the number of its blocks, which are its units.

    Attributes:
        name: of the site; of a place `depth/NAME`.
        seed_width, width, target: at the start, now, and at most.
        by_copies: whether it grows by whole copies of all its units only; its target is a multiple of its width then.
        is_place: whether it is a place.
    """

    name: str
    seed_width: int
    width: int
    target: int
    by_copies: bool = False
    is_place: bool = False

    @property
    def room(self) -> int:
        """Units it may still gain."""
        return self.target - self.width

    def possible(self, wished: int) -> int:
        """The number of units to grow by where `wished` are asked for: at most its room.

        Whole copies are rounded up, to a width from which whole copies still lead to the target.
        """
        if not self.by_copies or self.room <= 0:
            return min(wished, self.room)
        ratio = self.target // self.width
        steps = [(factor - 1) * self.width for factor in range(2, ratio + 1) if ratio % factor == 0]
        return next((units for units in steps if units >= wished), steps[-1])

    def rounded(self, wished: int, multiple: int) -> int:
        """At least `wished` units, so many that the new width is a multiple; not where growth is by copies."""
        return wished if self.by_copies else wished + -(self.width + wished) % multiple


@dataclass(frozen=True)
class Prospect:
    """What growing one site promises, measured on growth batches at unit slope.

    Attributes:
        gains: squared singular values of the gradient matrix, largest first: what unit i adds to the squared gradient
            norm per squared norm of its fan-out.
        noise: the largest squared singular value that batches give by chance (signal removed by random signs).
        standard_error: of gains[0] over the batches.
        params_per_unit, flops_per_unit: what one more unit costs; FLOPs forward per sample.
        norm: that a new slice gets by the initializer's rule.
        is_place: whether it is that of a place, whose unit is a block: it has one gain, which is no spectrum, and norm
            1, for what a block adds to the squared gradient norm is measured at the weights that it gets.
        chance: all squared singular values that batches give by chance, largest first, of which noise is the first;
            empty where no more than that one is known.
    """

    gains: tuple[float, ...]
    noise: float
    standard_error: float
    params_per_unit: int
    flops_per_unit: int
    norm: float
    is_place: bool = False
    chance: tuple[float, ...] = ()

    @property
    def largest(self) -> float:
        """The largest gain; 0 where there is none."""
        return max(self.gains, default=0.0)

    def above(self, factor: float) -> int:
        """The number of gains above the noise floor times a factor."""
        return sum(gain > factor * self.noise for gain in self.gains)

    def directions(self, factor: float) -> int:
        """The number of gains, from the first on, that are above a factor times the one of their rank by chance.

        That is parallel analysis (Horn, Psychometrika 1965); `above` asks the largest by chance of all gains, and so of
        weaker directions that they stand out against noise that lies along other ones.
        """
        floors = [factor * one for one in self.chance or (self.noise,) * len(self.gains)]
        least = NEGLIGIBLE * self.largest
        stand_out = [gain > max(floor, least) for gain, floor in zip(self.gains, floors, strict=True)]
        return len(list(takewhile(bool, stand_out)))


@dataclass(frozen=True)
class Prospects:
    """What growth promises, site by site.

    Attributes:
        sites: by name; those that could not be measured are left out.
        gradient: squared norm of the gradient of all present parameters on the same batches.
        samples: in those batches. flops: forward, per sample, of the model.
        passes: forward passes over the samples that measuring took, a backward pass counted as two.
    """

    sites: Mapping[str, Prospect]
    gradient: float
    samples: int
    flops: int
    passes: float = float(BACKWARD_AND_FORWARD)


@dataclass(frozen=True)
class Why:
    """What made a policy decide as it did: in words, and in numbers by name."""

    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Nothing:
    """Why nothing grows although it was time to; `ends`: nor will anything later."""

    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)
    ends: bool = False


@dataclass(frozen=True)
class GrowthDecision:
    """Widen `site` by `num_new` units (a place: by blocks), for `reason`; `scores` are the numbers that decided."""

    site: str
    num_new: int
    reason: str
    scores: Mapping[str, float] = field(default_factory=dict)


class Trigger(ABC):
    """When to grow. A frozen object: all it knows comes in as arguments.

    needs_prospects: whether it must be told what growth promises; measuring that costs passes.
    """

    needs_prospects: ClassVar[bool] = False

    @abstractmethod
    def refuses(self, clock: Clock, validates: bool) -> str | None:
        """Why it could never fire in such a run, and what to do about it; None where it can.

        Args:
            clock: the run's length.
            validates: whether the validate split has samples.
        """

    @abstractmethod
    def asks(self, history: History) -> bool:
        """Whether it may be time, from the history alone; `due` is asked only then, and prospects measured."""

    @abstractmethod
    def due(self, history: History, prospects: Prospects | None = None) -> Why | None:
        """Why to grow now, after `history.step` optimizer steps; None where it is not time.

        Args:
            history: of the run so far.
            prospects: of the sites that have room; None unless it needs them.
        """

    @abstractmethod
    def planned_steps(self, clock: Clock) -> Sequence[int] | None:
        """The steps after which it will grow, if known in advance; None where it depends on what training gives."""

    def opportunities(self, clock: Clock) -> Sequence[int] | None:
        """The only steps after which it may grow, if known in advance; a guard lets some of them pass by."""
        return self.planned_steps(clock)


class SiteSelector(ABC):
    """Where to grow. A frozen object, as a trigger is."""

    needs_prospects: ClassVar[bool] = False

    @abstractmethod
    def select(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None = None
    ) -> Mapping[str, Why] | Nothing:
        """The names of the sites that grow at this event, in the order given, each with the reason.

        Args:
            sites: at least one, each with room (and with prospects, if it needs them), in the order of the graph.
            history: of the run so far.
            prospects: of these sites; None unless a part of the policy needs them.

        Returns:
            At least one site, or why none deserves to grow.
        """


class Allocator(ABC):
    """By how much to grow. A frozen object, as a trigger is."""

    needs_prospects: ClassVar[bool] = False

    @abstractmethod
    def units(
        self, sites: Sequence[SiteState], history: History, prospects: Prospects | None, limits: Limits
    ) -> Mapping[str, int] | Nothing:
        """New units, at least 1, for each of the sites that gets some; the policy caps them at the site's room.

        Args:
            sites: those chosen, in the order of the graph.
            history: of the run so far.
            prospects: of these sites; None unless a part of the policy needs them.
            limits: what the model costs, and how much it may.
        """

    def why(self, site: str, prospects: Prospects | None) -> Why | None:
        """What of the prospects gave a site the units that it got; None where settings alone did."""
        return None


class Later(Mapping[tuple[str, int], Tensor]):
    """New slices that are chosen when the first of them is asked for, so that sites can be measured together.

    Args:
        choose: gives them, while the model is as it was when the initializer was asked.
        places: (tensor name, dimension) of each.
    """

    def __init__(self, choose: Callable[[], Mapping[tuple[str, int], Tensor]], places: Iterable[tuple[str, int]]):
        self._choose, self._places = choose, tuple(places)

    @cached_property
    def _chosen(self) -> Mapping[tuple[str, int], Tensor]:
        return self._choose()

    def __getitem__(self, place: tuple[str, int]) -> Tensor:
        return self._chosen[place]

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


@dataclass(frozen=True)
class Extended:
    """An initializer's answer for one site.

    Attributes:
        values: (tensor name, dimension) -> new slices, as growkit.surgery.Extension takes them.
        form: what new units are at first: "zero_fan_in" or "zero_fan_out" (that side is zero), "remedied" (a norm or an
            attention product decides what is zero), "paired" (equal fan-ins, opposite fan-outs), "copied" (from old
            units, with shares of their fan-out), "split" (likewise, both moved apart), "both" (neither side is zero).
        reason: why this form.
        facts: numbers worth recording (singular values, predicted gradient norm).
        rewrites: existing tensors by name -> new values of the whole tensor, in the shape before the event. They are
            written with the event and taken back with it; what the optimizer remembers of them stays as it is. Where
            several sites rewrite one tensor, each entry changes by all factors (growkit.growth.rewriting).
    """

    values: Mapping[tuple[str, int], Tensor]
    form: str
    reason: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    rewrites: Mapping[str, Tensor] = field(default_factory=dict)

    def chosen(self) -> Extended:
        """With the slices that were left for `Later` chosen; for when all sites of an event have answered."""
        return replace(self, values=dict(self.values))

    def silenced(self, site: GrowthSite, num_new: int) -> Extended:
        """What keeps the function at `site`, as it is before the event: no rewrites, and zeros where it needs them."""
        silent = {(edit.names[0], dim) for edit in site.tensor_edits(num_new) for dim in edit.silent_dims}
        values = {place: slices for place, slices in self.values.items() if place not in silent}
        return replace(self, values=values, rewrites={})


class Initializer(ABC):
    """How new units begin.

    Attributes:
        name: in settings and events.
        preserves: whether the function is kept. Where it is not, by design, surgery is first verified with the new
            units silent (what would be read of them zero, nothing rewritten), and only then given the values.
    """

    name: ClassVar[str]
    preserves: ClassVar[bool] = True

    @abstractmethod
    def refuses(self, site: GrowthSite) -> str | None:
        """Why this initializer cannot serve `site`; None where it can."""

    @abstractmethod
    def extend(self, site: GrowthSite, num_new: int, measurement: Any, generator: torch.Generator) -> Extended:
        """The new slices of `site`.

        Args:
            site: where.
            num_new: how many units.
            measurement: a growkit.growth.statistics.Measurement, the facts of one batch.
            generator: source of all chance (CPU).

        Raises:
            GrowthRefused: the settings ask for what the measured facts forbid.
        """
