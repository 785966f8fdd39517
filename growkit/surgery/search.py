"""Which sites may grow: all tried at once, then clusters of like sites, then joint sites, then one by one.

The search also finds out which plain attributes must change along with a site: first none, then those that hold the
size itself, then those that hold a multiple of it; of what helps, only what is needed is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

from torch import nn

from growkit.errors import ModelError
from growkit.graph import GrowthSite, Refusal, SizeAttribute, joins
from growkit.graph.dimensions import size
from growkit.surgery.guesses import certain, chosen, guesses, pattern, pattern_of, place_of
from growkit.surgery.scratch import scratch_copy
from growkit.surgery.trial import CHANGED, LARGEST_BATCH, SIZE_FAULTS, TOLERANCE, UNREACHED, Outcome, Trial
from growkit.surgery.values import lookup
from growkit.surgery.verify import Inputs

__all__ = ["Verdict", "verify_sites"]

SMALL_CLUSTER = 4


@dataclass(frozen=True)
class Verdict:
    """What a trial showed.

    Attributes:
        sites: the sites that keep the function, in the order of the forward pass; some are joint.
        refusals: the others, with the reason.
        worst: the largest change of an output, relative to the largest output, when all sites grew together.
        control: the change when the same edit was wrong on purpose.
        path_specialised: True if the forward branches on values: the sites are proved for the path of the example only.
        not_checked: what the model does not bear, such as another batch size, and the trial therefore left out.
    """

    sites: tuple[GrowthSite, ...]
    refusals: tuple[Refusal, ...]
    worst: float
    control: float
    path_specialised: bool = False
    not_checked: tuple[str, ...] = ()


def verify_sites(
    model: nn.Module, sites: Sequence[GrowthSite], inputs: Inputs, *, tolerance: float = TOLERANCE
) -> Verdict:
    """Widen sites on a perturbed copy and keep those that leave the function as it was.

    Args:
        model: left untouched.
        sites: the candidates.
        inputs: an example batch; at most 8 samples of it are looked at.
        tolerance: largest relative change of an fp32 output that is accepted as it is; a larger one is accepted
            if float64 shows that it is rounding (at most 1e-9 there).

    Returns:
        The sites that may grow, each settled on the attributes that change along, and a refusal for each other. Sites
        that can only grow together are joined, and stand in the place of their parts in the graph from then on.

    Raises:
        ModelError: the model does not run on the inputs, or its outputs are not finite.
    """
    if not sites:
        return Verdict((), (), 0.0, 0.0)
    with ExitStack() as stack:
        return _Search(_trial(stack, model, sites, inputs, tolerance)).run(list(sites))


def _trial(stack: ExitStack, model: nn.Module, sites: Sequence[GrowthSite], inputs: Inputs, tolerance: float) -> Trial:
    """On the first samples of a large batch; on all where the first dimension is none of samples (nodes of a graph)."""
    if (inputs.batch or 0) > LARGEST_BATCH:
        few = inputs.at_most(LARGEST_BATCH)
        with suppress(ModelError):
            return Trial(stack.enter_context(scratch_copy(model, few)), few, tolerance, sites)
    return Trial(stack.enter_context(scratch_copy(model, inputs)), inputs, tolerance, sites)


@dataclass
class _Search:
    """The strategy: all at once, then clusters of like sites, then joint sites, then one by one.

    What must change along is looked for with glances; what they find is tried in full, and sorted once more, by trials,
    if that fails.
    """

    trial: Trial
    failures: dict[str, tuple[GrowthSite, Outcome]] = field(default_factory=dict)
    read: dict[str, bool] = field(default_factory=dict)
    parts: dict[GrowthSite, list[GrowthSite]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look = self.trial.glance

    def run(self, sites: list[GrowthSite]) -> Verdict:
        before = [(site, site.attributes) for site in sites]
        try:
            good, outcome = self._search(sites)
        except BaseException:  # an interrupt must not leave half a guess behind
            for site, attributes in before:
                site.attributes = attributes
            raise
        for site in good:
            site.settle(site.attributes)
            if len(site.atoms) > 1 and site not in sites:
                site.graph.adopt(site)
        refusals = [_refusal(self.trial.model, site, failure) for site, failure in self.failures.values()]
        for site, attributes in before:
            if not site.settled:
                site.attributes = attributes
        good.sort(key=lambda site: sites.index(site) if site in sites else len(sites))
        specialised, missing = sites[0].graph.path_specialised, self.trial.not_checked
        return Verdict(tuple(good), tuple(refusals), outcome.worst, outcome.control, specialised, missing)

    def _search(self, sites: list[GrowthSite]) -> tuple[list[GrowthSite], Outcome]:
        for site in sites:
            if not site.settled:
                site.attributes = certain(site)  # the guesses come back where a trial fails without
        outcome = self._judged(sites)
        if outcome.reason is None:
            return sites, outcome
        good = self._sorted(sites)
        outcome = self._judged(good)
        if outcome.reason is None:
            return good, outcome
        self.look = self._judged
        return self._together(self._sorted(good))

    def _judged(self, sites: Sequence[GrowthSite]) -> Outcome:
        """A trial of all, and glances at some by other numbers of units, next to widths that stay.

        A wrong width may be right by chance once, and where all grow alike (`C // 8` of three parts of one width).
        """
        outcome = self.trial.of(sites) if sites else Outcome(None)
        for some in _apart(sites):
            if outcome.reason is None:
                again = self.trial.glance(some, turn=1)
                outcome = outcome if again.reason is None else again
        return outcome

    def _sorted(self, sites: list[GrowthSite]) -> list[GrowthSite]:
        """The sites that may grow with their like, joint ones among them; the others become failures."""
        good = [site for cluster in _clusters(sites) for site in self._cluster(cluster)]
        return good + self._joined()

    def _cluster(self, sites: list[GrowthSite]) -> list[GrowthSite]:
        """The members of a cluster of like sites that may grow; the others become failures."""
        plain = self.look(sites)
        if plain.reason is None or (guessed := self._guessed(sites, tried=True)).reason is None:
            return sites
        if len(sites) == 1:
            self._fail(sites[0], self._both(sites[0], plain, guessed))
            return []
        if len(sites) > SMALL_CLUSTER:
            ends = [self._alone(site) for site in (sites[0], sites[-1])]
            if all(end.reason for end in ends):  # like sites fail alike: none of the others is tried alone
                for site in sites:
                    self._fail(site, ends[0])
                return []
        half = len(sites) // 2
        return self._cluster(sites[:half]) + self._cluster(sites[half:])

    def _guessed(self, sites: list[GrowthSite], *, tried: bool = False) -> Outcome:
        """Trials with the attributes that may have to change, until one succeeds, else the outcome of the first.

        With `tried`, all but the one without any.
        """
        first: Outcome | None = None
        known = {site.name: self._candidates(site) for site in sites}
        for patterns in guesses([one for site in sites for one in known[site.name]]):
            if tried and not patterns:
                continue
            for site in sites:
                site.attributes = chosen(known[site.name], patterns)
            outcome = self.look(sites)
            if outcome.reason is None:
                self._drop_needless(sites)
                return outcome
            first = first or outcome
        for site in sites:
            site.attributes = certain(site)
        return first or Outcome("no attribute is known that could change along")

    def _candidates(self, site: GrowthSite) -> tuple[SizeAttribute, ...]:
        """The attributes that may have to change with a site: those that the forward reads.

        Where it gives none to an operation, it may still compare a width with one (`assert x.shape[-1] == self.dim`).
        """
        if site.settled:
            return site.attributes
        carriers = site.graph.carriers_of(site.atoms)
        known = {(one.module, one.path) for one in carriers}
        further = [one for one in site.graph.holders_of(site.atoms) if (one.module, one.path) not in known]
        carriers += tuple(replace(one, likely=not known) for one in further)
        new: dict[str, list[SizeAttribute]] = {}
        for one in carriers:
            if not one.certain and place_of(one) not in self.read:
                new.setdefault(place_of(one), []).append(one)
        self._sift([*new.values()])
        return tuple(one for one in carriers if one.certain or self.read[place_of(one)])

    def _sift(self, groups: Sequence[list[SizeAttribute]]) -> None:
        """Note which attributes the forward reads, by halves; those of modules alike together."""
        read = bool(groups) and self.trial.reads([one for group in groups for one in group])
        if len(groups) < 2 or not read:
            self.read |= {place_of(group[0]): read for group in groups}
            return
        half = len(groups) // 2
        self._sift(groups[:half])
        self._sift(groups[half:])

    def _alone(self, site: GrowthSite) -> Outcome:
        """A trial of one site; with its guesses if it fails without."""
        plain = self.look([site])
        if plain.reason is None:
            return plain
        guessed = self._guessed([site], tried=True)
        return guessed if guessed.reason is None else self._both(site, plain, guessed)

    def _both(self, site: GrowthSite, plain: Outcome, guessed: Outcome) -> Outcome:
        """The failure without a change of attributes, and the other one with it, where an attribute has two roles."""
        places = list(dict.fromkeys(one.place for one in self._candidates(site) if one.likely and not one.certain))
        same_line = plain.location is not None and plain.location == guessed.location
        if not places or same_line or not (plain.reason or "").startswith(SIZE_FAULTS):
            return plain
        where = f" (at {guessed.location})" if guessed.location else ""
        along = f"with {' and '.join(places[:2])} changed along, {guessed.reason}{where}"
        if (guessed.reason or "").startswith(CHANGED):
            along += ", as where it is read as another number too; give each of the two an attribute of its own"
        return replace(plain, reason=f"{plain.reason}; {along}")

    def _fail(self, site: GrowthSite, outcome: Outcome) -> None:
        for one in self.parts.get(site, [site]):
            self.failures[one.name] = one, outcome

    def _joined(self) -> list[GrowthSite]:
        """Joint sites made of failures."""
        if not self.failures:
            return []
        found: list[GrowthSite] = []
        graph = next(iter(self.failures.values()))[0].graph
        proposals = joins(graph, [site for site, _ in self.failures.values()])
        for proposal in proposals:
            failing = {site.atom: name for name, (site, _) in self.failures.items()}
            tied = {atom for joint in found for atom in joint.ties}  # a stream may grow by heads and by their size
            if not {*proposal.steps} <= {*failing} or not {*proposal.ties} <= {*failing} | tied:
                continue  # some part grows already, alone or in another joint site
            if self._guessed([proposal]).reason is None:
                parts = [failing[atom] for atom in proposal.atoms if atom in failing]
                self.parts[proposal] = [self.failures[name][0] for name in parts]
                if proposal.name in [joint.name for joint in found]:
                    proposal.name = parts[0]
                found.append(proposal)
                for name in parts:
                    del self.failures[name]
        return found

    def _together(self, sites: list[GrowthSite]) -> tuple[list[GrowthSite], Outcome]:
        """Each was safe with its like; what is not safe with all others is given up."""
        outcome = self._judged(sites)
        if outcome.reason is None:
            return sites, outcome
        kept: list[GrowthSite] = []
        for cluster in _clusters(sites):
            if len(cluster) > 1 and self._judged([*kept, *cluster]).reason is None:
                kept += cluster
                continue
            for site in cluster:
                outcome = self._judged([*kept, site])
                if outcome.reason is None:
                    kept.append(site)
                else:
                    names = ", ".join(other.name for other in kept[:3]) + (", ..." if len(kept) > 3 else "")
                    reason = f"it cannot grow at the same events as {names or 'others'}: {outcome.reason}"
                    self._fail(site, replace(outcome, reason=reason))
        return kept, self._judged(kept)

    def _drop_needless(self, sites: list[GrowthSite]) -> None:
        """Keep only the attributes without whose change the trial fails."""
        for name in sorted({pattern_of(one) for site in sites for one in site.attributes}):
            before = [site.attributes for site in sites]
            for site in sites:
                site.attributes = tuple(one for one in site.attributes if one.certain or pattern_of(one) != name)
            if self.look(sites).reason is not None:
                for site, attributes in zip(sites, before, strict=True):
                    site.attributes = attributes


def _apart(sites: Sequence[GrowthSite]) -> list[list[GrowthSite]]:
    """The sites in a few groups: no two parts of one weight's width together, every other one of the rest."""
    count: dict[tuple[str, int], int] = {}
    groups: dict[int, list[GrowthSite]] = {}
    for number, site in enumerate(sites):
        made = {(member.names[0], member.dim) for member in site.producers}
        part = max((count.get(one, 0) for one in made), default=0)
        count |= dict.fromkeys(made, part + 1)
        groups.setdefault(part + 1 if part else -(number % 2), []).append(site)
    return [*groups.values()]


def _clusters(sites: Sequence[GrowthSite]) -> list[list[GrowthSite]]:
    """Sites that move like-named tensors in like roles."""
    found: dict[object, list[GrowthSite]] = {}
    for site in sites:
        key = frozenset((pattern(member.names[0]), member.dim, member.role) for member in site.members)
        found.setdefault(key, []).append(site)
    return list(found.values())


RESHAPES = frozenset({"view", "reshape", "unflatten", "_unsafe_view"})
"""Operations that work a size out where -1 is written."""


def _refusal(model: nn.Module, site: GrowthSite, outcome: Outcome) -> Refusal:
    reason = outcome.reason or ""
    if reason == UNREACHED and (frozen := _frozen(model, site)):
        reason += f", for {frozen} is frozen and would silence them for ever; call requires_grad_() on it before growth"
    written = {one.location: one for one in site.graph.written_in_code(site.atoms) if one.location is not None}
    if len(written) != 1 or outcome.location in written or not reason.startswith(SIZE_FAULTS):
        return Refusal(site.name, site.width, reason, outcome.location or site.location)
    ((location, one),) = written.items()  # a wrong size often fails in a later line
    remedy = "write -1" if one.op in RESHAPES else "take it from a shape"
    cause = f"{one.op} is given the number {size(one.dim)}: {remedy}, or keep it in an attribute that can change along"
    return Refusal(site.name, site.width, f"{cause} ({reason})", location)


def _frozen(model: nn.Module, site: GrowthSite) -> str | None:
    """The weight whose zeros silence new units for good, if no other one could learn to let them through."""
    silent = [edit for edit in site.tensor_edits(site.grows_by) if edit.kind == "parameter" and edit.silent_dims]
    learning = [edit for edit in silent if lookup(model, edit.names[0], edit.kind).requires_grad]
    return repr(silent[0].names[0]) if silent and not learning else None
