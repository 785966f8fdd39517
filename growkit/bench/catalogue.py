"""The models of a benchmark by name, each built with random weights and an example batch of two."""

from __future__ import annotations

import copy
import hashlib
import importlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from growkit.errors import ModelError, UserInputError
from growkit.graph.tracing import Example

__all__ = ["Entry", "build", "entries_of", "example_of", "parse_entry", "source_hash"]

BATCH = 2
SIZES = (96, 128, 160, 192, 224, 256, 288, 299, 320, 384)  # image sizes that are tried, in this order
MOST_PARAMS = 60_000_000  # of a timm model, so that it fits the time

_ENTRY = re.compile(
    r"(?P<spec>(torchvision|timm):[\w.]+|[A-Za-z_][\w.]*:[A-Za-z_][\w.]*)(\s+(?P<shape>\d+([x,]\d+)*))?"
)


@dataclass(frozen=True)
class Entry:
    """One model: `torchvision:NAME`, `timm:NAME` or `package.module:callable`, and the shape of its example if given.

    A callable returns a module, or a module and its example (a tensor, a tuple or a dictionary of arguments).
    """

    spec: str
    shape: tuple[int, ...] | None = None

    def __str__(self) -> str:
        return self.spec if self.shape is None else f"{self.spec} {'x'.join(map(str, self.shape))}"


def parse_entry(text: str) -> Entry | None:
    """Read `SPEC [SHAPE]`, the shape as 2x3x32x32; None where it is not of that form."""
    match = _ENTRY.fullmatch(text.strip())
    if match is None:
        return None
    shape = match["shape"]
    return Entry(match["spec"], tuple(map(int, re.split("[x,]", shape))) if shape else None)


def entries_of(name: str, folder: Path) -> list[Entry]:
    """The models of a set.

    Args:
        name: "torchvision" (all its classifiers), "timm" (the smallest of every family) or a file, one entry a line.
        folder: where the choice among timm's models is kept for the next time.

    Raises:
        UserInputError: the file cannot be read, or a line is no entry.
    """
    if name == "torchvision":
        import torchvision

        return [Entry(f"torchvision:{one}") for one in torchvision.models.list_models(module=torchvision.models)]
    if name == "timm":
        return [Entry(f"timm:{one}") for one in _smallest_of_timm(folder / "timm_choice.json")]
    return _read_file(Path(name))


def _read_file(path: Path) -> list[Entry]:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserInputError(
            f"--set must be torchvision, timm or a readable file of models, got {str(path)!r} "
            f"({getattr(error, 'strerror', None) or 'it is not a text file'})"
        ) from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        entry = parse_entry(line)
        if entry is None:
            raise UserInputError(
                f"{path}:{number}: a line must be package.module:callable, torchvision:NAME or timm:NAME, then perhaps "
                f"a shape such as 2x3x32x32, got {line.strip()!r}"
            )
        found.append(entry)
    if not found:
        raise UserInputError(f"{path} must name at least one model, got none")
    return list(dict.fromkeys(found))


def _smallest_of_timm(cache: Path) -> list[str]:
    import timm

    if cache.exists():
        choice = json.loads(cache.read_text())
        if choice.get("timm") == timm.__version__:
            return choice["models"]
    families: dict[str, list[str]] = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            families.setdefault(f"{module}/{_first_word(name)}", []).append(name)
    families = {key: names for key, names in families.items() if not key.endswith("/test")}
    smallest = {key: min((_count(name), name) for name in names) for key, names in sorted(families.items())}
    choice = {
        "timm": timm.__version__,
        "rule": f"a family is a module of timm with the letters a name begins with (tf_ and legacy_ left out); of each "
        f"the model with the fewest parameters, if fewer than {MOST_PARAMS:,}; timm's own test models left out",
        "models": [name for params, name in smallest.values() if params < MOST_PARAMS],
        "too_large": {name: params for params, name in smallest.values() if params >= MOST_PARAMS},
    }
    cache.parent.mkdir(parents=True, exist_ok=True)
    cache.write_text(json.dumps(choice, indent=1) + "\n")
    return choice["models"]


def _first_word(name: str) -> str:
    match = re.match("[a-z]+", name.removeprefix("tf_").removeprefix("legacy_"))
    return match[0] if match else name


def _count(name: str) -> int:
    import timm

    with torch.device("meta"):
        return sum(parameter.numel() for parameter in timm.create_model(name).parameters())


def build(entry: Entry) -> tuple[nn.Module, Example]:
    """The model with random weights (seed 0), and an example batch.

    Images of torchvision and timm models are as small as the model takes in train and in eval mode.

    Raises:
        ModelError: a callable gave something else, or no example and no shape is known.
    """
    torch.manual_seed(0)
    made = _maker(entry.spec)()
    model, example = made if isinstance(made, tuple) else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{entry.spec} must return a torch.nn.Module, got {type(model).__name__}")
    if entry.shape is not None:
        return model, torch.randn(entry.shape)
    if example is None:
        example = _image(entry.spec, model)
    return model, example


def example_of(example: Example) -> str:
    """The shapes of an example, for people."""
    tensors = (
        [example] if isinstance(example, Tensor) else list(example.values() if isinstance(example, dict) else example)
    )
    return ", ".join("x".join(map(str, one.shape)) if isinstance(one, Tensor) else repr(one) for one in tensors)


def _maker(spec: str) -> Callable[[], Any]:
    source, _, name = spec.partition(":")
    if source == "torchvision":
        import torchvision

        return lambda: torchvision.models.get_model(name, weights=None)
    if source == "timm":
        import timm

        return lambda: timm.create_model(name, pretrained=False)
    return attrgetter(name)(importlib.import_module(source))


def _image(spec: str, model: nn.Module) -> Tensor:
    if not spec.startswith(("torchvision:", "timm:")):
        raise ModelError(
            f"{spec} must come with an example: write a shape behind it, such as 2x3x32x32, or return (model, example)"
        )
    settings = getattr(model, "default_cfg", {})
    channels, *default = settings.get("input_size") or (3, *[_crop(spec)] * 2)
    if not settings.get("fixed_input_size", False):
        default = next(([size, size] for size in SIZES if size < default[0] and _takes(model, channels, size)), default)
    return torch.randn(BATCH, channels, *default)


def _crop(spec: str) -> int:
    """The image size that torchvision's weights of a model were made for."""
    source, _, name = spec.partition(":")
    if source != "torchvision":
        return 224
    import torchvision

    weights = next(iter(torchvision.models.get_model_weights(name)))
    return weights.transforms.keywords["crop_size"]


def _takes(model: nn.Module, channels: int, size: int) -> bool:
    """Whether the forward runs in both modes on images of this size; shapes only, nothing is computed."""
    try:
        shadow = copy.deepcopy(model).to("meta")
        with torch.no_grad():
            for training in (True, False):
                shadow.train(training)(torch.empty(BATCH, channels, size, size, device="meta"))
    except Exception:  # a model may refuse a size in any way
        return False
    return True


def source_hash(spec: str) -> str:
    """A hash of the file that defines a callable, so that a changed model is measured again; "" for the others."""
    module = spec.partition(":")[0]
    if module in ("torchvision", "timm"):
        return ""
    try:
        found = find_spec(module)
        return hashlib.sha256(Path(str(found and found.origin)).read_bytes()).hexdigest()[:12]
    except (ImportError, OSError, ValueError):
        return ""  # the measurement will say what is wrong with it
