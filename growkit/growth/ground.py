"""What may grow in a model as it is now, and what that costs: replaced as a whole when the model has changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from growkit.config.growth import GrowthSettings
from growkit.cost import Flops
from growkit.errors import SurgeryError, UserInputError
from growkit.graph import PlaceRefusal, Refusal, Sites
from growkit.growth.base import Initializer, SiteState
from growkit.growth.candidates import Candidates
from growkit.growth.costs import Costs
from growkit.growth.depths import Depths, key_of
from growkit.growth.event import describe_refusals
from growkit.growth.limits import Limits
from growkit.growth.names import Names
from growkit.growth.retracing import candidates_again, sites_again
from growkit.surgery import Inputs, Record, untouched

__all__ = ["Ground"]


@dataclass(frozen=True)
class Ground:
    """Sites and places of a model.

    Attributes:
        settings: of growth.
        sites: all that were found. candidates: those that may grow.
        depths: the places that may become deeper.
        costs: of the model at other sizes.
        example: a batch of at least 2 samples, on which sites are tried.
        known: width of every site that could ever grow, as it was last found.
    """

    settings: GrowthSettings
    sites: Sites
    candidates: Candidates
    depths: Depths
    costs: Costs
    example: Inputs
    known: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, sites: Sites, settings: GrowthSettings, seed: int) -> Ground:
        """Those of the seed that the settings name, not yet tried; `seed` is that of the growth stream.

        Raises:
            UserInputError: a pattern or a target does not fit.
        """
        nothing = Candidates([], {}, [])
        candidates = nothing if settings.mode == "depth" else Candidates.of(sites, settings)
        inputs = sites.graph.inputs
        depths = Depths() if settings.mode == "width" else Depths.of(model, inputs[0], settings.depth, seed)
        return cls(settings, sites, candidates, depths, Costs(sites.graph), Inputs(*inputs))._noted()

    @property
    def states(self) -> list[SiteState]:
        """What policies know of the sites and places that may grow."""
        return [*self.candidates.states(), *self.depths.states()]

    @property
    def widths(self) -> dict[str, int]:
        """Present width of every site that could ever grow; one given up on the way keeps its entry."""
        present = {site.name: site.width for site in self.sites}
        return {name: present.get(name, width) for name, width in self.known.items()}

    @property
    def limits(self) -> Limits:
        """The budget, with the costs that it bounds, and the trial that every event must have time for."""
        return Limits(self.settings.budget, self.costs.params, self.costs.flops, self.settings.trial)

    def tried(self, model: nn.Module, inputs: Inputs, counted: Flops, initializers: Sequence[Initializer]) -> Ground:
        """What is left after trials on copies; sites and places that fail are given up.

        Args:
            model: it is left as it was.
            inputs: an example batch of at least 2 samples.
            counted: FLOPs of the model per sample.
            initializers: that serve sites.

        Raises:
            UserInputError: no site or no place is left although growth of that kind is wanted.
        """
        settings, grows = self.settings, self.settings.when.name != "never"
        if settings.mode != "depth":
            self.candidates.give_up_untrainable(model)
            self.candidates.give_up(self.candidates.unserved(initializers))
            self.candidates.try_out(model, inputs, self.sites, settings)
        depths = self.depths.try_out(model) if grows else self.depths
        ground = replace(self, depths=depths, example=inputs, known={})._noted().costing(counted)
        if settings.target is None:
            ground.candidates.let_budget_bound(ground.limits)
        if not ground.candidates.sites and grows and settings.mode != "depth":
            raise UserInputError(
                "growth needs at least one site that can grow, got none\n"
                + describe_refusals(ground.candidates.refusals)
            )
        if grows and settings.mode != "width":
            ground.depths.check_room()
        return ground

    def costing(self, counted: Flops) -> Ground:
        """The same with the costs of the model as it is now, whose FLOPs per sample were counted."""
        graph = self.sites.graph
        return replace(self, costs=Costs(graph, counted.total - graph.flops(), self.depths.costs()))

    def without(self, refusals: Sequence[Refusal]) -> Ground:
        """The same with sites and places given up."""
        candidates = self.copied().candidates
        candidates.give_up([one for one in refusals if one.name not in self.depths])
        places = [one for one in refusals if one.name in self.depths]
        depths = self.depths.without(
            [PlaceRefusal(one.name.removeprefix(key_of("")), one.reason, one.location) for one in places]
        )
        return replace(self, candidates=candidates, depths=depths)

    def copied(self) -> Ground:
        """The same, whose candidates may be given up without harm to these."""
        return replace(self, candidates=replace(self.candidates, refusals=list(self.candidates.refusals)))

    def found_again(
        self, model: nn.Module, edits: Sequence[Record], initializers: Sequence[Initializer], *, deeper: bool
    ) -> Ground:
        """What may grow after an event.

        Args:
            model: grown; it is left as it was.
            edits: every edit since the seed.
            initializers: that serve sites.
            deeper: whether the event inserted blocks, so that the sites must be found again.

        Raises:
            SurgeryError: the grown model cannot be traced.
        """
        names, (example, _) = Names(edits), self.sites.graph.inputs
        sites, candidates = self.sites, self.candidates
        try:
            with untouched(model):
                if deeper:
                    sites = sites_again(model, example, names)
                if deeper and self.settings.mode == "both":
                    candidates = candidates_again(
                        candidates, model, self.example, sites, names, self.settings, initializers
                    )
                depths = self.depths.found_again(model, example, names)
        except UserInputError as error:
            raise SurgeryError(f"the growth event was rolled back, for the grown model: {error}") from error
        return replace(self, sites=sites, candidates=candidates, depths=depths)._noted()

    def _noted(self) -> Ground:
        return replace(self, known={**self.known, **{site.name: site.width for site in self.candidates.sites}})
