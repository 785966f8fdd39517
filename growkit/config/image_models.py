"""Settings of the seed models for images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from growkit.config.model_base import ModelSettings, Norm, Share

__all__ = [
    "DENSENETS",
    "PUBLISHED_VITS",
    "DensenetSettings",
    "MobilenetSettings",
    "ResnetSettings",
    "VggSettings",
    "VitSettings",
    "WrnSettings",
]

Stem = Literal["cifar", "imagenet"]


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

    depth: 6n + 4. base: channels of the first group, whose double and fourfold the others have (16: as published).
    width: multiplies them. block_width: narrows only the first convolution of each block, as GradMax does (0.25: the
    published seed). norm: what stands between the two convolutions of a block.
    """

    name: Literal["wrn"] = "wrn"
    depth: Annotated[int, AfterValidator(_is_6n_plus_4)] = 16
    base: Annotated[int, Field(ge=1)] = 16
    width: Annotated[int, Field(ge=1)] = 1
    block_width: Share = 1.0
    norm: Norm = "none"

    def full(self) -> WrnSettings:
        """The same network with its blocks at full width."""
        return self.model_copy(update={"block_width": 1.0})


THREE_STAGES, FOUR_STAGES = (20, 32, 44, 56, 110), (18, 34, 50, 101, 152)


def _is_resnet(depth: int) -> int:
    if depth not in THREE_STAGES + FOUR_STAGES:
        known = ", ".join(map(str, (*THREE_STAGES, *FOUR_STAGES)))
        raise ValueError(f"must be one of {known}, got {depth}")
    return depth


class ResnetSettings(ModelSettings):
    """Residual network (He, Zhang, Ren and Sun, 2016): BatchNorm behind every convolution, ReLU behind the addition.

    depth: 20, 32, 44, 56 and 110 have the three stages of the CIFAR experiments (16/32/64); 18, 34, 50, 101 and 152 the
    four of ImageNet (64/128/256/512), from 50 on in bottlenecks. stem: cifar is one 3x3 convolution; imagenet a 7x7
    one of stride 2 and a pooling. width: scales every hidden convolution. block_width: narrows only those within
    blocks, and leaves the residual stream. shortcut: where a stage begins, pad takes every second pixel and fills
    channels with zeros, conv is a 1x1 convolution; null is as published: pad for three stages, conv for four.
    """

    name: Literal["resnet"] = "resnet"
    depth: Annotated[int, AfterValidator(_is_resnet)] = 20
    stem: Stem = "cifar"
    width: Share = 1.0
    block_width: Share = 1.0
    shortcut: Literal["pad", "conv"] | None = None

    @model_validator(mode="after")
    def _fit(self) -> ResnetSettings:
        if self.depth in THREE_STAGES and self.stem == "imagenet":
            raise ValueError(f"depth {self.depth} goes with stem: cifar; stem imagenet takes 18, 34, 50, 101 or 152")
        if self.depth in FOUR_STAGES and self.shortcut == "pad":
            raise ValueError(f"shortcut: pad goes with the depths {THREE_STAGES}, got depth {self.depth}; use conv")
        return self

    def full(self) -> ResnetSettings:
        """The same network at width 1, its blocks too."""
        return self.model_copy(update={"width": 1.0, "block_width": 1.0})


class MobilenetSettings(ModelSettings):
    """MobileNet-v1 (Howard et al., 2017) as in the GradMax experiments: 13 depthwise-separable blocks.

    Strides lie on the pointwise convolutions. stem: its first convolution has stride 1 for cifar, 2 for imagenet.
    width: scales every convolution; 0.25 is the published seed.
    """

    name: Literal["mobilenet"] = "mobilenet"
    stem: Stem = "cifar"
    width: Share = 1.0

    def full(self) -> MobilenetSettings:
        """The same network at width 1."""
        return self.model_copy(update={"width": 1.0})


DENSENETS: dict[int, tuple[int, ...]] = {121: (6, 12, 24, 16), 169: (6, 12, 32, 32), 201: (6, 12, 48, 32)}


def _is_densenet(depth: int) -> int:
    if depth not in DENSENETS and (depth < 10 or (depth - 4) % 6):
        raise ValueError(f"must be 121, 169, 201, or 6n + 4 with n >= 1 (40, 100, 190, 250, ...), got {depth}")
    return depth


class DensenetSettings(ModelSettings):
    """DenseNet-BC (Huang, Liu, van der Maaten and Weinberger, 2017): bottlenecks, compression by half.

    depth: 6n + 4 has three blocks of n layers, as on CIFAR (100 is the published one); 121, 169 and 201 four, as on
    ImageNet. growth_rate: channels that each layer adds; null is as published: 12 with three blocks, 32 with four.
    stem: cifar is one 3x3 convolution; imagenet a 7x7 one of stride 2 and a pooling. width: scales the growth rate,
    and with it all convolutions. bottleneck_width: narrows only the 1x1 convolutions, 4 growth rates wide.
    """

    name: Literal["densenet"] = "densenet"
    depth: Annotated[int, AfterValidator(_is_densenet)] = 100
    growth_rate: Annotated[int, Field(ge=1)] | None = None
    stem: Stem = "cifar"
    width: Share = 1.0
    bottleneck_width: Share = 1.0

    def full(self) -> DensenetSettings:
        """The same network at width 1, its bottlenecks too."""
        return self.model_copy(update={"width": 1.0, "bottleneck_width": 1.0})


PUBLISHED_VITS: dict[str, tuple[int, int, int]] = {  # size of the stream, depth, heads
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
}


class VitSettings(ModelSettings):
    """Vision transformer (Dosovitskiy et al., 2021) with a class token, learnt positions and pre-norm.

    size: tiny, small (Touvron et al., 2021), base or large. patch: side of a patch; the image's sides must be
    multiples. depth: blocks; null is that of the size. width: scales the size of heads, and so the residual stream, and
    the MLPs. mlp_width: narrows only the hidden layer of the MLPs. dropout: behind the positions and each sublayer.
    """

    name: Literal["vit"] = "vit"
    size: Literal["tiny", "small", "base", "large"] = "tiny"
    patch: Annotated[int, Field(ge=1)] = 4
    depth: Annotated[int, Field(ge=1)] | None = None
    width: Share = 1.0
    mlp_width: Share = 1.0
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0

    def full(self) -> VitSettings:
        """The same network at width 1, its MLPs too."""
        return self.model_copy(update={"width": 1.0, "mlp_width": 1.0})
