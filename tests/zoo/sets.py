"""Sets, graphs, tables and users: embeddings, pooling over points, experts."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry


class DLRM(nn.Module):
    """Embedding bags, pairwise dot products of all features, an MLP on top."""

    def __init__(self):
        super().__init__()
        self.emb_l = nn.ModuleList([nn.EmbeddingBag(n, 8, mode="sum") for n in (11, 7, 5)])
        self.bot_l = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU())
        self.top_l = nn.Sequential(nn.Linear(8 + 6, 10), nn.ReLU(), nn.Linear(10, 1), nn.Sigmoid())

    def interact(self, x: Tensor, ly: list[Tensor]) -> Tensor:
        batch, d = x.shape
        T = torch.cat([x, *ly], dim=1).view((batch, -1, d))
        Z = torch.bmm(T, torch.transpose(T, 1, 2))
        _, ni, nj = Z.shape
        li = torch.tensor([i for i in range(ni) for j in range(i)])
        lj = torch.tensor([j for i in range(nj) for j in range(i)])
        return torch.cat([x, Z[:, li, lj]], dim=1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = self.bot_l(dense)
        ly = [emb(sparse[i]) for i, emb in enumerate(self.emb_l)]
        return self.top_l(self.interact(x, ly))


class TwoTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.user, self.item = nn.Embedding(20, 10), nn.Embedding(30, 9)
        self.user_tower = nn.Sequential(nn.Linear(10, 14), nn.ReLU(), nn.Linear(14, 8))
        self.item_tower = nn.Sequential(nn.Linear(9, 13), nn.ReLU(), nn.Linear(13, 8))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        u = F.normalize(self.user_tower(self.user(users)), dim=-1)
        i = F.normalize(self.item_tower(self.item(items)), dim=-1)
        return self.logit_scale.exp() * u @ i.t()


class Factorisation(nn.Module):
    """A factorisation machine beside a deep part, one embedding for both."""

    def __init__(self):
        super().__init__()
        self.linear, self.embedding = nn.Embedding(40, 1), nn.Embedding(40, 7)
        self.register_buffer("offsets", torch.tensor([0, 10, 20, 30]))
        self.embed_output_dim = 4 * 7
        self.mlp = nn.Sequential(nn.Linear(28, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.2), nn.Linear(12, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.offsets.unsqueeze(0)
        e = self.embedding(x)
        pair = 0.5 * (e.sum(1).pow(2) - e.pow(2).sum(1)).sum(1, keepdim=True)
        return torch.sigmoid(self.linear(x).sum(1) + pair + self.mlp(e.view(-1, self.embed_output_dim))).squeeze(1)


class DeepSets(nn.Module):
    def __init__(self):
        super().__init__()
        self.phi = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 9))
        self.rho = nn.Sequential(nn.Linear(9, 10), nn.ReLU(), nn.Linear(10, 2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        h = self.phi(x) * mask.unsqueeze(-1).to(x.dtype)
        return self.rho(h.sum(dim=1))


class TNet(nn.Module):
    def __init__(self, k: int):
        super().__init__()
        self.k = k
        self.conv, self.fc1, self.fc2 = nn.Conv1d(k, 10, 1), nn.Linear(10, 8), nn.Linear(8, k * k)
        self.bn = nn.BatchNorm1d(10)

    def forward(self, x: Tensor) -> Tensor:
        b = x.size(0)
        x = torch.max(F.relu(self.bn(self.conv(x))), 2, keepdim=True)[0].view(-1, 10)
        iden = torch.eye(self.k, dtype=x.dtype, device=x.device).flatten().view(1, self.k * self.k).repeat(b, 1)
        return (self.fc2(F.relu(self.fc1(x))) + iden).view(-1, self.k, self.k)


class PointNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_transform, self.feature_transform = TNet(3), TNet(6)
        self.conv1, self.conv2 = nn.Conv1d(3, 6, 1), nn.Conv1d(6, 14, 1)
        self.fc1, self.fc2 = nn.Linear(14, 11), nn.Linear(11, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.bmm(x.transpose(2, 1), self.input_transform(x)).transpose(2, 1)
        x = F.relu(self.conv1(x))
        trans = self.feature_transform(x)
        x = torch.bmm(x.transpose(2, 1), trans).transpose(2, 1)
        x = torch.max(self.conv2(x), 2)[0]
        return F.log_softmax(self.fc2(F.relu(self.fc1(x))), dim=1), trans


class DenseMoE(nn.Module):
    """All experts, weighted by a gate; weights of all experts in one parameter."""

    def __init__(self):
        super().__init__()
        self.stem, self.gate = nn.Linear(6, 10), nn.Linear(10, 3)
        self.w1, self.w2 = nn.Parameter(torch.randn(3, 10, 14) * 0.1), nn.Parameter(torch.randn(3, 14, 10) * 0.1)
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.stem(x))
        gates = self.gate(x).softmax(-1)
        h = F.gelu(torch.einsum("bd,edh->beh", x, self.w1))
        y = torch.einsum("beh,ehd,be->bd", h, self.w2, gates)
        return self.head(x + y)


class Expert(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.w1, self.w2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)))


class SparseMoE(nn.Module):
    """The best two experts for each token, by masks."""

    def __init__(self):
        super().__init__()
        self.embed, self.gate = nn.Linear(6, 10), nn.Linear(10, 4, bias=False)
        self.experts = nn.ModuleList([Expert(10, 12) for _ in range(4)])
        self.head, self.top_k = nn.Linear(10, 3), 2

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        flat = x.view(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.gate(flat), dim=1), self.top_k, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        dense = torch.zeros(flat.shape[0], 4, dtype=x.dtype, device=x.device).scatter(1, chosen, weights)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            out = out + expert(flat) * dense[:, i, None]
        return self.head(x + out.view(x.shape))


class RoutedMoE(SparseMoE):
    """Each expert sees only its tokens."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        flat = x.reshape(-1, x.shape[-1])
        weights, chosen = torch.topk(F.softmax(self.gate(flat), dim=1), self.top_k, dim=-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == i)
            out.index_add_(0, rows, expert(flat[rows]) * weights[rows, slot, None])
        return self.head(x + out.view(x.shape))


class GCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1, self.w2 = nn.Parameter(torch.randn(5, 12) * 0.3), nn.Parameter(torch.randn(12, 8) * 0.3)
        self.bias, self.head = nn.Parameter(torch.zeros(12)), nn.Linear(8, 3)

    def forward(self, x: Tensor, adj: Tensor) -> Tensor:
        x = F.relu(torch.matmul(adj, torch.matmul(x, self.w1)) + self.bias)
        return self.head(torch.bmm(adj, torch.matmul(x, self.w2)).mean(1))


class GAT(nn.Module):
    """Attention over neighbours by two vectors, heads concatenated."""

    def __init__(self):
        super().__init__()
        self.heads, self.dim = 3, 6
        self.lin = nn.Linear(5, 18, bias=False)
        self.att_src, self.att_dst = nn.Parameter(torch.randn(1, 3, 6)), nn.Parameter(torch.randn(1, 3, 6))
        self.out = nn.Linear(18, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        h = self.lin(x).view(-1, self.heads, self.dim)
        src, dst = edges
        alpha = F.leaky_relu((h * self.att_src).sum(-1)[src] + (h * self.att_dst).sum(-1)[dst], 0.2).exp()
        total = torch.zeros(x.size(0), self.heads, dtype=x.dtype).index_add(0, dst, alpha)
        messages = h[src] * (alpha / (total[dst] + 1e-9)).unsqueeze(-1)
        out = torch.zeros_like(h).index_add(0, dst, messages)
        return self.out(F.elu(out.flatten(1)))


def graph() -> tuple[Tensor, Tensor]:
    adjacency = (torch.rand(2, 6, 6) < 0.5).float() + torch.eye(6)
    return torch.randn(2, 6, 5), adjacency / adjacency.sum(-1, keepdim=True)


ENTRIES = (
    Entry(
        "dlrm",
        DLRM,
        lambda: (torch.randn(4, 6), torch.stack([torch.randint(0, 5, (4, 2)) for _ in range(3)])),
        grows=(("bot_l.0", 12), ("top_l.0", 10), ("emb_l.*", 8)),
        notes="new entries of the embeddings are zero, so no product of two features changes; those of bot_l may be "
        "anything, for top_l is silent there",
    ),
    Entry(
        "two towers",
        TwoTower,
        lambda: (torch.randint(0, 20, (4,)), torch.randint(0, 30, (4,))),
        grows=(("user", 10), ("item", 9), ("user_tower.0", 14), ("item_tower.0", 13)),
        refused={"user_tower.2": "runs over it"},
        notes="cosine: a zero entry leaves length and product, but zero rows on both sides learn nothing",
    ),
    Entry(
        "factorisation machine",
        Factorisation,
        lambda: torch.randint(0, 10, (4, 4)),
        grows=(("mlp.0", 12),),
        notes="the embedding's squares are summed",
    ),
    Entry(
        "deep sets",
        DeepSets,
        lambda: (torch.randn(3, 5, 3), torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])),
        grows=(("phi.0", 12), ("phi.2", 9), ("rho.0", 10)),
    ),
    Entry(
        "pointnet",
        PointNet,
        lambda: torch.randn(3, 3, 9),
        grows=(("conv2", 14), ("fc1", 11), ("*transform.fc1", 8)),
        refused={"conv1": "output"},
        notes="view(-1, 10) hides the width of the T-nets' convolutions",
    ),
    Entry("dense experts", DenseMoE, lambda: torch.randn(3, 6), grows=(("stem", 10), ("w1", 14))),
    Entry(
        "top-k experts",
        SparseMoE,
        lambda: torch.randn(2, 4, 6),
        grows=(("embed", 10), ("experts.*.w1", 12)),
    ),
    Entry(
        "routed experts",
        RoutedMoE,
        lambda: torch.randn(2, 12, 6),
        grows=(("experts.*.w1", 12), ("embed", 10)),
        notes="the number of rows of each expert depends on the data",
        slow=True,
    ),
    Entry("graph convolution", GCN, graph, grows=(("w1", 12), ("w2", 8))),
    Entry(
        "graph attention",
        GAT,
        lambda: (torch.randn(7, 5), torch.randint(0, 7, (2, 15))),
        grows=(("lin", 3), ("lin", 6)),
        notes="scores are sums over the size of a head with att_src and att_dst, which can be zero there; the edges "
        "have no batch",
    ),
)
