"""Settings of the seed models."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, JsonValue, Tag

from growkit.config.base import Settings, named

__all__ = ["AnyModel", "CallableModelSettings", "MlpSettings", "ModelSettings", "VggSettings", "WrnSettings"]

Width = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0.0, le=1.0)]
Activation = Literal["relu", "gelu", "silu", "tanh", "elu", "selu", "softplus", "sigmoid"]
Norm = Literal["none", "batchnorm"]


class ModelSettings(Settings):
    """What every seed model shares."""

    def full(self) -> ModelSettings | None:
        """The settings of the full-width network this seed is a narrowed form of; None where there is no such thing."""
        return None


class MlpSettings(ModelSettings):
    """A multi-layer perceptron.

    hidden: the widths of the hidden layers. activation: relu has slope 1 at 0 here (subgradient, as in Evci et al.
    2022), so that units born with zero fan-in can learn.
    """

    name: Literal["mlp"] = "mlp"
    hidden: Annotated[tuple[Width, ...], Field(strict=False, min_length=1)] = (64, 64)
    activation: Activation = "relu"
    norm: Norm = "none"
    bias: bool = True


class VggSettings(ModelSettings):
    """VGG-11 as in the GradMax experiments (Evci et al. 2022): strides instead of pooling, no dense head.

    Stride 2 opens each later stage. width: scales every hidden convolution (64, 128, 256, 256, 512 x 4); 0.25 is the
    published seed.
    """

    name: Literal["vgg"] = "vgg"
    width: Share = 1.0
    norm: Norm = "none"

    def full(self) -> VggSettings:
        """The same network at width 1."""
        return self.model_copy(update={"width": 1.0})


def _is_6n_plus_4(depth: int) -> int:
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"must be 6n + 4 with n >= 1 (10, 16, 22, 28, 40, ...), got {depth}")
    return depth


class WrnSettings(ModelSettings):
    """Wide residual network WRN-depth-width (Zagoruyko and Komodakis, 2016), pre-activation, 3 groups.

    depth: 6n + 4. width: multiplies 16/32/64. block_width: narrows only the first convolution of each block, as GradMax
    does (0.25: the published seed). norm: what stands between the two convolutions of a block.
    """

    name: Literal["wrn"] = "wrn"
    depth: Annotated[int, AfterValidator(_is_6n_plus_4)] = 16
    width: Annotated[int, Field(ge=1)] = 1
    block_width: Share = 1.0
    norm: Norm = "none"

    def full(self) -> WrnSettings:
        """The same network with its blocks at full width."""
        return self.model_copy(update={"block_width": 1.0})


CALLABLE_PATH = r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$"


def _is_callable_path(name: str) -> str:
    if not re.fullmatch(CALLABLE_PATH, name):
        raise ValueError(f"must be package.module:callable, got {name!r}")
    return name


class CallableModelSettings(ModelSettings):
    """Any callable `package.module:callable` that returns an nn.Module.

    args: the keyword arguments it is called with.
    """

    name: Annotated[str, AfterValidator(_is_callable_path), Field(json_schema_extra={"pattern": CALLABLE_PATH})]
    args: dict[str, JsonValue] = {}


class LiveModelSettings(ModelSettings):
    """A module handed over in Python, to `growkit.grow`; a file can only record its class.

    type: name of the class.
    """

    name: Literal["live"] = "live"
    type: str = "Module"


def _kind(value: Any) -> str | None:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "callable" if isinstance(name, str) and ":" in name else name


AnyModel = Annotated[
    Annotated[MlpSettings, Tag("mlp")]
    | Annotated[VggSettings, Tag("vgg")]
    | Annotated[WrnSettings, Tag("wrn")]
    | Annotated[LiveModelSettings, Tag("live")]
    | Annotated[CallableModelSettings, Tag("callable")],
    Discriminator(_kind),
    named("wrn"),
]
