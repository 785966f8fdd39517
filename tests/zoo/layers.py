"""Layers of their own kind: computed weights, adapters, gates, norms by hand."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, image, vector


class LoRALinear(nn.Module):
    """A frozen weight with a product of low rank added."""

    def __init__(self, fan_in: int, fan_out: int, rank: int = 4):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) * 0.2, requires_grad=False)
        self.lora_A = nn.Parameter(torch.randn(rank, fan_in) * 0.1)
        self.lora_B = nn.Parameter(torch.zeros(fan_out, rank))
        self.scaling = 2.0

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight + self.scaling * self.lora_B @ self.lora_A)


class LoRA(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = LoRALinear(10, 12), LoRALinear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.gelu(self.second(F.gelu(self.first(x)))))


class LoRAPath(nn.Module):
    """The adapter beside the layer, as most code has it."""

    def __init__(self):
        super().__init__()
        self.base = nn.Linear(10, 12).requires_grad_(False)
        self.down, self.up = nn.Linear(10, 4, bias=False), nn.Linear(4, 12, bias=False)
        nn.init.zeros_(self.up.weight)
        self.head = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.base(x) + 0.5 * self.up(self.down(x))))


class HyperNetwork(nn.Module):
    """The weights of the main layer are computed from an embedding."""

    def __init__(self):
        super().__init__()
        self.z = nn.Parameter(torch.randn(6))
        self.make1, self.make2 = nn.Linear(6, 9), nn.Linear(9, 10 * 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.make2(torch.tanh(self.make1(self.z))).view(8, 10)
        return self.head(torch.relu(F.linear(x, weight)))


class SpectralNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.utils.parametrizations.spectral_norm(nn.Linear(10, 12))
        self.b, self.c = nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


class FiLM(nn.Module):
    """Scale and shift of each channel from a condition."""

    def __init__(self):
        super().__init__()
        self.conv1, self.norm, self.conv2 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8, affine=False),
            nn.Conv2d(8, 2, 1),
        )
        self.embed, self.to_film = nn.Linear(5, 11), nn.Linear(11, 16)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.to_film(F.silu(self.embed(condition))).chunk(2, dim=1)
        h = self.norm(self.conv1(x)) * (1 + gamma[:, :, None, None]) + beta[:, :, None, None]
        return self.conv2(F.relu(h))


class Maxout(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.features = 2, 9
        self.lin, self.head = nn.Linear(10, 18), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        shape = [*x.shape[:-1], self.features, self.pool]
        return self.head(self.lin(x).view(*shape).max(-1)[0])


class Highway(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(10, 8)
        self.plain, self.gate = (nn.ModuleList([nn.Linear(8, 8) for _ in range(2)]) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for plain, gate in zip(self.plain, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(plain(x)) + (1 - t) * x
        return self.head(x)


class Fourier(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("B", torch.randn(2, 6))
        self.net = nn.Sequential(nn.Linear(12, 14), nn.ReLU(), nn.Linear(14, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = 2 * math.pi * x @ self.B
        return self.net(torch.cat([torch.sin(x), torch.cos(x)], dim=-1))


class Siren(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(2, 12), nn.Linear(12, 11), nn.Linear(11, 1)])

    def forward(self, x: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            x = torch.sin(30.0 * layer(x))
        return last(x)


class Capsules(nn.Module):
    """Vectors squashed by their length, one product for every pair of capsules."""

    def __init__(self):
        super().__init__()
        self.primary, self.num, self.dim = nn.Linear(10, 5 * 4), 5, 4
        self.W = nn.Parameter(torch.randn(5, 3, 6, 4) * 0.2)

    @staticmethod
    def squash(s: Tensor) -> Tensor:
        n2 = (s**2).sum(-1, keepdim=True)
        return n2 / (1 + n2) * s / torch.sqrt(n2 + 1e-8)

    def forward(self, x: Tensor) -> Tensor:
        u = self.squash(self.primary(x).view(-1, self.num, self.dim))
        v = torch.einsum("bid,ijod->bijo", u, self.W)
        b = torch.zeros(v.shape[:3], dtype=x.dtype, device=x.device)
        for _ in range(2):
            s = (b.softmax(2).unsqueeze(-1) * v).sum(1)
            out = self.squash(s)
            b = b + (v * out.unsqueeze(1)).sum(-1)
        return out.norm(dim=-1)


class ODENet(nn.Module):
    """One block, run for a number of steps."""

    def __init__(self):
        super().__init__()
        self.lift, self.net = nn.Linear(10, 7), nn.Sequential(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 7))
        self.head, self.steps = nn.Linear(7, 3), 4

    def forward(self, x: Tensor) -> Tensor:
        x, h = self.lift(x), 1.0 / self.steps
        for i in range(self.steps):
            t = torch.full_like(x[:, :1], i * h)
            x = x + h * self.net(torch.cat([x, t], 1))
        return self.head(x)


class FNetMixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.up, self.down = (
            nn.Linear(5, 10),
            nn.LayerNorm(10),
            nn.Linear(10, 16),
            nn.Linear(16, 10),
        )
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + torch.fft.fft(torch.fft.fft(x, dim=-1), dim=-2).real)
        return self.head(x + self.down(F.gelu(self.up(x)))).mean(1)


class SpectralFilter(nn.Module):
    """A learned filter on frequencies, with a complex weight kept as pairs of numbers."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(5, 10)
        self.complex_weight = nn.Parameter(torch.randn(5, 10, 2) * 0.1)
        self.head = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        f = torch.fft.rfft(x, dim=1, norm="ortho") * torch.view_as_complex(self.complex_weight)
        return self.head(torch.fft.irfft(f, n=x.shape[1], dim=1, norm="ortho").mean(1))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return grad * (s * (1 + x * (1 - s)))


class OwnFunction(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(Swish.apply(self.conv(x)).mean((2, 3)))


class InPlace(nn.Module):
    """Writes into parts of its activations."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(10, 12), nn.Linear(12, 9), nn.Linear(9, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x[:, :4] += 1
        x = torch.tanh(x)
        y = self.b(x) + 0
        y[:, 0].mul_(2)
        return self.c(torch.relu_(y))


class CosineHead(nn.Module):
    """Weight and features normalised, as in metric learning."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.weight = nn.Linear(10, 12), nn.Linear(12, 8), nn.Parameter(torch.randn(5, 8))

    def forward(self, x: Tensor) -> Tensor:
        return 16.0 * F.linear(F.normalize(self.b(F.relu(self.a(x)))), F.normalize(self.weight))


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.mix = nn.Linear(5, 7), nn.Linear(5, 6), nn.Bilinear(7, 6, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.mix(self.left(x), torch.tanh(self.right(x)))))


class CosineGate(nn.Module):
    """Softplus, softsign and other activations that are not 0 at 0; a sum over units that should be seen."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(10, 12), nn.Linear(12, 11), nn.Linear(11, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.softplus(self.a(x))
        x = torch.exp(-self.b(x).square())
        h = torch.cos(self.c(x))
        return self.d(h) / (1.0 + h.abs().sum(1, keepdim=True))


ENTRIES = (
    Entry(
        "lora",
        LoRA,
        vector,
        grows=(("first.lora_B", 12), ("second.lora_B", 9), ("first.lora_A", 4), ("second.lora_A", 4)),
        notes="the sum has zero columns where both summands have; the rank is contracted between two parameters",
    ),
    Entry("lora beside the layer", LoRAPath, vector, grows=(("base", 12), ("down", 4))),
    Entry(
        "hypernetwork",
        HyperNetwork,
        vector,
        grows=(("make1", 9),),
        notes="view(8, 10) writes the main layer's width into the forward",
    ),
    Entry(
        "spectral norm",
        SpectralNet,
        vector,
        grows=(("b", 9),),
        notes="the first layer's singular value is estimated with buffers of its width",
    ),
    Entry(
        "film",
        FiLM,
        lambda: (image(8), torch.randn(2, 5)),
        grows=(("conv1", 8), ("embed", 11)),
        notes="the norm's running statistics grow, though it has no weight",
    ),
    Entry("maxout", Maxout, vector, grows=(("lin", 9),), notes="features is an attribute of the model"),
    Entry("highway", Highway, vector, grows=(("stem", 8),)),
    Entry("fourier features", Fourier, lambda: vector(2), grows=(("net.0", 14),)),
    Entry("siren", Siren, lambda: vector(2), grows=(("layers.0", 12), ("layers.1", 11))),
    Entry(
        "capsules",
        Capsules,
        vector,
        notes="every width is summed over in a length; the output capsules' size only through its length",
    ),
    Entry("neural ode", ODENet, vector, grows=(("lift", 7), ("net.0", 12))),
    Entry("fourier mixer", FNetMixer, lambda: torch.randn(2, 6, 5), grows=(("up", 16),), refused={"embed": ""}),
    Entry(
        "spectral filter",
        SpectralFilter,
        lambda: torch.randn(2, 8, 5),
        grows=(("embed", 10),),
        notes="the transform runs over positions, channels pass",
    ),
    Entry("own autograd function", OwnFunction, image, grows=(("conv", 8),)),
    Entry(
        "in place on views",
        InPlace,
        vector,
        grows=(("a", 8), ("b", 9)),
        notes="the first four and the first one stay where they are: new units stand behind them",
    ),
    Entry("cosine head", CosineHead, vector, grows=(("a", 12),), refused={"b": "runs over it"}),
    Entry("bilinear", Bilinear, lambda: vector(5), grows=(("left", 7), ("right", 6), ("mix", 8))),
    Entry("activations off zero", CosineGate, vector, grows=(("a", 12), ("b", 11)), refused={"c": "sum runs over it"}),
)
