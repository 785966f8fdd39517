"""What the command `growkit doctor` does."""

from __future__ import annotations

import json
from collections.abc import Iterator

import typer

from growkit.doctor.checks import Check
from growkit.doctor.machine import check_compiler, compute_checks
from growkit.doctor.packages import EXTRAS, PACKAGES, check_extra, check_package, own_versions
from growkit.doctor.places import data_checks, place_checks
from growkit.doctor.probe import COMPUTE, Outcome, probe
from growkit.errors import UserInputError

__all__ = ["doctor"]

DOCTOR_VERSION = 1
SECONDS = 60.0  # for all imports together, which a slow disk makes long
COLOURS = {"ok": "green", "missing": "yellow", "problem": "red"}


def doctor(root: str, *, as_json: bool = False, seconds: float = SECONDS) -> None:
    """Print how growkit stands here, a line for each thing looked at.

    Args:
        root: the folder that runs would be written to.
        as_json: print one JSON object (docs/formats.md).
        seconds: that the imports may take.

    Raises:
        UserInputError: something without which no run can work is broken.
    """
    checks = []
    for check in examine(root, seconds):
        checks.append(check)
        if not as_json:
            _show(check, first=len(checks) == 1 or checks[-2].group != check.group)
    broken = [check for check in checks if check.stops_runs]
    if as_json:
        report = {"version": DOCTOR_VERSION, "ready": not broken, "checks": [check.to_json() for check in checks]}
        typer.echo(json.dumps(report))
    if broken:
        listed = "; ".join(f"{check.name}: {check.found} ({check.remedy})" for check in broken)
        raise UserInputError(f"no run can work here: {listed}")
    if not as_json:
        typer.echo("\nready: runs can work here; `growkit init DIR` writes settings for your data")


def examine(root: str, seconds: float = SECONDS) -> Iterator[Check]:
    """The checks in the order they are shown, each as soon as it is known; torch is imported by another process."""
    yield from own_versions()
    outcomes: dict[str, Outcome] = {}
    extras = [package for extra in EXTRAS for package in extra.packages]
    modules = [package.module for package in (*PACKAGES, *extras) if package.module is not None]
    told = probe(["torch", COMPUTE, *modules[1:]], seconds)
    for package in PACKAGES:
        while package.module is not None and package.module not in outcomes:
            outcome = next(told)
            outcomes[outcome.name] = outcome
        yield check_package(package, outcomes)
    outcomes |= {outcome.name: outcome for outcome in told}
    yield from compute_checks(outcomes[COMPUTE])
    yield check_compiler()
    yield from place_checks(root)
    yield from data_checks()
    for extra in EXTRAS:
        yield check_extra(extra, outcomes)


def _show(check: Check, *, first: bool) -> None:
    if first:
        typer.echo(f"\n{check.group}")
    state = typer.style(f"{check.state:<8}", fg=COLOURS[check.state])
    remedy = f"; remedy: {check.remedy}" if check.remedy else ""
    typer.echo(f"  {state} {check.name:<13} {check.found}{remedy}")
