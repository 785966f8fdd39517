"""What a result depends on beside its settings: versions, processor, threads."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

__all__ = ["describe_environment"]

ENVIRONMENT_VERSION = 1
PACKAGES = ("growkit", "torch", "torchvision", "numpy", "scikit-learn", "pydantic", "safetensors")


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
