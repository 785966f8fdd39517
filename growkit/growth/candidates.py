"""The sites of a run that may grow, how wide they may become, and why the others may not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from growkit.config.growth import GrowthSettings
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.growth.base import Initializer, SiteState
from growkit.growth.limits import Limits
from growkit.growth.plan import joint_target, resolve_targets, select_sites
from growkit.surgery import Inputs, lookup, verify_sites

__all__ = ["Candidates"]

WIDEST = 1000  # times the seed width: where more units cost nothing that the budget bounds


@dataclass
class Candidates:
    """What may grow.

    Attributes:
        sites: those left, in the order of the graph.
        targets: the widest each may become, by name.
        refusals: of all others, with the reason.
        not_checked: what the trial of the sites left out.
    """

    sites: list[GrowthSite]
    targets: dict[str, int]
    refusals: list[Refusal]
    not_checked: tuple[str, ...] = ()

    @classmethod
    def of(cls, sites: Sites, settings: GrowthSettings) -> Candidates:
        """Those that `growth.sites` names, with the final widths that `growth.target` gives them.

        Raises:
            UserInputError: a pattern fits no site, or a target cannot be.
        """
        named = select_sites(list(sites), settings.sites)
        return cls(named, resolve_targets(named, settings.target), list(sites.refusals))

    def states(self) -> list[SiteState]:
        """What policies know of them."""
        return [
            SiteState(site.name, site.seed_width, site.width, self.targets[site.name], site.by_copies)
            for site in self.sites
        ]

    def let_budget_bound(self, limits: Limits) -> None:
        """Targets as wide as the budget lets each site alone become; left as they are where it bounds no cost."""
        for site in self.sites:
            if limits.budget.params is not None or limits.budget.flops is not None:
                self.targets[site.name] = _widest(site, limits)

    def give_up(self, refusals: Iterable[Refusal | None]) -> None:
        """Refuse those that the refusals name."""
        real = [refusal for refusal in refusals if refusal is not None]
        names = {refusal.name for refusal in real}
        self.refusals += real
        self.sites = [site for site in self.sites if site.name not in names]

    def give_up_untrainable(self, model: nn.Module) -> None:
        """Refuse sites with frozen weights, for new units would never train, and with complex ones."""
        self.give_up([_frozen(model, site) or _complex(model, site) for site in self.sites])

    def unserved(self, initializers: Sequence[Initializer]) -> list[Refusal]:
        """Of the sites that none of the initializers serves as they are now, for the first one's reason."""
        unserved = []
        for site in self.sites:
            reasons = [initializer.refuses(site) for initializer in initializers]
            if all(reasons):
                reason = f"{reasons[0]} (growth.fallback names what would serve it)"
                unserved.append(Refusal(site.name, site.width, reason, site.location))
        return unserved

    def try_out(self, model: nn.Module, inputs: Inputs, found: Sites, settings: GrowthSettings) -> None:
        """Keep the sites that a trial on a copy shows to be safe; some of them are joint from then on.

        Args:
            model: it is left as it was.
            inputs: an example batch of at least 2 samples.
            found: all sites; joint ones are entered by the trial.
            settings: give the targets of joint sites.
        """
        verdict = verify_sites(model, self.sites, inputs)
        self.refusals += verdict.refusals
        self.not_checked = verdict.not_checked
        joint = [site for site in verdict.sites if site not in self.sites]
        given, names = self.targets, {site.name for site in found}
        self.targets = {name: target for name, target in given.items() if name in names}
        for site in joint:
            if isinstance(settings.target, Mapping):  # final sizes are given for the sites as they were found
                self.targets[site.name] = joint_target(site, given)
            else:
                self.targets |= resolve_targets([site], settings.target)
        self.sites = list(verdict.sites)
        self.give_up([_short_of_a_copy(site, settings.target) for site in self.sites])


def _widest(site: GrowthSite, limits: Limits) -> int:
    """The largest width of a site, the others as they are, that keeps within the budget for parameters and FLOPs."""

    def fits(width: int) -> bool:
        budget, wider = limits.budget, {site.name: width}
        costs = [(budget.params, limits.params), (budget.flops, limits.flops)]
        return all(limit is None or cost(wider) <= limit for limit, cost in costs)

    step = site.seed_width if site.by_copies else 1
    low, high = 0, 1  # steps that fit, steps that may not
    while site.width + high * step <= WIDEST * site.seed_width and fits(site.width + high * step):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(site.width + middle * step) else (low, middle)
    return site.width + low * step


def _short_of_a_copy(site: GrowthSite, wanted: float | Mapping[str, int] | None) -> Refusal | None:
    """A site that could only be doubled, where the target asks for more units but not for so many."""
    if wanted is None or isinstance(wanted, Mapping) or not site.by_copies or not 1 < wanted < 2:
        return None
    reason = f"can only grow by whole copies of its units, and growth.target {wanted:g} asks for less than one"
    return Refusal(site.name, site.width, reason, site.location)


def _complex(model: nn.Module, site: GrowthSite) -> Refusal | None:
    """A site with complex weights: no initializer has a rule for their gradients and activations."""
    names = [m.names[0] for m in site.members if lookup(model, m.names[0], m.kind).is_complex()]
    if not names:
        return None
    reason = f"moves the complex weight {names[0]!r}, for which no initializer has a rule"
    return Refusal(site.name, site.width, reason, site.location)


def _frozen(model: nn.Module, site: GrowthSite) -> Refusal | None:
    """A site with a frozen weight: new units in it would never train. Biases may be frozen."""
    ends = {m.names[0]: lookup(model, m.names[0], m.kind) for m in (*site.producers, *site.consumers)}
    weights = {name: tensor for name, tensor in ends.items() if tensor.dim() > 1} or ends
    frozen = [name for name, weight in weights.items() if not weight.requires_grad]
    if not frozen:
        return None
    reason = f"its weights are frozen (requires_grad=False), so new units would not train: {', '.join(frozen)}"
    return Refusal(site.name, site.width, reason, site.location)
