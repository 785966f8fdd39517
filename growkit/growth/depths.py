"""The places of a run that may become deeper, how deep they may become, and why the others may not."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn

from growkit.config.depth import DepthSettings
from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.graph import DepthPlace, PlaceRefusal, copy_of, find_places
from growkit.graph.tracing import Example
from growkit.growth.base import SiteState
from growkit.growth.costs import BlockCost
from growkit.growth.names import Names
from growkit.surgery import deepen

__all__ = ["BlockOrder", "Depths", "key_of"]


def key_of(place: str) -> str:
    """What policies, decisions and histories call a place, among the sites."""
    return f"depth/{place}"


@dataclass(frozen=True)
class BlockOrder:
    """So many blocks more at one place.

    Attributes:
        name: of the place, by the run's names.
        place: behind its last block, as the model is now.
        depth: blocks there now.
        seeds: of the weights of each new block.
    """

    name: str
    place: DepthPlace
    depth: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Depths:
    """What may become deeper.

    Attributes:
        places: those left, by the block of the seed, in the order of the modules; each behind its last block.
        depths: the number of blocks at every place that could become deeper at the start.
        targets: the most blocks each may have.
        refusals: of the others, with the reason.
        seed: of the growth stream; the weights of a block follow from it, the place and the block's number.
    """

    places: Mapping[str, DepthPlace] = field(default_factory=dict)
    depths: Mapping[str, int] = field(default_factory=dict)
    targets: Mapping[str, int] = field(default_factory=dict)
    refusals: tuple[PlaceRefusal, ...] = ()
    seed: int = 0

    @classmethod
    def of(cls, model: nn.Module, example: Example, settings: DepthSettings, seed: int) -> Depths:
        """The places that `growth.depth.places` names, with the depths that `growth.depth.target` gives them.

        Raises:
            UserInputError: a pattern fits no place, or no place may become deeper than it is.
        """
        found = find_places(model, example)
        names = [place.name for place in found]
        for pattern in settings.places:
            if pattern != "*":
                _check_fits("growth.depth.places", pattern, names, found.refusals)
        chosen = [name for name in names if any(fnmatchcase(name, pattern) for pattern in settings.places)]
        targets = _targets(chosen, settings.target, found.refusals)
        refusals = found.refusals if "*" in settings.places else ()
        return cls({name: found[name] for name in chosen}, dict.fromkeys(chosen, 1), targets, refusals, seed)

    def __contains__(self, key: str) -> bool:
        return any(key == key_of(name) for name in self.depths)

    def states(self) -> list[SiteState]:
        """What policies know of them."""
        return [
            SiteState(key_of(name), 1, self.depths[name], self.targets[name], is_place=True) for name in self.places
        ]

    def costs(self) -> dict[str, BlockCost]:
        """What one more block costs at each of them, at the widths of the last trace."""
        return {
            key_of(name): BlockCost(self.depths[name], place.params_added, place.flops_added)
            for name, place in self.places.items()
        }

    def order(self, key: str, blocks: int = 1) -> BlockOrder:
        """The order for so many blocks at a place."""
        name = next(name for name in self.places if key_of(name) == key)
        depth = self.depths[name]
        seeds = tuple(_seed_of(self.seed, name, depth + number) for number in range(blocks))
        return BlockOrder(name, self.places[name], depth, seeds)

    def next_orders(self) -> list[BlockOrder]:
        """One block more for each place with room."""
        return [self.order(state.name) for state in self.states() if state.room > 0]

    def try_out(self, model: nn.Module) -> Depths:
        """Those left after one more block was tried at each place with room, on a copy; the model is left as it was."""
        kept = self
        trial = copy_of(model)
        for order in self.next_orders():
            try:
                deepen(trial, order.place, seed=order.seeds[0]).undo()
            except (SurgeryError, GrowthRefused) as error:
                kept = kept.without([PlaceRefusal(order.name, f"{error}", order.place.location)])
        return kept

    def check_room(self) -> None:
        """Raise UserInputError where no place may become deeper."""
        if not self.places:
            told = "".join(f"\n  {one.name or 'the model'} {one.reason}" for one in self.refusals)
            raise UserInputError(
                f"growth.mode depth and both need a place where a block may be repeated, got none; take width{told}"
            )
        if all(state.room <= 0 for state in self.states()):
            raise UserInputError(
                "growth.depth.target must let a place have more blocks than the one it has; raise it, or take "
                "growth.mode width"
            )

    def without(self, refusals: Sequence[PlaceRefusal]) -> Depths:
        """The same with some places given up."""
        gone = {refusal.name for refusal in refusals}
        left = {name: place for name, place in self.places.items() if name not in gone}
        return replace(self, places=left, refusals=(*self.refusals, *refusals))

    def deeper(self, depths: Mapping[str, int]) -> Depths:
        """The same after places became deeper."""
        return replace(self, depths={**self.depths, **depths})

    def found_again(self, model: nn.Module, example: Example, names: Names) -> Depths:
        """The same places in a model that has changed, each behind the last block that came there."""
        found = find_places(model, example)
        last: dict[str, DepthPlace] = {}
        for place in found:
            own = names.of(place.name)
            root = names.root(own)
            if root in self.places and own == (root if self.depths[root] == 1 else f"{root}+{self.depths[root] - 1}"):
                last[root] = place
        reasons = {names.of(refusal.name): refusal for refusal in found.refusals}
        lost = [
            PlaceRefusal(name, reasons[name].reason if name in reasons else "is no place any more", None)
            for name in self.places
            if name not in last
        ]
        return replace(self, places={name: last.get(name, place) for name, place in self.places.items()}).without(lost)


def _seed_of(seed: int, name: str, number: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}/{number}".encode()).digest()[:7], "big")


def _targets(
    names: Sequence[str], wanted: float | Mapping[str, int], refusals: Sequence[PlaceRefusal]
) -> dict[str, int]:
    if isinstance(wanted, Mapping):
        targets = dict.fromkeys(names, 1)
        for pattern, blocks in wanted.items():
            _check_fits("growth.depth.target", pattern, names, refusals)
            targets |= {name: blocks for name in names if fnmatchcase(name, pattern)}
        return targets
    return dict.fromkeys(names, int(wanted))


def _check_fits(setting: str, pattern: str, names: Sequence[str], refusals: Sequence[PlaceRefusal]) -> None:
    if any(fnmatchcase(name, pattern) for name in names):
        return
    refused = next((one for one in refusals if fnmatchcase(one.name, pattern)), None)
    if refused is not None:
        hint = f"nothing may follow {refused.name!r}: it {refused.reason}"
    elif near := get_close_matches(pattern, names, n=1, cutoff=0.4):
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = (
            f"the places are {', '.join(names[:6])}" + (", ..." if len(names) > 6 else "") if names else "there is none"
        )
    raise UserInputError(f"{setting}: every pattern must fit a place, got {pattern!r}; {hint}")
