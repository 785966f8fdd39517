"""Small nets that hold every form a width can take, traced once, and what tests of the graph share."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from growkit.graph import GrowthSite, LiteralChange, Sites, find_sites


class LoopMLP(nn.Module):
    def __init__(self, widths: tuple[int, ...] = (6, 8, 7, 3)):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


class OwnBuffer(LoopMLP):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.linspace(0.5, 1.0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[2](self.layers[1](self.layers[0](x) * self.mask))


class SmallVGG(nn.Module):
    def __init__(self, widths: tuple[int, int, int] = (4, 6, 10)):
        super().__init__()
        first, second, hidden = widths
        self.features = nn.Sequential(
            nn.Conv2d(3, first, 3, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Conv2d(second, second, 3, padding=1),
        )
        self.classifier = nn.Sequential(nn.Linear(second * 4, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.max_pool2d(F.relu(self.features(x)), 2).flatten(1))


class Block(nn.Module):
    """A pre-activation block with a projection shortcut where the width changes."""

    def __init__(self, fan_in: int, fan_out: int):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(fan_in), nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(fan_out), nn.Conv2d(fan_out, fan_out, 3, padding=1, bias=False)
        self.shortcut = nn.Conv2d(fan_in, fan_out, 1, bias=False) if fan_in != fan_out else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(h))))
        return out + (x if self.shortcut is None else self.shortcut(h))


class SmallWRN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(Block(4, 6), Block(6, 6))
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.blocks(self.stem(x)))).mean((2, 3)))


class Grouped(nn.Module):
    """A depthwise and a grouped convolution, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.squeeze, self.excite = nn.Linear(8, 2), nn.Linear(2, 8)
        self.reduce, self.grouped, self.head = nn.Conv2d(8, 6, 1), nn.Conv2d(6, 9, 3, groups=3), nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.depthwise(F.relu6(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = F.relu(self.grouped(F.relu(self.reduce(x * gate[:, :, None, None]))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Tied(nn.Module):
    """Embedding and head share a weight; one block runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.up, self.down = nn.Embedding(11, 6), nn.Linear(6, 8), nn.Linear(8, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for _ in range(2):
            x = x + self.down(F.silu(self.up(x)))
        return self.head(x)


class RawParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.shift = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.zeros(4))
        self.gain, self.mix = nn.Parameter(torch.ones(1, 4, 1, 1)), nn.Parameter(torch.randn(4, 6))
        self.scale, self.out = nn.Parameter(torch.ones(5, 1)), nn.Parameter(torch.randn(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(F.conv2d(x, self.kernel, self.shift)) * self.gain
        return torch.einsum("bi,oi->bo", F.relu(x.mean((2, 3)) @ self.mix), self.out * self.scale)


class Branches(nn.Module):
    """Concatenation, equal chunks and a view with positions."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 3, 1)
        self.both, self.head = nn.Conv2d(7, 8, 1), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.left(x)), self.right(x)], dim=1)
        value, gate = self.both(x).chunk(2, dim=1)
        return self.head(F.adaptive_avg_pool2d(value * gate.sigmoid(), 2).flatten(1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 4, num_layers=2, batch_first=True, bidirectional=True), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Auxiliary(nn.Module):
    """The auxiliary head runs in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.side = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.body(x))
        return (self.head(x), self.side(x)) if self.training else (self.head(x),)


class Refused(nn.Module):
    """Widths that may not grow, for four reasons."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(x).softmax(-1))
        x = torch.fft.fft(x).real  # no rule for this one
        return self.c(x)


class BranchOnValue(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.mean().item() > 0:
            x = 2 * x
        return self.b(F.relu(self.a(x)))


def vector() -> Tensor:
    return torch.randn(3, 6)


def image() -> Tensor:
    return torch.randn(2, 3, 8, 8)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "mlp": (LoopMLP, vector),
    "vgg": (SmallVGG, image),
    "wrn": (SmallWRN, image),
    "grouped": (Grouped, image),
    "tied": (Tied, lambda: torch.randint(0, 11, (2, 7))),
    "raw": (RawParameters, image),
    "branches": (Branches, image),
    "recurrent": (Recurrent, lambda: torch.randn(2, 4, 3)),
    "auxiliary": (Auxiliary, vector),
    "refused": (Refused, vector),
}

GROWABLE = [name for name in CASES if name != "refused"]


@functools.cache
def traced(name: str) -> tuple[nn.Module, Tensor, Sites]:
    """A net, traced once, with every weight and statistic perturbed so that no check is empty."""
    torch.manual_seed(0)
    model, example = CASES[name][0](), CASES[name][1]()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data += 0.1 * torch.rand_like(tensor)
    return model, example, find_sites(model, example)


def widened(model: nn.Module, site: GrowthSite, num_new: int, *, silent: bool = True) -> nn.Module:
    """A copy of the model after the site's edits: random new entries, zeros along consumer dimensions if silent."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for edit in site.tensor_edits(num_new):
        tensor = tensors[edit.names[0]]
        new, is_new, is_silent = tensor.data, torch.tensor(False), torch.tensor(False)
        for dim, index_map in enumerate(edit.index_maps):
            if index_map is None:
                continue
            old = torch.from_numpy(index_map)
            new = new.index_select(dim, old.clamp(min=0))
            here = (old < 0).view([-1 if axis == dim else 1 for axis in range(tensor.dim())])
            is_new = is_new | here
            is_silent = is_silent | here if silent and dim in edit.consumer_dims else is_silent
        fill = torch.full_like(new, edit.neutral) if edit.pass_through else 0.5 + torch.rand_like(new)
        tensor.data = torch.where(is_silent, 0.0, torch.where(is_new, fill, new)).contiguous()
    change_attributes(model, site.literal_changes(num_new))
    return model


def change_attributes(model: nn.Module, changes: tuple[LiteralChange, ...]) -> None:
    for change in changes:
        owner = model.get_submodule(change.owners[0])
        if isinstance(owner, nn.LSTM):
            owner.hidden_size = change.new
        elif isinstance(owner, nn.Conv2d):
            owner.groups = change.new


def flops_of(model: nn.Module, example: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(example[:1])
    return counter.get_total_flops()


def outputs(model: nn.Module, example: Tensor) -> Tensor:
    with torch.no_grad():
        out = model.eval()(example)
    return out[0] if isinstance(out, tuple) else out


def member_names(members) -> set[str]:
    return {member.names[0] for member in members}
