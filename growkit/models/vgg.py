"""VGG-11 without pooling and dense layers, as the GradMax and Firefly experiments use it."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from growkit.config.models import VggSettings
from growkit.models.activation import ReLU
from growkit.models.conv import conv3x3, init_convolutions, num_channels, scaled

__all__ = ["VGG"]

STAGES = ((64,), (128,), (256, 256), (512, 512), (512, 512))


class VGG(nn.Module):
    """Eight 3x3 convolutions in five stages and a ninth that gives the classes (Evci et al., 2022).

    The first convolution of each stage but the first has stride 2, and so has the last one of all; what it leaves of
    the image (nothing at 32x32) is averaged, so that other sizes work too. As published, the optional normaliser
    follows the ReLU and no convolution has a bias.

    Args:
        settings: the share of the published widths, and the normaliser.
        input_shape: (C, H, W).
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the inputs are no images.
    """

    def __init__(self, settings: VggSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        fan_in = num_channels(settings.name, input_shape)
        layers = []
        for stage, widths in enumerate(STAGES):
            for position, full_width in enumerate(widths):
                width = scaled(full_width, settings.width)
                layers.append(_layer(settings, fan_in, width, stride=2 if stage and not position else 1))
                fan_in = width
        self.layers = nn.Sequential(*layers)
        self.head = conv3x3(fan_in, num_outputs, stride=2)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        return self.head(self.layers(x)).mean(dim=(2, 3))


def _layer(settings: VggSettings, fan_in: int, fan_out: int, stride: int) -> nn.Sequential:
    """In a row of their own, so that one more convolution may stand behind the activation."""
    parts: dict[str, nn.Module] = {"conv": conv3x3(fan_in, fan_out, stride), "activation": ReLU()}
    if settings.norm == "batchnorm":
        parts["norm"] = nn.BatchNorm2d(fan_out)
    return nn.Sequential(OrderedDict(parts))
