"""Models of torchvision and timm by name, with random weights: nothing is downloaded."""

from __future__ import annotations

import difflib
import importlib
import inspect
import warnings
from collections.abc import Mapping
from typing import Any

from torch import nn

from growkit.errors import ModelError

__all__ = ["LIBRARIES", "of_library"]

LIBRARIES = ("torchvision", "timm")


def of_library(library: str, name: str, args: Mapping[str, Any]) -> nn.Module:
    """A model of `library` with random weights.

    Raises:
        ModelError: the library is not installed, has no such model, or cannot build it with these arguments.
    """
    try:
        module = importlib.import_module("torchvision.models" if library == "torchvision" else "timm")
    except ImportError as error:
        raise ModelError(f"{library}:{name} needs {library}: pip install {library}") from error
    known = list(module.list_models())
    if name.split(".")[0] not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(f'{library}:{one}' for one in near)}?" if near else "see its list_models()"
        raise ModelError(f"{library} has no model {name!r}; {hint}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of initial values that will change some day
            if library == "timm":
                return module.create_model(name, pretrained=False, **args)
            backbone = "weights_backbone" in inspect.signature(module.get_model_builder(name)).parameters
            random = {"weights": None, **({"weights_backbone": None} if backbone else {})}
            return module.get_model(name, **random, **args)
    except Exception as error:  # the builder sees the user's arguments and may raise anything
        raise ModelError(f"{library}:{name} cannot be built: {type(error).__name__}: {error}") from error
