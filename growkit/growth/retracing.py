"""The sites of a model that became deeper: found again, called what the run calls them, with the targets they had."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from growkit.config.growth import GrowthSettings
from growkit.graph import GrowthSite, Refusal, Sites, find_sites
from growkit.graph.tracing import Example
from growkit.growth.base import Initializer
from growkit.growth.candidates import Candidates
from growkit.growth.names import Names
from growkit.growth.plan import select_sites
from growkit.surgery import Inputs, verify_sites

__all__ = ["candidates_again", "sites_again"]


def sites_again(model: nn.Module, example: Example, names: Names) -> Sites:
    """The sites of a model as it is now, by the run's names."""
    found = find_sites(model, example)
    for site in found:
        site.name = names.of(site.name)
    return found


def candidates_again(
    old: Candidates,
    model: nn.Module,
    inputs: Inputs,
    found: Sites,
    names: Names,
    settings: GrowthSettings,
    initializers: Sequence[Initializer],
) -> Candidates:
    """Which of the sites found again may grow, tried on a copy as before the first event.

    A site that was there keeps its seed width and its target; one that was given up stays so. A site of a new block has
    the seed width and the target of the site like it in the block of the seed, and may grow if that may.

    Args:
        old: those before the model became deeper.
        model: it is left as it was.
        inputs: an example batch of at least 2 samples.
        found: its sites by the run's names; joint ones are entered by the trial.
        names: the run's.
        settings: name the sites.
        initializers: that serve sites.
    """
    known = {site.name: site for site in old.sites}
    again = Candidates([], {}, list(old.refusals))
    parts = {part for site in old.sites for part in site.parts}

    def like(site: GrowthSite) -> GrowthSite | None:
        return known.get(site.name) or known.get(names.like(site.name))

    selected = select_sites(list(found), settings.sites)
    again.sites = [site for site in selected if like(site) or {site.name, names.like(site.name)} & parts]
    again.give_up_untrainable(model)
    again.give_up(again.unserved(initializers))
    verdict = verify_sites(model, again.sites, inputs)
    again.sites, again.not_checked = [], verdict.not_checked
    refused = {refusal.name for refusal in again.refusals}
    again.refusals += [one for one in verdict.refusals if one.name not in refused]
    for site in verdict.sites:
        before = like(site)
        if before is None:
            reason = "has no like among the sites before the model became deeper"
            again.refusals.append(Refusal(site.name, site.width, reason, site.location))
            continue
        site.seed_width, again.targets[site.name] = before.seed_width, max(site.width, old.targets[before.name])
        again.sites.append(site)
    left = {site.name for site in again.sites} | {refusal.name for refusal in again.refusals}
    lost = [name for name in known if name not in left]
    reasons = {refusal.name: refusal for refusal in found.refusals}
    again.refusals += [
        Refusal(name, known[name].width, reasons[name].reason if name in reasons else "is no site any more", None)
        for name in lost
    ]
    return again
