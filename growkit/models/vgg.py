"""VGG-11 without pooling and dense layers, as the GradMax and Firefly experiments use it."""

from __future__ import annotations

from torch import Tensor, nn

from growkit.config.models import VggSettings
from growkit.models.activation import ReLU
from growkit.models.conv import conv3x3, init_convolutions, make_norm, num_channels, scaled

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
        self.convs, self.norms = nn.ModuleList(), nn.ModuleList()
        for stage, widths in enumerate(STAGES):
            for position, full_width in enumerate(widths):
                width = scaled(full_width, settings.width)
                self.convs.append(conv3x3(fan_in, width, stride=2 if stage and not position else 1))
                self.norms.append(make_norm(settings.norm, width))
                fan_in = width
        self.activation = ReLU()
        self.head = conv3x3(fan_in, num_outputs, stride=2)
        init_convolutions(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = norm(self.activation(conv(x)))
        return self.head(x).mean(dim=(2, 3))
