"""Which side of the new units may be zero: decided by what the activation does at 0, never by its name."""

from __future__ import annotations

from growkit.errors import GrowthRefused
from growkit.graph import GrowthSite
from growkit.growth.statistics import ActivationFacts, Measurement

__all__ = ["choose_form"]

SILENT = 1e-7  # largest |f(0)| that counts as 0
ALIVE = 1e-3  # smallest |f'(0)| that counts as a slope


def choose_form(wanted: str, site: GrowthSite, measurement: Measurement) -> tuple[str, str]:
    """The form to use at a site, and why.

    Zero fan-in keeps the function if f(0) = 0 and lets the units learn if f'(0) != 0 (Evci et al. 2022); torch.relu has
    slope 0 at 0, where they would be dead for ever. A BatchNorm in between multiplies the first gradient by
    1/sqrt(eps), so that the function jumps one step after the event. Zero fan-out keeps any function.

    Args:
        wanted: "auto", "zero_fan_in" or "zero_fan_out".
        site: where.
        measurement: facts of one batch.

    Raises:
        GrowthRefused: "zero_fan_in" was asked for by name and cannot work here.
    """
    if site.remedies and wanted != "zero_fan_in":
        return "remedied", "norms or attention products depend on these units, which decides what is zero at first"
    if wanted == "zero_fan_out":
        return wanted, "asked for"
    if site.chain is None:
        problem = "more than one layer makes or reads these units, or they are reshaped in between"
    else:
        problem = _problem(measurement.activation(site), forced=wanted == "zero_fan_in")
    if problem is None:
        return "zero_fan_in", "asked for" if wanted == "zero_fan_in" else "f(0) = 0 and f'(0) != 0"
    if wanted == "auto":
        return "zero_fan_out", problem
    raise GrowthRefused(
        f"form zero_fan_in needs f(0) = 0 and f'(0) != 0 between one producer and one consumer; at {site.name} "
        f"{problem}; use form: auto or zero_fan_out"
    )


def _problem(facts: ActivationFacts, *, forced: bool) -> str | None:
    if facts.value > SILENT:
        return f"the activation gives f(0) = {facts.value:.3g}, so zero fan-in would change the function"
    if facts.slope < ALIVE:
        return f"the activation has slope {facts.slope:.3g} at 0 (torch's ReLU has 0), so zero fan-in would never learn"
    if facts.has_norm and not forced:
        return "a BatchNorm stands in between, which blows up the first gradient of a zero fan-in"
    return None
