"""What a run computes with: devices, precision, threads and the compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from growkit.doctor.checks import Check
from growkit.doctor.probe import Outcome

__all__ = ["check_compiler", "compute_checks"]

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
COMPILER_SECONDS = 20
PROGRAM = "#include <Python.h>\n#include <vector>\nint growkit() { return (int)std::vector<int>(3).size(); }\n"


def compute_checks(outcome: Outcome) -> list[Check]:
    """Device, precision and threads, as torch sees them."""
    if outcome.error is not None:
        return [Check("compute", "device", "problem", f"unknown: {outcome.error}", "mend torch first")]
    facts = outcome.facts
    layout = " with channels-last images" if facts["channels_last"] else ""
    precision = f"train.precision: auto takes {facts['precision']}{layout}, for {facts['reason']}"
    return [_device(facts), Check("compute", "precision", "ok", precision), _threads(facts["threads"])]


def _device(facts: dict[str, Any]) -> Check:
    found = f"{facts['device']}: {', '.join(facts['cuda']) or facts['processor'] or 'unknown processor'}"
    if facts["device"] == "cuda":
        return Check("compute", "device", "ok", found)
    if facts["cuda_build"] is None and NVIDIA_DRIVER.exists():
        remedy = "install a torch with CUDA, see https://pytorch.org/get-started"
        return Check("compute", "device", "problem", f"{found}; an NVIDIA driver is there, torch has no CUDA", remedy)
    if facts["complaint"] is not None:
        remedy = "mend the driver, or set train.device: cpu"
        return Check("compute", "device", "problem", f"{found}; {facts['complaint']}", remedy)
    return Check("compute", "device", "ok", f"{found}; no CUDA device")


def _threads(threads: int) -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS")
    found = f"{threads} for {cores} processor{'s' if cores > 1 else ''}"
    found += f", as OMP_NUM_THREADS={asked} says" if asked else ""
    if threads > cores:
        return Check("compute", "threads", "problem", found, f"export OMP_NUM_THREADS={cores}")
    return Check("compute", "threads", "ok", found)


def check_compiler() -> Check:
    """Whether a small library can be compiled the way torch.compile does it on a CPU."""
    name = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    use = "for compile: true of adabound"
    command = shutil.which(name.split()[0])
    if command is None:
        return Check("compute", "compiler", "missing", f"no {name}; {use}", "install g++, or name a compiler in CXX")
    complaint = _complaint(name)
    if complaint is None:
        return Check("compute", "compiler", "ok", f"{command}: {use}")
    lines = complaint.strip().splitlines()
    reason = next((line for line in lines if "error" in line), lines[0] if lines else "no reason given")[:200]
    remedy = "install Python's headers, such as python3-dev" if "Python.h" in complaint else f"reinstall {name}"
    return Check("compute", "compiler", "problem", f"{name} compiles no library: {reason}; {use}", remedy)


def _complaint(name: str) -> str | None:
    """What a compiler says against a small library; None if it makes one."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "trial.cpp")
        source.write_text(PROGRAM)
        include = f"-I{sysconfig.get_path('include')}"
        line = [*name.split(), "-shared", "-fPIC", include, str(source), "-o", f"{folder}/trial.so"]
        try:
            done = subprocess.run(line, capture_output=True, text=True, timeout=COMPILER_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return str(error)
    return done.stderr if done.returncode else None
