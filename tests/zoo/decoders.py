"""GPT-2 and nanoGPT: weights as (in, out), packed and split, tied heads."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false
# ruff: noqa: RUF005 (sizes are added as their authors add them)

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .entry import Entry, tokens

# GPT-2: weights as (in, out), packed and split


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out)."""

    def __init__(self, nf: int, nx: int):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.empty(nx, nf).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x: Tensor) -> Tensor:
        size_out = x.size()[:-1] + (self.nf,)
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size_out)


class GPT2Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        size = config.max_positions
        mask = torch.tril(torch.ones((size, size), dtype=torch.bool)).view(1, 1, size, size)
        self.register_buffer("bias", mask, persistent=False)
        self.embed_dim, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = self.embed_dim // self.num_heads
        self.split_size = self.embed_dim
        self.c_attn = Conv1D(3 * self.embed_dim, self.embed_dim)
        self.c_proj = Conv1D(self.embed_dim, self.embed_dim)
        self.attn_dropout, self.resid_dropout = nn.Dropout(config.dropout), nn.Dropout(config.dropout)

    def _split_heads(self, tensor: Tensor) -> Tensor:
        return tensor.view(tensor.size()[:-1] + (self.num_heads, self.head_dim)).permute(0, 2, 1, 3)

    def _merge_heads(self, tensor: Tensor) -> Tensor:
        tensor = tensor.permute(0, 2, 1, 3).contiguous()
        return tensor.view(tensor.size()[:-2] + (self.num_heads * self.head_dim,))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (self._split_heads(t) for t in self.c_attn(x).split(self.split_size, dim=2))
        weights = torch.matmul(query, key.transpose(-1, -2)) / (value.size(-1) ** 0.5)
        length = query.size(-2)
        lowest = torch.full([], torch.finfo(weights.dtype).min, dtype=weights.dtype, device=weights.device)
        weights = torch.where(self.bias[:, :, :length, :length], weights, lowest)
        weights = self.attn_dropout(F.softmax(weights, dim=-1).type(value.dtype))
        return self.resid_dropout(self.c_proj(self._merge_heads(torch.matmul(weights, value))))


class NewGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1.0 + torch.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * torch.pow(x, 3.0))))


class GPT2Block(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(config.hidden_size), GPT2Attention(config)
        self.ln_2 = nn.LayerNorm(config.hidden_size)
        self.c_fc = Conv1D(config.intermediate_size, config.hidden_size)
        self.act = NewGELU()
        self.c_proj = Conv1D(config.hidden_size, config.intermediate_size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.c_proj(self.act(self.c_fc(self.ln_2(x))))


class GPT2(nn.Module):
    def __init__(self, *, tied: bool = True):
        super().__init__()
        config = Config()
        self.wte = nn.Embedding(config.vocab_size, config.hidden_size)
        self.wpe = nn.Embedding(config.max_positions, config.hidden_size)
        self.drop = nn.Dropout(config.dropout)
        self.h = nn.ModuleList([GPT2Block(config) for _ in range(config.num_hidden_layers)])
        self.ln_f = nn.LayerNorm(config.hidden_size)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.wte.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        position = torch.arange(0, input_ids.size(-1), dtype=torch.long, device=input_ids.device).unsqueeze(0)
        x = self.drop(self.wte(input_ids) + self.wpe(position))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


# nanoGPT: head count and width read from the input


class CausalSelfAttention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.c_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.n_head, self.n_embd, self.dropout = config.num_attention_heads, config.hidden_size, config.dropout

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        k = k.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        q = q.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        v = v.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
        p = self.dropout if self.training else 0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=None, dropout_p=p, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))


class Bias(nn.Module):
    """A layer norm with an optional bias."""

    def __init__(self, ndim: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(ndim)), None

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class NanoBlock(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.ln_1, self.attn, self.ln_2 = (
            Bias(config.hidden_size),
            CausalSelfAttention(config),
            Bias(config.hidden_size),
        )
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(config.hidden_size, config.intermediate_size, bias=False),
                "c_proj": nn.Linear(config.intermediate_size, config.hidden_size, bias=False),
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


class NanoGPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = config = Config()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.hidden_size),
                "wpe": nn.Embedding(config.max_positions, config.hidden_size),
                "drop": nn.Dropout(config.dropout),
                "h": nn.ModuleList([NanoBlock(config) for _ in range(config.num_hidden_layers)]),
                "ln_f": Bias(config.hidden_size),
            }
        )
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        assert idx.size(1) <= self.config.max_positions
        pos = torch.arange(0, idx.size(1), dtype=torch.long, device=idx.device)
        x = self.transformer.drop(self.transformer.wte(idx) + self.transformer.wpe(pos))
        for block in self.transformer.h:
            x = block(x)
        logits = self.lm_head(self.transformer.ln_f(x))
        loss = None if targets is None else F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss


ENTRIES = (
    Entry(
        "gpt2",
        GPT2,
        tokens,
        grows=(("h.*.c_fc", 72), ("h.*.attn.c_attn", 6), ("h.*.attn.c_attn", 8)),
        notes="centring the tied embedding would change the logits, so the stream stays; heads follow num_heads and "
        "split_size; the head size follows head_dim and split_size, its scale value.size(-1) ** 0.5 goes into q",
    ),
    Entry(
        "gpt2 untied",
        lambda: GPT2(tied=False),
        tokens,
        grows=(("h.*.c_fc", 72), ("h.*.attn.c_attn", 6), ("wte", 48)),
        notes="a pre-norm stream: writers centred, norms rescaled",
    ),
    Entry(
        "nanogpt",
        NanoGPT,
        tokens,
        grows=(("transformer.h.*.mlp.c_fc", 72),),
        refused={"transformer.wte": "cannot be centred"},
        notes="heads times head size is the stream, which is tied to the head and so cannot be centred",
    ),
)
