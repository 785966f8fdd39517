"""Convolutional nets by their wiring: concatenations, pyramids, several outputs, padded shortcuts."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convolution import conv_bn
from .entry import Entry, image


class DenseLayer(nn.Module):
    def __init__(self, fan_in: int, growth: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(fan_in), nn.Conv2d(fan_in, 14, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(14), nn.Conv2d(14, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, padding=1)
        self.layers = nn.ModuleList([DenseLayer(7 + 5 * i, 5) for i in range(3)])
        self.norm, self.classifier = nn.BatchNorm2d(22), nn.Linear(22, 5)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(features))
        out = F.relu(self.norm(torch.cat(features, 1)), inplace=True)
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class InceptionBlock(nn.Module):
    def __init__(self, fan_in: int):
        super().__init__()
        self.branch1 = conv_bn(fan_in, 5, 1)
        self.branch2 = nn.Sequential(conv_bn(fan_in, 6, 1), conv_bn(6, 7, 3))
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(fan_in, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.pool(x)], 1)


class GoogLeNet(nn.Module):
    """The auxiliary head runs in train mode only."""

    def __init__(self):
        super().__init__()
        self.stem, self.inception1, self.inception2 = conv_bn(3, 8, 3, 2), InceptionBlock(8), InceptionBlock(16)
        self.aux = nn.Sequential(nn.AdaptiveAvgPool2d(2), conv_bn(16, 9, 1), nn.Flatten(), nn.Linear(36, 5))
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.inception1(self.stem(x))
        aux = self.aux(x) if self.training else None
        x = self.fc(self.inception2(x).mean((2, 3)))
        return (x, aux) if self.training else x


class EarlyExit(nn.Module):
    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList([conv_bn(3, 6), conv_bn(6, 9), conv_bn(9, 11)])
        self.exits = nn.ModuleList([nn.Linear(n, 5) for n in (6, 9, 11)])

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            outputs.append(leave(x.mean((2, 3))))
        return outputs


class FPN(nn.Module):
    """Top-down and bottom-up pyramid with detection heads shared by all levels."""

    def __init__(self):
        super().__init__()
        self.c2, self.c3, self.c4 = conv_bn(3, 6, 3, 2), conv_bn(6, 8, 3, 2), conv_bn(8, 11, 3, 2)
        self.lateral = nn.ModuleList([nn.Conv2d(n, 7, 1) for n in (6, 8, 11)])
        self.smooth = nn.ModuleList([nn.Conv2d(7, 7, 3, padding=1) for _ in range(3)])
        self.pan = nn.ModuleList([nn.Conv2d(7, 7, 3, stride=2, padding=1) for _ in range(2)])
        self.tower = nn.Sequential(nn.Conv2d(7, 10, 3, padding=1), nn.ReLU())
        self.cls, self.box = nn.Conv2d(10, 2 * 5, 1), nn.Conv2d(10, 2 * 4, 1)
        self.num_anchors = 2

    def forward(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        levels = [self.c2(x)]
        levels.append(self.c3(levels[-1]))
        levels.append(self.c4(levels[-1]))
        sides = [lateral(level) for lateral, level in zip(self.lateral, levels, strict=True)]
        for i in (1, 0):
            sides[i] = sides[i] + F.interpolate(sides[i + 1], size=sides[i].shape[-2:], mode="nearest")
        features = [smooth(side) for smooth, side in zip(self.smooth, sides, strict=True)]
        for i in (0, 1):
            features[i + 1] = features[i + 1] + self.pan[i](features[i])
        scores, boxes = [], []
        for feature in features:
            t = self.tower(feature)
            n, _, h, w = t.shape
            scores.append(self.cls(t).view(n, self.num_anchors, 5, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 5))
            boxes.append(self.box(t).permute(0, 2, 3, 1).reshape(n, -1, 4))
        return scores, boxes


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.body = nn.Conv2d(3, 9, 3, padding=1), nn.ModuleList([nn.Conv2d(9, 9, 3, padding=1)] * 2)
        self.up = nn.Sequential(nn.Conv2d(9, 7 * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.tail = nn.Sequential(nn.Conv2d(7, 3 * 4, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x = self.head(x)
        for conv in self.body:
            y = y + 0.1 * F.relu(conv(y))
        return self.tail(self.up(x + y))


class PadShortcut(nn.Module):
    """Strided identity, padded with zero channels on both sides."""

    def __init__(self, in_planes: int, planes: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(in_planes, planes, 3, 2, 1, bias=False), nn.BatchNorm2d(planes)
        self.conv2, self.bn2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes)
        self.planes = planes

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y = y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.planes // 4, self.planes // 4), "constant", 0)
        return F.relu(y)


class OptionA(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.layer, self.linear = conv_bn(3, 8), PadShortcut(8, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.stem(x))
        x = F.avg_pool2d(x, x.size()[3])
        return self.linear(x.view(x.size(0), -1))


class Video(nn.Module):
    def __init__(self):
        super().__init__()
        self.spatial = nn.Conv3d(3, 9, (1, 3, 3), padding=(0, 1, 1))
        self.temporal, self.norm = nn.Conv3d(9, 6, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(6)
        self.fc = nn.Linear(6 * 8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.temporal(F.relu(self.spatial(x)))))
        return self.fc(F.adaptive_max_pool3d(x, 2).view(x.shape[0], -1))


class CReLUNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2, self.fc = nn.Conv2d(3, 5, 3), nn.Conv2d(10, 6, 3), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        x = self.conv2(F.relu(torch.cat([x, -x], 1)))
        return self.fc(F.relu(torch.cat([x, -x], 1)).amax((2, 3)))


class ViewLiteral(nn.Module):
    """The classic tutorial: the number of features stands in the forward."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2 = nn.Linear(8 * 4 * 4, 20), nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv2(F.relu(self.conv1(x)))), 3)
        x = x.view(-1, 128)
        return self.fc2(F.relu(self.fc1(x)))


ENTRIES = (
    Entry(
        "densenet",
        DenseNet,
        image,
        grows=(("stem", 7), ("layers.*.conv1", 14), ("layers.*.conv2", 5)),
    ),
    Entry(
        "googlenet",
        GoogLeNet,
        image,
        grows=(
            ("stem.0", 8),
            ("inception?.branch1.0", 5),
            ("inception?.branch2.0.0", 6),
            ("inception?.branch2.1.0", 7),
            ("inception?.pool.1.0", 4),
            ("aux.1.0", 9),
        ),
    ),
    Entry("early exit", EarlyExit, image, grows=(("stages.0.0", 6), ("stages.1.0", 9), ("stages.2.0", 11))),
    Entry(
        "feature pyramid",
        FPN,
        lambda: image(32),
        grows=(("c2.0", 6), ("c3.0", 8), ("c4.0", 11), ("lateral.*", 7), ("smooth.*", 7), ("tower.0", 10)),
        refused={"cls": "output", "box": "output"},
        slow=True,
    ),
    Entry("super resolution", SuperResolution, lambda: image(8), grows=(("head", 9), ("up.0", 7))),
    Entry(
        "option A shortcut",
        OptionA,
        image,
        grows=(("stem.0", 8), ("layer.conv1", 16)),
        notes="the padding on both sides may stay as it is: new channels stand before the second one",
    ),
    Entry("video", Video, lambda: torch.randn(2, 3, 4, 8, 8), grows=(("spatial", 9), ("temporal", 6))),
    Entry("crelu", CReLUNet, image, grows=(("conv1", 5), ("conv2", 6))),
    Entry(
        "view literal",
        ViewLiteral,
        image,
        grows=(("conv1", 6), ("fc1", 20)),
        refused={"conv2": "fails at another width"},
    ),
)
