"""One measurement in a process of its own: `python -m growkit.bench.worker TOOL ENTRY FILE SECONDS GIB`."""

from __future__ import annotations

import resource
import signal
import sys
import warnings
from pathlib import Path

from growkit.bench.progress import Progress

__all__ = ["main"]

GRACE = 15  # seconds that a worker outlives its limit if the process that should end it is gone


def main(tool: str, text: str, path: str, seconds: str, gib: str) -> None:
    """Measure one model and leave its row in the file `path`; a failure is a part of the row."""
    signal.alarm(int(float(seconds)) + GRACE)
    most = int(float(gib) * 2**30)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    warnings.simplefilter("ignore")
    progress = Progress(Path(path))
    try:
        _measure(tool, text, progress)
        progress.finish()
    except BaseException as error:  # the model's code may raise anything, SystemExit too
        progress.fail(error)


def _measure(tool: str, text: str, progress: Progress) -> None:
    with progress.stage("import"):
        import torch

        torch.set_num_threads(1)
        from growkit.bench.catalogue import parse_entry
        from growkit.bench.measure import measure
        from growkit.bench.peer import measure_peer
    entry = parse_entry(text)
    assert entry is not None, text
    {"growkit": measure, "torch-pruning": measure_peer}[tool](entry, progress)


if __name__ == "__main__":
    main(*sys.argv[1:])
