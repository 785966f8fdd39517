"""Weights of a seed model from a file of the user's: a state dict, in safetensors or saved by torch."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growkit.errors import ModelError

__all__ = ["load_weights"]

MOST_NAMED = 8


def load_weights(model: nn.Module, path: Path, left_out: Sequence[str] = ()) -> None:
    """Give a model, in place, the weights that a file holds.

    Args:
        model: of the architecture that the weights are of.
        path: a state dict: `*.safetensors`, or what torch.save wrote of nothing but tensors.
        left_out: patterns of names that keep their initial values, such as those of a head for other classes.

    Raises:
        ModelError: the file cannot be read, holds other things than tensors, or does not fit the model.
    """
    found, ours = _read(path), model.state_dict()
    idle = [pattern for pattern in left_out if not any(fnmatchcase(name, pattern) for name in {**ours, **found})]
    if idle:
        raise ModelError(f"model.weights_except must fit names of weights, but {idle[0]!r} fits none; remove it")
    state = {name: value for name, value in found.items() if not _fits(name, left_out)}
    wanted = {name: value for name, value in ours.items() if not _fits(name, left_out)}
    problems = [f"{name} is missing from the file" for name in wanted if name not in state]
    problems += [f"{name} is in the file only" for name in state if name not in wanted]
    problems += [
        f"{name} is {list(wanted[name].shape)} in the model and {list(state[name].shape)} in the file"
        for name in wanted
        if name in state and wanted[name].shape != state[name].shape
    ]
    if problems:
        more = f"; and {len(problems) - MOST_NAMED} more" if len(problems) > MOST_NAMED else ""
        raise ModelError(
            f"{path}: model.weights must be those of this model, but {'; '.join(problems[:MOST_NAMED])}{more}; "
            f"{_remedy(wanted, state)}"
        )
    for name, value in state.items():
        if not value.isfinite().all():
            raise ModelError(f"{path}: model.weights must be finite, but {name} holds NaN or infinity")
    model.load_state_dict(state, strict=False)


def _remedy(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> str:
    for wrapper, prefix in (("DataParallel", "module."), ("torch.compile", "_orig_mod.")):
        if all(prefix + name in state for name in wanted):
            return (
                f"{wrapper} put {prefix!r} before every name: save the state dict of the model inside, or "
                f"{{name.removeprefix({prefix!r}): value for name, value in state.items()}}"
            )
    return "model.weights_except: ['PATTERN', ...] leaves out what shall keep its initial values"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _read(path: Path) -> Mapping[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise ModelError(f"{path}: model.weights must name a file with a state dict, there is none")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the version of the file
            found: Any = (
                load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
            )
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        why = _first_line(error) or "it ends too early"
        raise ModelError(f"{path}: model.weights cannot be read: {why}") from error
    except Exception as error:  # torch's for a pickle that holds more than tensors is of a module growkit never imports
        raise ModelError(
            f"{path}: model.weights must be what torch.save wrote of tensors alone, for other objects may run code: "
            "nothing was run; save model.state_dict(), or take safetensors, whose files end on .safetensors"
        ) from error
    for key in ("state_dict", "model"):  # training scripts put it there
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path}: model.weights must be a state dict, names with tensors, got {type(found).__name__}")
    return found
