"""DenseNet-BC: every layer reads all that came before in its block."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from growkit.config.models import DENSENETS, DensenetSettings
from growkit.models.activation import ReLU
from growkit.models.conv import conv3x3, init_convolutions, make_stem, num_channels, scaled

__all__ = ["DenseLayer", "DenseNet"]

BOTTLENECK = 4  # growth rates


class DenseLayer(nn.Module):
    """BatchNorm, ReLU, 1x1 convolution, BatchNorm, ReLU, 3x3 convolution; the result is put behind the input.

    Args:
        fan_in: channels of the input.
        inner: channels between the convolutions.
        added: channels that the layer adds.
    """

    def __init__(self, fan_in: int, inner: int, added: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(fan_in), nn.Conv2d(fan_in, inner, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(inner), conv3x3(inner, added)
        self.activation = ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan_in, H, W] -> [B, fan_in + added, H, W]."""
        inner = self.conv1(self.activation(self.norm1(x)))
        return torch.cat([x, self.conv2(self.activation(self.norm2(inner)))], dim=1)


class DenseNet(nn.Module):
    """DenseNet-BC (Huang, Liu, van der Maaten and Weinberger, "Densely connected convolutional networks", CVPR 2017).

    Args:
        settings: depth, growth rate, stem, and how narrow it starts.
        input_shape: (C, H, W).
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the inputs are no images.
    """

    def __init__(self, settings: DensenetSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        counts = DENSENETS.get(settings.depth) or ((settings.depth - 4) // 6,) * 3
        published = 32 if settings.depth in DENSENETS else 12
        added = scaled(settings.growth_rate or published, settings.width)
        inner = scaled(BOTTLENECK * added, settings.bottleneck_width)
        width = 2 * added
        channels = num_channels(settings.name, input_shape)
        # with nothing pooled, the norms of those that read it are enough
        self.stem = conv3x3(channels, width) if settings.stem == "cifar" else make_stem("imagenet", channels, width)
        self.blocks = nn.Sequential()
        for number, count in enumerate(counts):
            if number:
                self.blocks.append(_transition(width, width // 2))
                width //= 2
            self.blocks.append(nn.Sequential(*(DenseLayer(width + k * added, inner, added) for k in range(count))))
            width += count * added
        self.norm, self.activation = nn.BatchNorm2d(width), ReLU()
        self.head = nn.Linear(width, num_outputs)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        x = self.blocks(self.stem(x))
        return self.head(self.activation(self.norm(x)).mean(dim=(2, 3)))


def _transition(fan_in: int, fan_out: int) -> nn.Sequential:
    """Half the channels and half the sides; an image of one pixel stays."""
    return nn.Sequential(
        OrderedDict(
            norm=nn.BatchNorm2d(fan_in),
            activation=ReLU(),
            conv=nn.Conv2d(fan_in, fan_out, 1, bias=False),
            pool=nn.AvgPool2d(2, ceil_mode=True),
        )
    )
