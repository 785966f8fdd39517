"""MobileNet-v1: depthwise and pointwise convolutions in turn."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from growkit.config.models import MobilenetSettings
from growkit.models.activation import ReLU
from growkit.models.conv import conv3x3, init_convolutions, num_channels, scaled

__all__ = ["MobileNet"]

STEM = 32
BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *((512, 1),) * 5, (1024, 2), (1024, 1))


class MobileNet(nn.Module):
    """MobileNet-v1 (Howard et al., "MobileNets", 2017): 13 depthwise-separable blocks behind a 3x3 convolution.

    The strides lie on the pointwise convolutions, as in the experiments of GradMax (Evci et al., 2022), so that the
    depthwise ones keep the image's size.

    Args:
        settings: the share of the published widths, and the stem.
        input_shape: (C, H, W).
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the inputs are no images.
    """

    def __init__(self, settings: MobilenetSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        width = scaled(STEM, settings.width)
        stem = conv3x3(num_channels(settings.name, input_shape), width, 2 if settings.stem == "imagenet" else 1)
        self.stem = nn.Sequential(OrderedDict(conv=stem, norm=nn.BatchNorm2d(width), activation=ReLU()))
        self.blocks = nn.Sequential()
        for full, stride in BLOCKS:
            fan_in, width = width, scaled(full, settings.width)
            self.blocks.append(_block(fan_in, width, stride))
        self.head = nn.Linear(width, num_outputs)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        return self.head(self.blocks(self.stem(x)).mean(dim=(2, 3)))


def _block(fan_in: int, fan_out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            depthwise=nn.Conv2d(fan_in, fan_in, 3, padding=1, groups=fan_in, bias=False),
            norm1=nn.BatchNorm2d(fan_in),
            activation1=ReLU(),
            pointwise=nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False),
            norm2=nn.BatchNorm2d(fan_out),
            activation2=ReLU(),
        )
    )
