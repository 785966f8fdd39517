"""What a result depends on beside its settings: versions, processor, threads."""

from __future__ import annotations

import os
import platform
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_environment", "total_memory"]

ENVIRONMENT_VERSION = 1
PACKAGES = ("growkit", "torch", "torchvision", "numpy", "scikit-learn", "pydantic", "safetensors")

CONTROL_GROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")  # version 2, version 1


def describe_environment() -> dict[str, Any]:
    """The record kept in env.json (docs/formats.md): no names of users, hosts or folders but those in the command."""
    return {
        "version": ENVIRONMENT_VERSION,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        # torch says itself which build it is ("+cpu", "+cu130"); its packaging may not
        "packages": {**{name: _version(name) for name in PACKAGES}, "torch": str(torch.__version__)},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "command": [*(Path(program).name for program in sys.argv[:1]), *sys.argv[1:]],
    }


def total_memory() -> int | None:
    """Bytes of memory that this process may use: of the machine or its control group; None where neither tells."""
    limits = []
    with suppress(ValueError, OSError, AttributeError):
        limits.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for file in CONTROL_GROUPS:
        with suppress(ValueError, OSError):  # "max" is no number
            limits.append(int(Path(file).read_text()))
    return min((limit for limit in limits if limit > 0), default=None)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )
