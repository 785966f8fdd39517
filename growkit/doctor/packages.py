"""The packages that growkit needs or can use: which are there, which work, what each is for."""

from __future__ import annotations

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata

import growkit
from growkit.doctor.checks import Check
from growkit.doctor.probe import Outcome

__all__ = ["EXTRAS", "PACKAGES", "Extra", "Package", "check_extra", "check_package", "own_versions"]

LEAST_TORCH = (2, 9)
BELOW = ("torch", "torchvision")  # that other packages import, and fail with


@dataclass(frozen=True)
class Package:
    """One distribution.

    Attributes:
        name: what pip calls it.
        module: what is imported to see whether it works; None to look for it only.
        use: what it serves.
        essential: whether every run needs it.
    """

    name: str
    module: str | None
    use: str
    essential: bool = False


PACKAGES = (
    Package("torch", "torch", "everything", essential=True),
    Package("numpy", "numpy", "data", essential=True),
    Package("networkx", "networkx", "graphs of models", essential=True),
    Package("safetensors", "safetensors.torch", "saved models", essential=True),
    Package("pydantic", "pydantic", "settings", essential=True),
    Package("pyyaml", "yaml", "settings", essential=True),
    Package("typer", "typer", "the command line", essential=True),
    Package("rich", "rich", "the terminal", essential=True),
    Package("tensorboard", "torch.utils.tensorboard", "curves in tb/; run.tensorboard: false goes without"),
    Package("scikit-learn", "sklearn.datasets", "data 'digits'"),
    Package("pillow", "PIL.Image", "data 'imagefolder'"),
    Package("torchvision", "torchvision", "data 'cifar10' and 'cifar100', models torchvision:NAME"),
    Package("matplotlib", None, "the picture of the ladder, pictures in TensorBoard"),
    Package("optuna", None, "tuning, which is not there yet"),
    Package("jinja2", None, "reports, which are not there yet"),
)


@dataclass(frozen=True)
class Extra:
    """What `pip install "growkit[NAME]"` brings."""

    name: str
    adds: str
    packages: tuple[Package, ...]


EXTRAS = (
    Extra("timm", "models timm:NAME", (Package("timm", "timm", "models timm:NAME"),)),
    Extra(
        "onnx",
        "ONNX and its runtime, which no command uses yet",
        (Package("onnx", None, "ONNX"), Package("onnxruntime", None, "ONNX")),
    ),
    Extra("postgres", "PostgreSQL, which no command uses yet", (Package("psycopg", None, "PostgreSQL"),)),
    Extra("dashboard", "Optuna's dashboard, which no command uses yet", (Package("optuna-dashboard", None, "Optuna"),)),
)


def own_versions() -> list[Check]:
    """Those of growkit and of Python."""
    return [
        Check("versions", "growkit", "ok", growkit.__version__, essential=True),
        Check("versions", "python", "ok", platform.python_version(), essential=True),
    ]


def check_package(package: Package, outcomes: Mapping[str, Outcome]) -> Check:
    """How a package stands after its import was tried.

    Args:
        package: which one.
        outcomes: of the imports, by module.
    """
    version, outcome = _version(package.name), outcomes.get(package.module or "")
    error = None if outcome is None else outcome.error
    if version is None and (outcome is None or (error or "").startswith("ModuleNotFoundError")):
        return _check(package, "missing", f"not installed; for {package.use}", f"pip install {package.name}")
    known = outcome.version if outcome is not None and outcome.version else version or "version unknown"
    if error is None:
        return _check_version(package, known)
    below = [one for one in BELOW if one in outcomes and one != package.module]
    culprit = next((one for one in below if outcomes[one].error == error), None)
    if culprit is not None:
        return _check(package, "problem", f"{known}, not usable without {culprit}", f"mend {culprit} first")
    found = f"{known} does not work, its import: {error}; for {package.use}"
    return _check(package, "problem", found, _reinstall(package))


def check_extra(extra: Extra, outcomes: Mapping[str, Outcome]) -> Check:
    """How an extra stands: as its worst package."""
    checks = [check_package(package, outcomes) for package in extra.packages]
    wrong = [one for one in checks if one.state == "problem"]
    if wrong:
        return Check("extras", extra.name, "problem", f"{wrong[0].name} {wrong[0].found}", wrong[0].remedy)
    missing = [one.name for one in checks if one.state == "missing"]
    if missing:
        found = f"{' and '.join(missing)} not installed; adds {extra.adds}"
        return Check("extras", extra.name, "missing", found, f"pip install {' '.join(missing)}")
    versions = ", ".join(f"{one.name} {one.found}" for one in checks)
    return Check("extras", extra.name, "ok", f"{versions}: {extra.adds}")


def _check(package: Package, state: str, found: str, remedy: str | None = None) -> Check:
    return Check("versions", package.name, state, found, remedy, package.essential)  # type: ignore[arg-type]


def _check_version(package: Package, version: str) -> Check:
    numbers = tuple(map(int, re.findall(r"\d+", version)[:2]))
    if package.name == "torch" and numbers < LEAST_TORCH:
        least = ".".join(map(str, LEAST_TORCH))
        return _check(package, "problem", f"{version}, growkit needs {least}", f'pip install "torch>={least}"')
    return _check(package, "ok", version)


def _reinstall(package: Package) -> str:
    if package.name == "torchvision":
        return "pip install --upgrade torch torchvision, together: each torchvision is made for one torch"
    return f"pip install --force-reinstall {package.name}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except Exception:  # no such distribution, or one whose record is broken
        return None
