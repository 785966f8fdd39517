"""Sequences: recurrent taggers, an attention decoder loop, dilated convolutions."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .entry import Entry, tokens


class Tagger(nn.Module):
    def __init__(self, *, packed: bool):
        super().__init__()
        self.packed = packed
        self.embedding = nn.Embedding(61, 12, padding_idx=0)
        self.lstm = nn.LSTM(12, 9, num_layers=2, batch_first=True, bidirectional=True, dropout=0.1)
        self.hidden2tag = nn.Sequential(nn.Linear(18, 15), nn.ReLU(), nn.Linear(15, 4))

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        x = self.embedding(ids)
        if self.packed:
            x = pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False)
        x, _ = self.lstm(x)
        if self.packed:
            x, _ = pad_packed_sequence(x, batch_first=True, total_length=ids.shape[1])
        return self.hidden2tag(x)


class Classifier(nn.Module):
    """Initial states by hand, the last states of both directions."""

    def __init__(self):
        super().__init__()
        self.hidden_size, self.num_layers = 10, 1
        self.rnn = nn.GRU(8, self.hidden_size, self.num_layers, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(2 * self.hidden_size, 3)

    def forward(self, x: Tensor) -> Tensor:
        h0 = torch.zeros(2 * self.num_layers, x.size(0), self.hidden_size, dtype=x.dtype, device=x.device)
        _, h = self.rnn(x, h0)
        return self.fc(torch.cat((h[-2], h[-1]), dim=1))


class Translator(nn.Module):
    """A GRU encoder and a decoder cell that attends to it, step by step."""

    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(61, 10), nn.Embedding(61, 11)
        self.encoder, self.bridge = nn.GRU(10, 12, batch_first=True), nn.Linear(12, 13)
        self.W, self.U, self.v = nn.Linear(12, 9), nn.Linear(13, 9), nn.Linear(9, 1, bias=False)
        self.cell, self.out = nn.GRUCell(11 + 12, 13), nn.Linear(13 + 12, 61)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        memory, h = self.encoder(self.source(src))
        h = torch.tanh(self.bridge(h.squeeze(0)))
        outputs = []
        for t in range(tgt.size(1)):
            scores = self.v(torch.tanh(self.W(memory) + self.U(h).unsqueeze(1))).squeeze(2)
            context = torch.bmm(F.softmax(scores, dim=1).unsqueeze(1), memory).squeeze(1)
            h = self.cell(torch.cat([self.target(tgt[:, t]), context], dim=1), h)
            outputs.append(self.out(torch.cat([h, context], dim=1)))
        return torch.stack(outputs, dim=1)


class HandLSTM(nn.Module):
    """The cell equations by hand, gates in one product."""

    def __init__(self):
        super().__init__()
        self.hidden = 8
        self.x2h, self.h2h = nn.Linear(6, 32), nn.Linear(8, 32, bias=False)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.size(0), self.hidden)
        c = torch.zeros_like(h)
        for t in range(x.size(1)):
            i, f, g, o = (self.x2h(x[:, t]) + self.h2h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


class GatedBlock(nn.Module):
    def __init__(self, residual: int, gate: int, skip: int, dilation: int):
        super().__init__()
        self.dilation = dilation
        self.filter = nn.Conv1d(residual, gate, 2, dilation=dilation)
        self.gate = nn.Conv1d(residual, gate, 2, dilation=dilation)
        self.residual, self.skip = nn.Conv1d(gate, residual, 1), nn.Conv1d(gate, skip, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        padded = F.pad(x, (self.dilation, 0))
        z = torch.tanh(self.filter(padded)) * torch.sigmoid(self.gate(padded))
        return x + self.residual(z), self.skip(z)


class WaveNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.start = nn.Conv1d(4, 9, 1)
        self.blocks = nn.ModuleList([GatedBlock(9, 7, 11, 2**i) for i in range(3)])
        self.end = nn.Sequential(nn.ReLU(), nn.Conv1d(11, 13, 1), nn.ReLU(), nn.Conv1d(13, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.start(x), 0
        for block in self.blocks:
            x, skip = block(x)
            total = total + skip
        return self.end(total)


class Chomp(nn.Module):
    def __init__(self, size: int):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, : -self.size].contiguous()


class TCN(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            weight_norm(nn.Conv1d(4, 8, 3, padding=2)),
            Chomp(2),
            nn.ReLU(),
            nn.Dropout(0.1),
            weight_norm(nn.Conv1d(8, 10, 3, padding=4, dilation=2)),
            Chomp(4),
            nn.ReLU(),
        )
        self.downsample, self.linear = nn.Conv1d(4, 10, 1), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(F.relu(self.net(x) + self.downsample(x))[:, :, -1])


def tagged() -> tuple[Tensor, Tensor]:
    return tokens(3), torch.tensor([7, 5, 6])


ENTRIES = (
    Entry(
        "lstm tagger",
        lambda: Tagger(packed=False),
        tagged,
        grows=(("embedding", 12), ("lstm", 9), ("hidden2tag.0", 15)),
    ),
    Entry(
        "lstm tagger, packed",
        lambda: Tagger(packed=True),
        tagged,
        grows=(("embedding", 12), ("lstm", 9), ("hidden2tag.0", 15)),
        notes="the sizes of a packed batch depend on the lengths",
    ),
    Entry(
        "gru classifier",
        Classifier,
        lambda: torch.randn(3, 6, 8),
        grows=(("rnn", 10),),
        notes="the state's width is an attribute of the model and of the layer",
    ),
    Entry(
        "gru with attention",
        Translator,
        lambda: (tokens(), tokens(length=3)),
        grows=(("source", 10), ("target", 11), ("encoder", 12), ("bridge", 13), ("W", 9)),
        slow=True,
    ),
    Entry("lstm by hand", HandLSTM, lambda: torch.randn(3, 4, 6), grows=(("x2h", 8),)),
    Entry(
        "wavenet",
        WaveNet,
        lambda: torch.randn(2, 4, 20),
        grows=(("start", 9), ("blocks.*.filter", 7), ("blocks.*.skip", 11), ("end.1", 13)),
    ),
    Entry(
        "tcn with weight norm",
        TCN,
        lambda: torch.randn(2, 4, 12),
        grows=(("net.0", 8), ("downsample", 10)),
        notes="g / |v| per row: new rows are independent, zero columns leave the norms",
    ),
)
