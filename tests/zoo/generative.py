"""Autoencoders, samplers, generators."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, image, vector


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.mu, self.logvar = nn.Linear(20, 14), nn.Linear(14, 6), nn.Linear(14, 6)
        self.fc3, self.fc4 = nn.Linear(6, 15), nn.Linear(15, 20)

    def reparameterize(self, mu: Tensor, logvar: Tensor) -> Tensor:
        std = torch.exp(0.5 * logvar)
        return mu + torch.randn_like(std) * std

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.relu(self.fc1(x.view(-1, 20)))
        mu, logvar = self.mu(h), self.logvar(h)
        z = self.reparameterize(mu, logvar)
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z)))), mu, logvar


class Sampler(VAE):
    """Gives out the reconstruction and the divergence, not the latents."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.fc1(x))
        mu, logvar = self.mu(h), self.logvar(h).clamp(-10, 10)
        z = self.reparameterize(mu, logvar) if self.training else mu
        kld = -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()).sum(1)
        return self.fc4(F.relu(self.fc3(z))), kld


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.channels = 12
        self.project, self.bn0 = nn.Linear(8, 12 * 4 * 4), nn.BatchNorm2d(12)
        self.main = nn.Sequential(
            nn.ConvTranspose2d(12, 8, 4, 2, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(True),
            nn.ConvTranspose2d(8, 3, 4, 2, 1),
            nn.Tanh(),
        )

    def forward(self, z: Tensor) -> Tensor:
        x = self.project(z).view(z.size(0), self.channels, 4, 4)
        return self.main(F.relu(self.bn0(x)))


class Discriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(3, 6, 4, 2, 1)),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(6, 10, 4, 2, 1),
            nn.InstanceNorm2d(10, affine=True),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(10, 1, 4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).view(-1, 1).squeeze(1)


class TiedAutoencoder(nn.Module):
    """The decoder is the encoder's weight, transposed."""

    def __init__(self):
        super().__init__()
        self.enc1, self.enc2 = nn.Linear(20, 12), nn.Linear(12, 7)
        self.bias1, self.bias2 = nn.Parameter(torch.zeros(12)), nn.Parameter(torch.zeros(20))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enc2(torch.tanh(self.enc1(x))))
        h = torch.tanh(F.linear(h, self.enc2.weight.t(), self.bias1))
        return F.linear(h, self.enc1.weight.t(), self.bias2)


class VectorQuantised(nn.Module):
    """The nearest entry of a code book, with a straight-through gradient."""

    def __init__(self):
        super().__init__()
        self.encoder, self.codebook = nn.Sequential(nn.Linear(10, 12), nn.ReLU(), nn.Linear(12, 6)), nn.Embedding(9, 6)
        self.decoder = nn.Sequential(nn.Linear(6, 11), nn.ReLU(), nn.Linear(11, 10))

    def forward(self, x: Tensor) -> Tensor:
        z = self.encoder(x)
        nearest = torch.cdist(z, self.codebook.weight).argmin(1)
        q = self.codebook(nearest)
        return self.decoder(z + (q - z).detach())


class Flow(nn.Module):
    """An affine coupling layer, with the logarithm of its determinant."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList([nn.Sequential(nn.Linear(4, 14), nn.Tanh(), nn.Linear(14, 8)) for _ in range(2)])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(x.shape[0])
        for net in self.nets:
            a, b = x.chunk(2, 1)
            s, t = net(a).chunk(2, 1)
            b = b * torch.exp(torch.tanh(s)) + t
            total = total + torch.tanh(s).sum(1)
            x = torch.cat([b, a], 1)
        return x, total


ENTRIES = (
    Entry("vae", VAE, lambda: vector(20), grows=(("fc1", 14), ("fc3", 15)), refused={"mu": "output"}),
    Entry(
        "vae without latents",
        Sampler,
        lambda: vector(20),
        grows=(("fc1", 14), ("fc3", 15)),
        refused={"mu": "sum runs over it"},
        notes="the divergence sums over the latents: only new ones with mean 0 and variance 1, not any, add nothing",
    ),
    Entry(
        "generator",
        Generator,
        lambda: vector(8),
        grows=(("project", 12), ("main.0", 8)),
        notes="view to (channels, 4, 4): the channels are an attribute",
    ),
    Entry(
        "discriminator",
        Discriminator,
        image,
        grows=(("main.2", 10),),
        notes="the spectral norm of the first weight takes all its rows together",
    ),
    Entry(
        "tied autoencoder",
        TiedAutoencoder,
        lambda: vector(20),
        grows=(("enc1", 12), ("enc2", 7)),
        notes="each weight makes and reads its units, so its new rows are zero; new biases are not, and let it learn",
    ),
    Entry(
        "vector quantised",
        VectorQuantised,
        vector,
        grows=(("encoder.0", 12), ("decoder.0", 11)),
        refused={"encoder.2": ""},
        notes="distances to the codes are sums over the width",
    ),
    Entry("coupling flow", Flow, lambda: vector(8), grows=(("nets.*.0", 14),)),
)
