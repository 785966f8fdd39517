"""BERT and T5: post-norm and masks, relative positions."""

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

from .config import VOCABULARY, Config
from .entry import Entry, tokens
from .llama import RMSNorm

# BERT: post-norm, masks, dictionaries


class BertSelfAttention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.num_attention_heads = config.num_attention_heads
        self.attention_head_size = config.hidden_size // config.num_attention_heads
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query = nn.Linear(config.hidden_size, self.all_head_size)
        self.key = nn.Linear(config.hidden_size, self.all_head_size)
        self.value = nn.Linear(config.hidden_size, self.all_head_size)
        self.dropout = nn.Dropout(config.dropout)

    def transpose_for_scores(self, x: Tensor) -> Tensor:
        new_shape = x.size()[:-1] + (self.num_attention_heads, self.attention_head_size)
        x = x.view(*new_shape)
        return x.permute(0, 2, 1, 3)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        key, value = self.transpose_for_scores(self.key(hidden)), self.transpose_for_scores(self.value(hidden))
        query = self.transpose_for_scores(self.query(hidden))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.attention_head_size) + mask
        context = torch.matmul(self.dropout(nn.Softmax(dim=-1)(scores)), value).permute(0, 2, 1, 3).contiguous()
        return context.view(*(context.size()[:-2] + (self.all_head_size,)))


class BertLayer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.attention = nn.ModuleDict({"self": BertSelfAttention(config), "dense": nn.Linear(48, 48)})
        self.norm1, self.norm2 = (
            nn.LayerNorm(config.hidden_size, eps=1e-12),
            nn.LayerNorm(config.hidden_size, eps=1e-12),
        )
        self.intermediate = nn.Linear(config.hidden_size, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(self.attention["dense"](self.attention["self"](x, mask)) + x)
        return self.norm2(self.output(F.gelu(self.intermediate(x))) + x)


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        config = Config()
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_positions, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(2, config.hidden_size)
        self.register_buffer("position_ids", torch.arange(config.max_positions).expand((1, -1)), persistent=False)
        self.norm, self.dropout = nn.LayerNorm(config.hidden_size, eps=1e-12), nn.Dropout(config.dropout)
        self.layer = nn.ModuleList([BertLayer(config) for _ in range(config.num_hidden_layers)])
        self.pooler = nn.Linear(config.hidden_size, 40)
        self.classifier = nn.Linear(40, 3)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> dict[str, Tensor]:
        length = input_ids.size(1)
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = self.dropout(self.norm(x + self.position_embeddings(self.position_ids[:, :length])))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        for layer in self.layer:
            x = layer(x, mask)
        pooled = torch.tanh(self.pooler(x[:, 0]))
        return {"logits": self.classifier(pooled), "last_hidden_state": x}


# T5: relative position bias, RMS norm, no scale


class T5Attention(nn.Module):
    def __init__(self, *, biased: bool):
        super().__init__()
        self.n_heads, self.key_value_proj_dim = 4, 6
        self.inner_dim = self.n_heads * self.key_value_proj_dim
        self.q, self.k, self.v = (nn.Linear(32, self.inner_dim, bias=False) for _ in range(3))
        self.o = nn.Linear(self.inner_dim, 32, bias=False)
        self.relative_attention_bias = nn.Embedding(8, self.n_heads) if biased else None

    def compute_bias(self, length: int, device: torch.device) -> Tensor:
        position = torch.arange(length, device=device)
        bucket = (position[None, :] - position[:, None]).clamp(-4, 3) + 4
        return self.relative_attention_bias(bucket).permute([2, 0, 1]).unsqueeze(0)

    def forward(self, x: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, length = x.shape[:2]

        def shape(states: Tensor) -> Tensor:
            return states.view(batch, -1, self.n_heads, self.key_value_proj_dim).transpose(1, 2)

        q, k, v = shape(self.q(x)), shape(self.k(x)), shape(self.v(x))
        bias = self.compute_bias(length, x.device) if bias is None else bias
        weights = F.softmax((torch.matmul(q, k.transpose(3, 2)) + bias).float(), dim=-1).type_as(q)
        out = torch.matmul(weights, v).transpose(1, 2).contiguous().view(batch, -1, self.inner_dim)
        return self.o(out), bias


class T5Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.shared = nn.Embedding(VOCABULARY, 32)
        self.attentions = nn.ModuleList([T5Attention(biased=i == 0) for i in range(2)])
        self.wi_0, self.wi_1, self.wo = (
            nn.ModuleList([nn.Linear(a, b, bias=False) for _ in range(2)]) for a, b in ((32, 48), (32, 48), (48, 32))
        )
        self.norms = nn.ModuleList([RMSNorm(32) for _ in range(5)])
        self.head = nn.Linear(32, 5)

    def forward(self, input_ids: Tensor) -> Tensor:
        x, bias = self.shared(input_ids), None
        for i, attention in enumerate(self.attentions):
            attended, bias = attention(self.norms[2 * i](x), bias)
            x = x + attended
            normed = self.norms[2 * i + 1](x)
            x = x + self.wo[i](F.gelu(self.wi_0[i](normed), approximate="tanh") * self.wi_1[i](normed))
        return self.head(self.norms[-1](x).mean(1))


def bert_inputs() -> dict[str, Tensor]:
    mask = torch.ones(2, 7, dtype=torch.long)
    mask[1, 5:] = 0
    return {"input_ids": tokens(), "attention_mask": mask, "token_type_ids": torch.randint(0, 2, (2, 7))}


ENTRIES = (
    Entry(
        "bert",
        Bert,
        bert_inputs,
        grows=(
            ("layer.*.intermediate", 72),
            ("layer.*.attention.self.query", 6),
            ("layer.*.attention.self.query", 8),
            ("pooler", 40),
        ),
        refused={"word_embeddings": "output", "classifier": "output"},
        notes="sizes of query and value are one attribute: they grow together",
    ),
    Entry(
        "t5 encoder",
        T5Encoder,
        tokens,
        grows=(("wi_0.*", 48), ("shared", 32), ("attentions.0.q", 4), ("attentions.0.q", 6)),
        notes="one position bias serves all layers, so heads are one width in two attributes; no scale to mend",
    ),
)
