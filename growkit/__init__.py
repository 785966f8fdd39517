"""growkit grows neural networks: when, where and by how much to widen any PyTorch module.

Importing this package is cheap: torch is imported when a name that needs it is first used.
"""

from __future__ import annotations

import random
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from growkit.api import Grown, grow, verify_sites, widen
    from growkit.checkpoint import load
    from growkit.config import Config, load_config
    from growkit.errors import (
        ConfigError,
        DataError,
        GrowkitError,
        GrowthRefused,
        ModelError,
        SurgeryError,
        TrainingError,
        UserInputError,
    )
    from growkit.graph import DepthPlace, GrowthSite, Places, Refusal, Sites, find_places, find_sites, rule
    from growkit.pipeline import RunResult, run
    from growkit.surgery import deepen

__version__ = "0.1.0.dev0"

__all__ = [
    "Config",
    "ConfigError",
    "DataError",
    "DepthPlace",
    "GrowkitError",
    "Grown",
    "GrowthRefused",
    "GrowthSite",
    "ModelError",
    "Places",
    "Refusal",
    "RunResult",
    "Sites",
    "SurgeryError",
    "TrainingError",
    "UserInputError",
    "deepen",
    "find_places",
    "find_sites",
    "grow",
    "load",
    "load_config",
    "rule",
    "run",
    "verify_sites",
    "widen",
]

_HOMES = {
    "growkit.api": ("Grown", "grow", "verify_sites", "widen"),
    "growkit.checkpoint": ("load",),
    "growkit.config": ("Config", "load_config"),
    "growkit.errors": tuple(name for name in __all__ if name.endswith(("Error", "Refused"))),
    "growkit.graph": ("DepthPlace", "GrowthSite", "Places", "Refusal", "Sites", "find_places", "find_sites", "rule"),
    "growkit.pipeline": ("RunResult", "run"),
    "growkit.surgery": ("deepen",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'growkit' has no attribute {name!r}")
    state = random.getstate()
    try:
        return getattr(import_module(_HOME_OF[name]), name)
    finally:
        random.setstate(state)  # what is imported on the way, such as rich, draws from it


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
