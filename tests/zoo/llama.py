"""Llama, Qwen, Mistral: root-mean-square norms by hand, rotary positions, grouped queries."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import Config
from .entry import Entry, tokens

# Llama and kin


class RMSNorm(nn.Module):
    def __init__(self, hidden_size: int, eps: float = 1e-6):
        super().__init__()
        self.weight, self.variance_epsilon = nn.Parameter(torch.ones(hidden_size)), eps

    def forward(self, hidden_states: Tensor) -> Tensor:
        input_dtype = hidden_states.dtype
        hidden_states = hidden_states.to(torch.float32)
        variance = hidden_states.pow(2).mean(-1, keepdim=True)
        hidden_states = hidden_states * torch.rsqrt(variance + self.variance_epsilon)
        return self.weight * hidden_states.to(input_dtype)


def rotate_half(x: Tensor) -> Tensor:
    x1, x2 = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    return torch.cat((-x2, x1), dim=-1)


def apply_rotary(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return (q * cos) + (rotate_half(q) * sin), (k * cos) + (rotate_half(k) * sin)


def repeat_kv(hidden_states: Tensor, n_rep: int) -> Tensor:
    batch, num_key_value_heads, slen, head_dim = hidden_states.shape
    if n_rep == 1:
        return hidden_states
    hidden_states = hidden_states[:, :, None, :, :].expand(batch, num_key_value_heads, n_rep, slen, head_dim)
    return hidden_states.reshape(batch, num_key_value_heads * n_rep, slen, head_dim)


class Rotary(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        inv_freq = 1.0 / (10000.0 ** (torch.arange(0, dim, 2, dtype=torch.int64).float() / dim))
        self.register_buffer("inv_freq", inv_freq, persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        inv_freq = self.inv_freq[None, :, None].float().expand(position_ids.shape[0], -1, 1)
        freqs = (inv_freq @ position_ids[:, None, :].float()).transpose(1, 2)
        emb = torch.cat((freqs, freqs), dim=-1)
        return emb.cos().to(dtype=x.dtype), emb.sin().to(dtype=x.dtype)


class LlamaAttention(nn.Module):
    def __init__(self, config: Config, *, qk_norm: bool):
        super().__init__()
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.num_key_value_groups = config.num_attention_heads // config.num_key_value_heads
        self.scaling = self.head_dim**-0.5
        self.q_proj = nn.Linear(config.hidden_size, config.num_attention_heads * self.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(config.num_attention_heads * self.head_dim, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()
        self.k_norm = RMSNorm(self.head_dim) if qk_norm else nn.Identity()

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        input_shape = x.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query = self.q_norm(self.q_proj(x).view(hidden_shape)).transpose(1, 2)
        key = self.k_norm(self.k_proj(x).view(hidden_shape)).transpose(1, 2)
        value = self.v_proj(x).view(hidden_shape).transpose(1, 2)
        query, key = apply_rotary(query, key, cos, sin)
        key, value = repeat_kv(key, self.num_key_value_groups), repeat_kv(value, self.num_key_value_groups)
        weights = torch.matmul(query, key.transpose(2, 3)) * self.scaling + mask
        weights = F.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
        out = torch.matmul(weights, value).transpose(1, 2).contiguous()
        return self.o_proj(out.reshape(*input_shape, -1).contiguous())


class LlamaMLP(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaLayer(nn.Module):
    def __init__(self, config: Config, *, qk_norm: bool):
        super().__init__()
        self.self_attn, self.mlp = LlamaAttention(config, qk_norm=qk_norm), LlamaMLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    def __init__(self, *, tied: bool = False, qk_norm: bool = False):
        super().__init__()
        self.config = config = Config()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([LlamaLayer(config, qk_norm=qk_norm) for _ in range(config.num_hidden_layers)])
        self.norm = RMSNorm(config.hidden_size, config.eps)
        self.rotary_emb = Rotary(config.hidden_size // config.num_attention_heads)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.embed_tokens(input_ids)
        length = input_ids.shape[1]
        position_ids = torch.arange(length, device=x.device).unsqueeze(0)
        mask = torch.full((length, length), -1e9, dtype=x.dtype, device=x.device).triu(1)[None, None]
        cos, sin = self.rotary_emb(x, position_ids)
        for layer in self.layers:
            x = layer(x, cos, sin, mask)
        return self.lm_head(self.norm(x))


class CachedRotaryAttention(nn.Module):
    """Mistral-like: sizes from the config at every call, cos and sin kept as tables, SDPA with grouped queries."""

    def __init__(self, config: Config):
        super().__init__()
        self.config = config
        self.head_dim = 8
        width = config.num_attention_heads * self.head_dim
        self.wq = nn.Linear(config.hidden_size, width, bias=False)
        self.wk = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.wv = nn.Linear(config.hidden_size, config.num_key_value_heads * self.head_dim, bias=False)
        self.wo = nn.Linear(width, config.hidden_size, bias=False)
        angles = torch.outer(
            torch.arange(config.max_positions).float(), 10000.0 ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        )
        self.register_buffer("cos", torch.cat([angles, angles], -1).cos())
        self.register_buffer("sin", torch.cat([angles, angles], -1).sin())

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q = self.wq(x).view(b, t, self.config.num_attention_heads, self.head_dim).transpose(1, 2)
        k = self.wk(x).view(b, t, self.config.num_key_value_heads, self.head_dim).transpose(1, 2)
        v = self.wv(x).view(b, t, self.config.num_key_value_heads, self.head_dim).transpose(1, 2)
        cos, sin = self.cos[:t][None, None], self.sin[:t][None, None]
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        n_rep = self.config.num_attention_heads // self.config.num_key_value_heads
        k, v = k.repeat_interleave(n_rep, dim=1), v.repeat_interleave(n_rep, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.wo(out.transpose(1, 2).reshape(b, t, -1))


class Mistral(nn.Module):
    def __init__(self):
        super().__init__()
        self.config = config = Config()
        self.embed = nn.Embedding(config.vocab_size, config.hidden_size)
        self.attention = nn.ModuleList([CachedRotaryAttention(config) for _ in range(2)])
        self.feed_forward = nn.ModuleList([LlamaMLP(config) for _ in range(2)])
        self.norms = nn.ModuleList([nn.RMSNorm(config.hidden_size, eps=1e-6) for _ in range(5)])
        self.output = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        for i, (attention, feed_forward) in enumerate(zip(self.attention, self.feed_forward, strict=True)):
            x = x + attention(self.norms[2 * i](x))
            x = x + feed_forward(self.norms[2 * i + 1](x))
        return self.output(self.norms[-1](x))


ENTRIES = (
    Entry(
        "llama",
        Llama,
        tokens,
        grows=(
            ("layers.*.mlp.gate_proj", 72),
            ("embed_tokens", 48),
            ("layers.*.self_attn.k_proj", 2),
            ("layers.*.self_attn.q_proj", 3),
        ),
        notes="key-value heads are free through the view's -1; queries for each of them are an attribute",
        slow=True,
    ),
    Entry(
        "llama tied",
        lambda: Llama(tied=True),
        tokens,
        grows=(("layers.*.mlp.gate_proj", 72), ("embed_tokens", 48), ("layers.*.self_attn.k_proj", 2)),
        slow=True,
    ),
    Entry(
        "qwen",
        lambda: Llama(qk_norm=True),
        tokens,
        grows=(("layers.*.mlp.gate_proj", 72), ("embed_tokens", 48), ("layers.*.self_attn.k_proj", 2)),
        slow=True,
    ),
    Entry(
        "mistral",
        Mistral,
        tokens,
        grows=(("feed_forward.*.gate_proj", 72), ("embed", 48), ("attention.*.wk", 2)),
        notes="the head counts stand in one config: all blocks grow together",
    ),
)
