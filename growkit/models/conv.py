"""What the convolutional seed models share."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from growkit.config.models import Norm
from growkit.errors import ModelError
from growkit.models.activation import ReLU

__all__ = ["conv3x3", "init_convolutions", "make_norm", "make_stem", "num_channels", "scaled"]


def num_channels(model: str, input_shape: tuple[int, ...]) -> int:
    """The channels C of images [C, H, W].

    Raises:
        ModelError: the inputs are no images.
    """
    if len(input_shape) != 3:
        raise ModelError(
            f"model {model!r} needs images [C, H, W], the data have inputs of shape {list(input_shape)}; "
            "model 'mlp' takes any shape"
        )
    return input_shape[0]


def scaled(width: int, share: float) -> int:
    """The share of a width, rounded, at least 1."""
    return max(1, round(width * share))


def conv3x3(fan_in: int, fan_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias that keeps the image's size at stride 1."""
    return nn.Conv2d(fan_in, fan_out, 3, stride=stride, padding=1, bias=False)


def make_stem(stem: str, channels: int, width: int) -> nn.Sequential:
    """The first layers: a 3x3 convolution for "cifar"; for "imagenet" one of 7x7 and a pooling, which quarter sides."""
    if stem == "cifar":
        return nn.Sequential(OrderedDict(conv=conv3x3(channels, width), norm=nn.BatchNorm2d(width), activation=ReLU()))
    conv = nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width), activation=ReLU(), pool=pool))


def make_norm(norm: Norm, width: int) -> nn.Module:
    """The optional normaliser of `width` channels; none is an Identity."""
    return nn.BatchNorm2d(width) if norm == "batchnorm" else nn.Identity()


def init_convolutions(model: nn.Module) -> None:
    """Draw every convolution of `model` in place from N(0, 2 / (fan-out * kernel size)) (He et al., 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
