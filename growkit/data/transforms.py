"""Transforms of torchvision.transforms.v2 by name, drawn for each training image by itself."""

from __future__ import annotations

import difflib
import enum
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from growkit.config.data import ImageSettings
from growkit.data.files import num_workers
from growkit.data.records import Data
from growkit.errors import DataError
from growkit.rng import isolated, seed_cpu

__all__ = ["Transforms", "with_transforms"]


def with_transforms(data: Data, settings: ImageSettings) -> Data:
    """The data with the transforms that its settings name, tried on its first training image.

    Raises:
        DataError: inputs are no images, or a transform is unknown, cannot be built or does not keep the image's form.
    """
    data = replace(data, workers=num_workers(settings.workers))
    if not settings.transforms:
        return data
    if data.train.inputs.dtype != torch.uint8 or data.train.inputs.dim() != 4:
        raise DataError(
            f"data {data.name!r}: data.transforms are for uint8 images [N, C, H, W], got {data.train.inputs.dtype} "
            f"{list(data.train.inputs.shape)}; remove them"
        )
    transforms = Transforms(settings.transforms)
    with isolated():
        transforms.apply(data.train.inputs[:1][0].cpu(), seed=0)
    return replace(data, transforms=transforms)


class Transforms:
    """Transforms in their order; what they draw follows from the seed of each image alone.

    Args:
        settings: of each the name, among the classes of torchvision.transforms.v2, and the arguments. One that is made
            of others takes them as a list of the same form; a choice such as an interpolation is given by its value.

    Raises:
        DataError: a name is unknown, or arguments are wrong.
    """

    def __init__(self, settings: Sequence[Mapping[str, Any]]):
        self._named = [
            (f"data.transforms[{place}] ({one['name']})", _build(f"data.transforms[{place}]", one))
            for place, one in enumerate(settings)
        ]

    def apply(self, image: Tensor, seed: int) -> Tensor:
        """Transform one image, uint8 [C, H, W]; this seeds the global random generators, which the caller isolates.

        Raises:
            DataError: a transform fails, or gives another shape or dtype.
        """
        result: Any = image
        seed_cpu(seed)
        for where, transform in self._named:
            try:
                result = transform(result)
            except Exception as error:  # torchvision's own checks raise many kinds
                raise DataError(f"{where} failed: {type(error).__name__}: {str(error)[:300]}") from error
        if not isinstance(result, Tensor) or result.shape != image.shape or result.dtype != image.dtype:
            got = f"{result.dtype} {list(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
            raise DataError(
                f"data.transforms must give images like those for evaluation, {image.dtype} {list(image.shape)}, got "
                f"{got}; data.size sets the size of an image folder"
            )
        return result.as_subclass(Tensor)


def _build(where: str, settings: Mapping[str, Any]) -> Callable[[Any], Any]:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise DataError(f"data.transforms need torchvision, run `pip install torchvision`: {error}") from error

    name = settings["name"]
    known = [one for one, kind in vars(v2).items() if inspect.isclass(kind) and issubclass(kind, v2.Transform)]
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise DataError(f"{where}.name: torchvision.transforms.v2 has no transform {name!r}{hint}")
    make = getattr(v2, name)
    defaults = {key: parameter.default for key, parameter in inspect.signature(make).parameters.items()}
    given = {
        key: _argument(f"{where}.{key}", value, defaults.get(key)) for key, value in settings.items() if key != "name"
    }
    try:
        return make(**given)
    except Exception as error:  # the constructor sees the user's arguments and may raise anything
        raise DataError(f"{where} ({name}): {type(error).__name__}: {error}") from error


def _argument(where: str, value: Any, default: Any) -> Any:
    """What YAML cannot hold: transforms within a transform, and members of an enumeration."""
    if isinstance(value, list) and value and all(isinstance(one, dict) and "name" in one for one in value):
        return [_build(f"{where}[{place}]", one) for place, one in enumerate(value)]
    if not isinstance(default, enum.Enum):
        return value
    choices = [one.value for one in type(default)]
    if value not in choices:
        raise DataError(f"{where} must be one of {', '.join(map(str, choices))}, got {value!r}")
    return type(default)(value)
