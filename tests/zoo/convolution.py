"""Convolutional nets: skips, groups, norms of all kinds."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, image


def conv_bn(fan_in: int, fan_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(fan_in, fan_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(fan_out),
        nn.ReLU(inplace=True),
    )


class UNet(nn.Module):
    """Skips by concatenation; upsampling by a transposed convolution or bilinear."""

    def __init__(self, *, bilinear: bool):
        super().__init__()
        self.down1, self.down2, self.bottom = conv_bn(3, 6), conv_bn(6, 10), conv_bn(10, 14)
        up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
        self.up2 = up if bilinear else nn.ConvTranspose2d(14, 10, 2, stride=2)
        self.merge2 = conv_bn((14 if bilinear else 10) + 10, 10)
        self.up1 = up if bilinear else nn.ConvTranspose2d(10, 6, 2, stride=2)
        self.merge1 = conv_bn((10 if bilinear else 6) + 6, 6)
        self.out = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        y = self.up2(self.bottom(F.max_pool2d(two, 2)))
        rows, columns = two.size(2) - y.size(2), two.size(3) - y.size(3)
        y = F.pad(y, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        y = self.merge2(torch.cat([two, y], dim=1))
        return self.out(self.merge1(torch.cat([one, self.up1(y)], dim=1)))


class GroupNormBlock(nn.Module):
    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.GroupNorm(4, fan_out)
        self.conv2, self.norm2 = nn.Conv2d(fan_out, fan_out, 3, padding=1), nn.GroupNorm(4, fan_out)
        self.downsample = None if fan_in == fan_out else nn.Conv2d(fan_in, fan_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        return F.relu(self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))) + identity)


class GroupNormResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layer1, self.layer2 = GroupNormBlock(8, 8), GroupNormBlock(8, 12)
        self.fc = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer2(self.layer1(F.relu(self.stem(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, (1, 1)), 1))


class StandardisedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        w = self.weight
        mean, var = w.mean(dim=(1, 2, 3), keepdim=True), w.var(dim=(1, 2, 3), keepdim=True, unbiased=False)
        return F.conv2d(x, (w - mean) / torch.sqrt(var + 1e-5), self.bias, self.stride, self.padding)


class WeightStandardised(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = StandardisedConv(3, 8, 3, padding=1), StandardisedConv(8, 10, 3, padding=1)
        self.fc = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.conv2(F.relu(self.conv1(x)))).mean((2, 3)))


class LayerNorm2d(nn.Module):
    """Statistics over channels, channels first, by hand."""

    def __init__(self, channels: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        u = x.mean(1, keepdim=True)
        s = (x - u).pow(2).mean(1, keepdim=True)
        x = (x - u) / torch.sqrt(s + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.dwconv, self.norm = nn.Conv2d(dim, dim, 7, padding=3, groups=dim), nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 36), nn.GELU(), nn.Linear(36, dim)
        self.gamma = nn.Parameter(1e-6 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 10, 4, stride=4), LayerNorm2d(10))
        self.stage1 = nn.Sequential(ConvNeXtBlock(10), ConvNeXtBlock(10))
        self.down = nn.Sequential(LayerNorm2d(10), nn.Conv2d(10, 14, 2, stride=2))
        self.stage2, self.norm, self.head = ConvNeXtBlock(14), nn.LayerNorm(14), nn.Linear(14, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.stage2(self.down(self.stage1(self.stem(x)))).mean([-2, -1])))


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, squeezed: int):
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Sequential(
            nn.Linear(channels, squeezed, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(squeezed, channels, bias=False),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        return x * self.fc(self.avgpool(x).view(b, c)).view(b, c, 1, 1).expand_as(x)


class SENet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.se, self.conv2 = conv_bn(3, 12), SqueezeExcite(12, 4), conv_bn(12, 9)
        self.fc = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.conv2(self.se(self.conv(x))).mean(dim=(-2, -1)))


class InvertedResidual(nn.Module):
    def __init__(self, inp: int, oup: int, stride: int, hidden: int):
        super().__init__()
        self.use_res_connect = stride == 1 and inp == oup
        self.conv = nn.Sequential(
            nn.Conv2d(inp, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, oup, 1, bias=False),
            nn.BatchNorm2d(oup),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.use_res_connect else self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(
            conv_bn(3, 6, 3, 2), InvertedResidual(6, 6, 1, 18), InvertedResidual(6, 8, 2, 20), conv_bn(8, 22, 1)
        )
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(22, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean([2, 3]))


class ResNeXtBlock(nn.Module):
    def __init__(self, width: int, inner: int, groups: int):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.conv2, self.bn2 = nn.Conv2d(inner, inner, 3, padding=1, groups=groups, bias=False), nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))
        return F.relu(self.bn3(self.conv3(y)) + x)


class ResNeXt(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.fc = conv_bn(3, 10), ResNeXtBlock(10, 12, 4), nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.block(self.stem(x)).mean((2, 3)))


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False), conv_bn(half, half, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        x1, x2 = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat((x1, self.branch(x2)), dim=1), 2)


class ShuffleNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.units = conv_bn(3, 12), nn.Sequential(ShuffleUnit(12), ShuffleUnit(12))
        self.last, self.fc = conv_bn(12, 16, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.units(self.stem(x))).mean([2, 3]))


class GroupedKernels(nn.ModuleDict):
    """Convolutions side by side on shares of the channels, whose sizes stand in a list."""

    def __init__(self, inp: int, out: int, kernels: list[int], *, depthwise: bool = False):
        super().__init__()
        share, made = inp // len(kernels), out // len(kernels)
        self.splits = [share] * len(kernels)
        for i, kernel in enumerate(kernels):
            groups = share if depthwise else 1
            self.add_module(str(i), nn.Conv2d(share, made, kernel, padding=kernel // 2, groups=groups, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(x, self.splits, 1)
        return torch.cat([conv(part) for conv, part in zip(self.values(), parts, strict=True)], 1)


class MixedKernels(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.expand, self.bn = conv_bn(3, 8), GroupedKernels(8, 16, [1, 1]), nn.BatchNorm2d(16)
        self.depthwise = GroupedKernels(16, 16, [1, 3, 5, 7], depthwise=True)
        self.project, self.fc = GroupedKernels(16, 8, [1, 1]), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.expand(self.stem(x))))
        return self.fc(self.project(F.relu(self.depthwise(x))).mean((2, 3)))


ENTRIES = (
    Entry(
        "unet, transposed",
        lambda: UNet(bilinear=False),
        image,
        grows=(
            ("down1.0", 6),
            ("down2.0", 10),
            ("bottom.0", 14),
            ("merge2.0", 10),
            ("merge1.0", 6),
            ("up2", 10),
            ("up1", 6),
        ),
    ),
    Entry(
        "unet, bilinear",
        lambda: UNet(bilinear=True),
        image,
        grows=(("down1.0", 6), ("down2.0", 10), ("bottom.0", 14), ("merge2.0", 10), ("merge1.0", 6)),
    ),
    Entry(
        "group norm resnet",
        GroupNormResNet,
        image,
        grows=(("layer1.conv1", 4), ("layer1.conv1", 2), ("layer2.conv1", 4), ("stem", 4), ("layer2.conv2", 4)),
        notes="new groups are independent: every width grows by whole groups; groups grow by whole copies inside",
    ),
    Entry(
        "weight standardised",
        WeightStandardised,
        image,
        grows=(("conv2", 10),),
        refused={"conv1": "runs over it"},
        notes="standardised over the fan-in, so zero columns of conv2 do not stay zero; its own rows are independent",
    ),
    Entry(
        "convnext",
        ConvNeXt,
        lambda: image(32),
        grows=(("*.pwconv1", 36), ("stem.0", 10)),
        notes="the stem's norm stands before the stream's other readers, so it grows by whole copies",
    ),
    Entry("squeeze excite", SENet, image, grows=(("conv.0", 12), ("se.fc.0", 4), ("conv2.0", 9))),
    Entry(
        "mobilenet",
        MobileNet,
        image,
        grows=(
            ("features.0.0", 6),
            ("features.1.conv.0", 18),
            ("features.2.conv.0", 20),
            ("features.2.conv.6", 8),
            ("features.3.0", 22),
        ),
    ),
    Entry(
        "resnext", ResNeXt, image, grows=(("stem.0", 10), ("block.conv1", 4), ("block.conv1", 3), ("block.conv2", 3))
    ),
    Entry(
        "shufflenet",
        ShuffleNet,
        image,
        grows=(("last.0", 16), ("units.*.branch.0.0", 6)),
        notes="both halves are one width after the second shuffle; the expand width of a branch is its own",
    ),
    Entry(
        "mixed kernels",
        MixedKernels,
        lambda: image(8),
        grows=(("stem.0", 4), ("expand.*", 4), ("project.*", 4)),
        notes="the entry of a list of sizes that follows is the one at the place of the split, not any equal one",
    ),
)
