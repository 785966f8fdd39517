"""Residual networks for CIFAR and ImageNet whose blocks, or all of them, can start narrow."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import pad

from growkit.config.models import ResnetSettings
from growkit.models.activation import ReLU
from growkit.models.conv import conv3x3, init_convolutions, make_stem, num_channels, scaled

__all__ = ["Block", "Bottleneck", "PadShortcut", "ResNet"]

IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
FIRST_BOTTLENECK, EXPANSION = 50, 4


class PadShortcut(nn.Module):
    """Every second pixel, and zeros for the channels that are missing (He et al., 2016, option A).

    Args:
        before: channels of zeros in front.
        behind: channels of zeros behind.
    """

    def __init__(self, before: int, behind: int):
        super().__init__()
        self.before, self.behind = before, behind

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, before + C + behind, H / 2, W / 2]."""
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))


class Block(nn.Module):
    """Two 3x3 convolutions and the shortcut; growing conv1 leaves the residual stream alone.

    Args:
        fan_in: channels of the input.
        inner: channels between the convolutions.
        fan_out: channels of the output.
        stride: of conv1.
        shortcut: from the input to the addition.
    """

    def __init__(self, fan_in: int, inner: int, fan_out: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1, self.norm1 = conv3x3(fan_in, inner, stride), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = conv3x3(inner, fan_out), nn.BatchNorm2d(fan_out)
        self.shortcut, self.activation = shortcut, ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan_in, H, W] -> [B, fan_out, H / stride, W / stride]."""
        inner = self.activation(self.norm1(self.conv1(x)))
        return self.activation(self.shortcut(x) + self.norm2(self.conv2(inner)))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and the shortcut; the stride lies on the 3x3, as in later implementations.

    Args:
        fan_in: channels of the input.
        inner: channels of the first two convolutions.
        fan_out: channels of the output.
        stride: of the 3x3 convolution.
        shortcut: from the input to the addition.
    """

    def __init__(self, fan_in: int, inner: int, fan_out: int, stride: int, shortcut: nn.Module):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(fan_in, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.norm2 = conv3x3(inner, inner, stride), nn.BatchNorm2d(inner)
        self.conv3, self.norm3 = nn.Conv2d(inner, fan_out, 1, bias=False), nn.BatchNorm2d(fan_out)
        self.shortcut, self.activation = shortcut, ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan_in, H, W] -> [B, fan_out, H / stride, W / stride]."""
        inner = self.activation(self.norm1(self.conv1(x)))
        inner = self.activation(self.norm2(self.conv2(inner)))
        return self.activation(self.shortcut(x) + self.norm3(self.conv3(inner)))


class ResNet(nn.Module):
    """ResNet-depth (He, Zhang, Ren and Sun, "Deep residual learning for image recognition", CVPR 2016).

    Args:
        settings: depth, stem, shortcut, and how narrow all or the blocks start.
        input_shape: (C, H, W).
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the inputs are no images.
    """

    def __init__(self, settings: ResnetSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        channels = num_channels(settings.name, input_shape)
        counts = IMAGENET.get(settings.depth) or ((settings.depth - 2) // 6,) * 3
        base = 64 if settings.depth in IMAGENET else 16
        deep = settings.depth in IMAGENET and settings.depth >= FIRST_BOTTLENECK
        make, expansion = (Bottleneck, EXPANSION) if deep else (Block, 1)
        width = scaled(base, settings.width)
        self.stem = make_stem(settings.stem, channels, width)
        self.blocks = nn.ModuleList()
        for stage, count in enumerate(counts):
            for position in range(count):
                stride = 2 if stage and not position else 1
                full = base * 2**stage
                fan_in, width = width, expansion * scaled(full, settings.width)
                inner = scaled(full, settings.width * settings.block_width)
                shortcut = _shortcut(settings, fan_in, width, stride)
                self.blocks.append(make(fan_in, inner, width, stride, shortcut))
        self.head = nn.Linear(width, num_outputs)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(dim=(2, 3)))


def _shortcut(settings: ResnetSettings, fan_in: int, fan_out: int, stride: int) -> nn.Module:
    if fan_in == fan_out and stride == 1:
        return nn.Identity()
    if settings.depth not in IMAGENET and settings.shortcut != "conv":
        missing = fan_out - fan_in
        return PadShortcut(missing // 2, missing - missing // 2)
    return nn.Sequential(nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False), nn.BatchNorm2d(fan_out))
