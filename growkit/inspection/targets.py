"""What a user can name to be inspected: an experiment, a model of the settings, a callable, torchvision or timm."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from growkit.callables import named
from growkit.config import Config
from growkit.config.models import CallableModelSettings, LiveModelSettings
from growkit.data import load_data
from growkit.errors import ModelError, UserInputError
from growkit.models import LIBRARIES, build_model
from growkit.rng import isolated
from growkit.surgery import Inputs, untouched

__all__ = ["Target", "example_of", "target_of"]

BATCH = 2
IMAGE = (3, 224, 224)
DTYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "bool")


@dataclass(frozen=True)
class Target:
    """A model to inspect.

    Attributes:
        name: what the user called it.
        model: on the CPU, with initial weights; where the name is that of a module instance, that very one.
        example: the positional arguments it is called with, batches of 2.
    """

    name: str
    model: nn.Module
    example: tuple[Tensor, ...]


def target_of(name: str, config: Config, shapes: Sequence[str] = (), *, data_given: bool = True) -> Target:
    """Build the model of a configuration, and an example it runs on.

    Args:
        name: what to call it.
        config: its model and data.
        shapes: of the inputs without the batch, such as "3x224x224" or "128:int64"; by default those of the data.
        data_given: whether the user chose the data; a callable's inputs are not guessed from data nobody named.

    Raises:
        UserInputError: the model cannot be built, or does not run on the example; the message says what to pass.
    """
    example = tuple(example_of(shape) for shape in shapes)
    settings = config.model
    with isolated(config.seed):
        if isinstance(settings, CallableModelSettings):
            library, _, member = settings.name.partition(":")
            known = library in LIBRARIES
            model = build_model(settings, (), 0) if known else _named(settings)
            if not example and known:
                example = (_batch(_image_size(library, member, model), torch.float32),)
            elif not example and data_given:
                example = (load_data(config.data).example(BATCH),)
        else:
            if isinstance(settings, LiveModelSettings):
                raise ModelError("model 'live' was handed over in Python; name the callable that builds it instead")
            data = load_data(config.data)
            example = example or (data.example(BATCH),)
            model = build_model(settings, tuple(example[0].shape[1:]), data.num_outputs)
    if not example:
        raise UserInputError(
            f"{name} needs an example input: pass --example with the shape of one sample, such as --example 3x224x224, "
            "or --example 128:int64 for token ids; once for each input"
        )
    _check(name, model, example)
    return Target(name, model, example)


def _named(settings: CallableModelSettings) -> nn.Module:
    """The model that a callable builds, or the module instance that stands under the name itself."""
    found = named("model", settings.name, ModelError)
    if not isinstance(found, nn.Module):
        return build_model(settings, (), 0)
    if settings.args or settings.weights:
        raise ModelError(
            f"model.args and model.weights must be for a callable, but {settings.name!r} is an instance of "
            f"{type(found).__name__} as it is; leave them out"
        )
    return found


def example_of(shape: str) -> Tensor:
    """A random batch of 2 samples of a shape such as "3x224x224" or "128:int64".

    Raises:
        UserInputError: the shape is malformed.
    """
    sizes, _, dtype = shape.partition(":")
    try:
        extents = tuple(int(size) for size in sizes.lower().replace("×", "x").split("x"))
    except ValueError:
        extents = ()
    dtype = dtype or "float32"
    if not extents or min(extents) < 1 or dtype not in DTYPES:
        raise UserInputError(
            f"--example must be sizes of 1 or more joined by x, such as 3x224x224, and optionally a type "
            f"({', '.join(DTYPES)}) as in 128:int64, got {shape!r}; leave out the batch"
        )
    return _batch(extents, getattr(torch, dtype))


def _batch(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    if dtype.is_floating_point:
        return torch.randn((BATCH, *shape), generator=generator).to(dtype)
    return torch.randint(0, 2, (BATCH, *shape), generator=generator).to(dtype)  # 0 and 1 are in every vocabulary


def _image_size(library: str, name: str, model: nn.Module) -> tuple[int, ...]:
    """The inputs a model was made for, as far as its library says so; else 3x224x224."""
    if library == "timm":
        return tuple(getattr(model, "pretrained_cfg", {}).get("input_size", IMAGE))
    try:
        weights = next(iter(importlib.import_module("torchvision.models").get_model_weights(name)))
        crop = weights.transforms().crop_size
    except Exception:  # models without weights, or whose transforms know no crop
        return IMAGE
    return (3, *(crop * 2 if len(crop) == 1 else crop))


def _check(name: str, model: nn.Module, example: tuple[Tensor, ...]) -> None:
    lazy = [key for key, p in [*model.named_parameters(), *model.named_buffers()] if is_lazy(p)]
    if lazy:
        raise ModelError(
            f"{name}: {lazy[0]!r} is lazy, so its widths are unknown before a first forward pass; run the model once "
            "before you return it, or give its layers their sizes"
        )
    shapes = ", ".join(f"{list(x.shape)} {str(x.dtype).removeprefix('torch.')}" for x in example)
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            Inputs(example).call(model)
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"{name} does not run on {shapes} (a batch of {BATCH}): {type(error).__name__}: {str(error)[:300]}; pass "
            "the shape of one sample with --example, such as 3x224x224 or 128:int64, once for each input"
        ) from error
