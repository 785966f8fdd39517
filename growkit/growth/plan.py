"""Targets, and what a growth policy will do, before any training: known for policies that steer by the clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from growkit.errors import UserInputError
from growkit.graph import GrowthSite
from growkit.growth.base import Clock, GrowthRecord, History, Nothing, SiteState
from growkit.growth.limits import Limits
from growkit.growth.policy import Policy

__all__ = ["GrowthPlan", "PlannedEvent", "joint_target", "plan_growth", "resolve_targets", "select_sites"]


UNBOUNDED = 16.0  # times the seed width: where neither a target nor a budget says more


@dataclass(frozen=True)
class PlannedEvent:
    """One event: after which step, and every site's width afterwards."""

    step: int
    widths: Mapping[str, int]


@dataclass(frozen=True)
class GrowthPlan:
    """The events a policy will fire, as far as its target lets it.

    Attributes:
        seed_widths: the widths at the start.
        events: in order.
        reaches_target: whether the last event ends at the target.
    """

    seed_widths: Mapping[str, int]
    events: Sequence[PlannedEvent]
    reaches_target: bool

    @property
    def final_widths(self) -> Mapping[str, int]:
        """The widths at the end."""
        return self.events[-1].widths if self.events else self.seed_widths

    def stages(self, total_steps: int) -> list[tuple[int, Mapping[str, int]]]:
        """The train stages: (number of steps, widths)."""
        starts = [0, *(event.step for event in self.events)]
        ends = [*(event.step for event in self.events), total_steps]
        widths = [self.seed_widths, *(event.widths for event in self.events)]
        return [(end - start, width) for start, end, width in zip(starts, ends, widths, strict=True)]


def select_sites(sites: Sequence[GrowthSite], patterns: Sequence[str]) -> list[GrowthSite]:
    """The sites whose name fits one of the patterns (`*` and `?` as in a shell).

    Raises:
        UserInputError: a pattern fits no site.
    """
    names = [site.name for site in sites]
    for pattern in patterns:
        if pattern != "*" and not any(fnmatchcase(name, pattern) for name in names):
            raise UserInputError(
                f"growth.sites: every pattern must fit a site, got {pattern!r}{_nearest(pattern, names)}"
            )
    return [site for site in sites if any(fnmatchcase(site.name, pattern) for pattern in patterns)]


def resolve_targets(sites: Sequence[GrowthSite], target: float | Mapping[str, int] | None) -> dict[str, int]:
    """Each site's final width.

    Args:
        sites: those that may grow.
        target: a multiple of the seed width (rounded down for sites that grow by whole copies), or final widths by
            pattern of site names; sites that fit none stay. None is the multiple that a budget cuts down later.

    Raises:
        UserInputError: a target lies below the seed's width, is no whole number of copies where a site needs that, or a
            pattern fits no site.
    """
    target = UNBOUNDED if target is None else target
    if not isinstance(target, Mapping):
        return {site.name: max(site.seed_width, _multiple(site, target)) for site in sites}
    targets = {site.name: site.seed_width for site in sites}
    problems = []
    for pattern, width in target.items():
        fitting = [site for site in sites if fnmatchcase(site.name, pattern)]
        if not fitting:
            problems.append(
                f"growth.target: every pattern must fit a site, got {pattern!r}{_nearest(pattern, list(targets))}"
            )
        for site in fitting:
            if width < site.seed_width:
                problems.append(
                    f"growth.target.{pattern}: a target must not lie below the seed's width, got {width} "
                    f"for {site.name} of width {site.seed_width}"
                )
            if site.by_copies and width % site.seed_width:
                below = width - width % site.seed_width
                problems.append(
                    f"growth.target.{pattern}: {site.name} can only grow by whole copies of its {site.seed_width} "
                    f"units, so its target must be a multiple of {site.seed_width}, got {width}; the nearest are "
                    f"{below} and {below + site.seed_width}"
                )
            targets[site.name] = width
    if problems:
        raise UserInputError("\n".join(problems))
    return targets


def _multiple(site: GrowthSite, factor: float) -> int:
    return int(factor) * site.seed_width if site.by_copies else round(factor * site.seed_width)


def joint_target(site: GrowthSite, targets: Mapping[str, int]) -> int:
    """The final width of a joint site, in its own units.

    Args:
        site: at its seed width.
        targets: the final sizes of the sites that it was made of, by their names; those at their present size ask for
            nothing.

    Raises:
        UserInputError: a target lies between two steps of the site, or two targets ask for different widths.
    """
    step = site.grown(site.grows_by)
    asked: dict[str, int] = {}
    for name, atom in site.parts.items():
        follows = atom in site.ties and name != site.name  # another joint site is named after it
        more, per_step = targets.get(name, atom.size) - atom.size, step[atom] - atom.size
        if not more or follows:
            continue
        if more % per_step:
            below = targets[name] - more % per_step
            raise UserInputError(
                f"growth.target: {name} grows by {per_step} channels at a time, for {_others(site, name)} must grow "
                f"along, so its target must be {atom.size} plus a multiple of {per_step}, got {targets[name]}; the "
                f"nearest are {below} and {below + per_step}"
            )
        asked[name] = site.width + more // per_step * site.grows_by
    if len(set(asked.values())) > 1:
        wanted = ", ".join(f"{name} to {targets[name]}" for name in asked)
        raise UserInputError(
            f"growth.target: {' and '.join(asked)} can only grow together, by "
            f"{' and '.join(str(step[site.parts[name]] - site.parts[name].size) for name in asked)} channels at a "
            f"time, got {wanted}; name one of them"
        )
    return next(iter(asked.values()), site.width)


def _others(site: GrowthSite, name: str) -> str:
    return ", ".join(other for other in site.parts if other != name)


def _nearest(pattern: str, names: Sequence[str]) -> str:
    if not names:
        return "; no site can grow"
    near = get_close_matches(pattern, names, n=1, cutoff=0.4)
    listed = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
    return f"; did you mean {near[0]!r}?" if near else f"; the sites are {listed}"


def plan_growth(
    policy: Policy,
    states: Sequence[SiteState],
    clock: Clock,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> GrowthPlan | None:
    """Play a policy through without training.

    Args:
        policy: what to play.
        states: the sites at the start.
        clock: the length of the run.
        limits: no event breaks them; the wall time, which no plan knows, apart.

    Returns:
        The plan, or None if the policy depends on what training gives.
    """
    steps = policy.trigger.planned_steps(clock)
    if steps is None or policy.by_prospects:
        return None
    history, events = History(clock), []
    current = {state.name: state for state in states}
    for step in steps:
        history.step = step
        decisions = policy.consult(list(current.values()), history, limits)
        if isinstance(decisions, Nothing) and decisions.ends:
            break
        if decisions is None or isinstance(decisions, Nothing):
            continue
        grown = {d.site: (current[d.site].width, current[d.site].width + d.num_new) for d in decisions}
        history.growths.append(GrowthRecord(step, grown))
        for name, (_, width) in grown.items():
            current[name] = replace(current[name], width=width)
        events.append(PlannedEvent(step, {name: state.width for name, state in current.items()}))
    full = all(state.room == 0 for state in current.values())
    return GrowthPlan({state.name: state.width for state in states}, events, full)
