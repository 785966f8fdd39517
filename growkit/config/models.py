"""Settings of the seed models."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, JsonValue, Tag, model_validator

from growkit.config.base import BY_NAME_OR_PATH, CallablePath, named
from growkit.config.image_models import (
    DENSENETS,
    PUBLISHED_VITS,
    DensenetSettings,
    MobilenetSettings,
    ResnetSettings,
    VggSettings,
    VitSettings,
    WrnSettings,
)
from growkit.config.model_base import Activation, ModelSettings, Norm, Width
from growkit.config.sequence_models import GptSettings, LstmSettings, Seq2seqSettings

__all__ = [
    "DENSENETS",
    "PUBLISHED_VITS",
    "Activation",
    "AnyModel",
    "CallableModelSettings",
    "DensenetSettings",
    "GptSettings",
    "LiveModelSettings",
    "LstmSettings",
    "MlpSettings",
    "MobilenetSettings",
    "ModelSettings",
    "Norm",
    "ResnetSettings",
    "Seq2seqSettings",
    "VggSettings",
    "VitSettings",
    "WrnSettings",
]


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


class CallableModelSettings(ModelSettings):
    """Any callable `package.module:callable` that returns an nn.Module; `torchvision:NAME` and `timm:NAME` too.

    args: the keyword arguments it is called with; models of the two libraries also get num_classes from the data.
    weights: a state dict to begin with, a file in safetensors or saved by torch; nothing is downloaded. weights_except:
    patterns of names in it that keep their initial values, such as those of a head for other classes.
    """

    name: CallablePath
    args: dict[str, JsonValue] = {}
    weights: str | None = None
    weights_except: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _leave_out_of_a_file(self) -> CallableModelSettings:
        if self.weights_except and self.weights is None:
            raise ValueError(f"weights_except goes with weights, which is null, got {list(self.weights_except)}")
        return self


class LiveModelSettings(ModelSettings):
    """A module handed over in Python, to `growkit.grow`; a file can only record its class.

    type: name of the class.
    """

    name: Literal["live"] = "live"
    type: str = "Module"


AnyModel = Annotated[
    Annotated[MlpSettings, Tag("mlp")]
    | Annotated[VggSettings, Tag("vgg")]
    | Annotated[WrnSettings, Tag("wrn")]
    | Annotated[ResnetSettings, Tag("resnet")]
    | Annotated[MobilenetSettings, Tag("mobilenet")]
    | Annotated[DensenetSettings, Tag("densenet")]
    | Annotated[VitSettings, Tag("vit")]
    | Annotated[LstmSettings, Tag("lstm")]
    | Annotated[GptSettings, Tag("gpt")]
    | Annotated[Seq2seqSettings, Tag("seq2seq")]
    | Annotated[LiveModelSettings, Tag("live")]
    | Annotated[CallableModelSettings, Tag("callable")],
    BY_NAME_OR_PATH,
    named("wrn"),
]
