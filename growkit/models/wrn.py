"""Wide residual networks whose blocks can start narrow."""

from __future__ import annotations

from torch import Tensor, nn

from growkit.config.models import WrnSettings
from growkit.models.activation import ReLU
from growkit.models.conv import conv3x3, init_convolutions, make_norm, num_channels, scaled

__all__ = ["Block", "WideResNet"]

GROUPS = ((1, 1), (2, 2), (4, 2))  # width in multiples of the base, stride of the first block


class Block(nn.Module):
    """A pre-activation residual block: norm1, ReLU, conv1, norm2, ReLU, conv2, plus the shortcut.

    Only conv1 makes the inner width, so growing it never touches the residual stream. norm1 is always there; norm2,
    between the convolutions, is optional (Evci et al. 2022: none). The shortcut takes the block's input as it is.

    Args:
        fan_in: channels of the input.
        inner: channels between the two convolutions.
        fan_out: channels of the output.
        stride: of conv1.
        norm2: what stands between conv1 and its ReLU.
    """

    def __init__(self, fan_in: int, inner: int, fan_out: int, stride: int, norm2: nn.Module):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(fan_in)
        self.conv1 = conv3x3(fan_in, inner, stride)
        self.norm2 = norm2
        self.conv2 = conv3x3(inner, fan_out)
        same = fan_in == fan_out and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(fan_in, fan_out, 1, stride=stride, bias=False)
        self.activation = ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """[B, fan_in, H, W] -> [B, fan_out, H / stride, W / stride]."""
        inner = self.conv1(self.activation(self.norm1(x)))
        return self.shortcut(x) + self.conv2(self.activation(self.norm2(inner)))


class WideResNet(nn.Module):
    """WRN-depth-width (Zagoruyko and Komodakis, 2016) with the narrow blocks of GradMax (Evci et al., 2022).

    Args:
        settings: depth, base, width, and how narrow each block's first convolution starts.
        input_shape: (C, H, W).
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the inputs are no images.
    """

    def __init__(self, settings: WrnSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        width = settings.base
        self.stem = conv3x3(num_channels(settings.name, input_shape), width)
        self.blocks = nn.ModuleList()
        for multiple, first_stride in GROUPS:
            for position in range((settings.depth - 4) // 6):
                fan_in, width = width, multiple * settings.base * settings.width
                inner = scaled(width, settings.block_width)
                stride = 1 if position else first_stride
                self.blocks.append(Block(fan_in, inner, width, stride, make_norm(settings.norm, inner)))
        self.norm = nn.BatchNorm2d(width)
        self.activation = ReLU()
        self.head = nn.Linear(width, num_outputs)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.activation(self.norm(x)).mean(dim=(2, 3)))
