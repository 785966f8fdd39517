"""A process that imports what may be broken, and says by lines of JSON how that went.

An import can raise anything, hang, or end the process; here it takes nobody along. A line holds the fields of an
`Outcome`.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["COMPUTE", "Outcome", "main", "probe"]

COMPUTE = "compute"  # asked for like a module: what torch finds here


@dataclass(frozen=True)
class Outcome:
    """How an import went.

    Attributes:
        name: of the module.
        error: why it failed; None where it did not.
        version: what the module says of itself; "" where it says nothing.
        facts: of `COMPUTE`, the devices and what a run would choose.
    """

    name: str
    error: str | None = None
    version: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def probe(modules: Sequence[str], seconds: float) -> Iterator[Outcome]:
    """Import modules in a process of their own, in their order; it sees the paths and the bars that this one has.

    One that ends the process is named, and the rest go on in another.

    Args:
        modules: their names; `COMPUTE` stands for what torch finds.
        seconds: wall time for all of them.
    """
    deadline = time.monotonic() + seconds
    waiting = list(modules)
    while waiting:
        overdue, code = yield from _in_child(waiting, deadline - time.monotonic())
        if overdue:
            culprit, *rest = waiting
            yield Outcome(culprit, f"took more than {seconds:g} s")
            yield from (Outcome(name, f"was not tried, for importing {culprit} took too long") for name in rest)
            return
        if waiting:
            yield Outcome(waiting.pop(0), f"ended the process ({_ending(code)})")


def _in_child(waiting: list[str], seconds: float) -> Generator[Outcome, None, tuple[bool, int]]:
    """One process; those that have an outcome leave `waiting`. Returns whether it was killed for time, and its end."""
    barred = [name for name, module in sys.modules.items() if module is None]
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; sys.modules.update(dict.fromkeys({barred!r})); "
        f"from growkit.doctor.probe import main; main({waiting!r})"
    )
    quiet = subprocess.DEVNULL
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", program], stdin=quiet, stdout=subprocess.PIPE, stderr=quiet, text=True
    )
    overdue = threading.Event()
    timer = threading.Timer(max(0.0, seconds), lambda: (overdue.set(), child.kill()))
    timer.start()
    assert child.stdout is not None
    try:
        for line in child.stdout:
            outcome = Outcome(**json.loads(line))
            waiting.remove(outcome.name)
            yield outcome
        return overdue.is_set(), child.wait()
    finally:
        timer.cancel()
        child.kill()
        child.wait()
        child.stdout.close()


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def main(modules: Sequence[str]) -> None:
    """Import the modules and tell; what they print themselves goes to standard error."""
    with os.fdopen(os.dup(1), "w") as told:
        os.dup2(2, 1)
        for name in modules:
            told.write(json.dumps(asdict(_outcome(name))) + "\n")
            told.flush()


def _outcome(name: str) -> Outcome:
    try:
        if name == COMPUTE:
            return Outcome(name, facts=_compute())
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # whatever a broken package thinks of
        lines = str(error).strip().splitlines()
        return Outcome(name, f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"[:300])
    return Outcome(name, version=str(getattr(module, "__version__", "")))


def _compute() -> dict[str, Any]:
    """What a run would compute on, and with what."""
    import torch

    from growkit.device import choose_compute
    from growkit.environment import describe_environment

    with warnings.catch_warnings(record=True) as complaints:  # such as of a driver that is too old
        warnings.simplefilter("always")
        policy = choose_compute()
    here = describe_environment()
    return {
        **policy.to_json(),
        "processor": here["processor"],
        "threads": here["threads"],
        "cuda": here["cuda"],
        "cuda_build": torch.version.cuda or torch.version.hip,
        "complaint": " ".join(str(complaints[0].message).split())[:300] if complaints else None,
    }
