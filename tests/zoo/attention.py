"""Attention outside language: vision transformers, torch's own transformers, windows, latents, linear attention."""

# Written as users write: torch types what a module holds as Tensor | Module.
# pyright: reportCallIssue=false, reportIndexIssue=false, reportAttributeAccessIssue=false, reportOperatorIssue=false
# pyright: reportGeneralTypeIssues=false, reportOptionalCall=false, reportIncompatibleMethodOverride=false
# pyright: reportPossiblyUnboundVariable=false

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .entry import Entry, image, tokens


class LayerScale(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(1e-5 * torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class ViTAttention(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.scale = self.head_dim**-0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).flatten(2))


class ViTBlock(nn.Module):
    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.norm1, self.attn, self.ls1 = nn.LayerNorm(dim), ViTAttention(dim, num_heads), LayerScale(dim)
        self.norm2, self.ls2 = nn.LayerNorm(dim), LayerScale(dim)
        self.fc1, self.fc2 = nn.Linear(dim, 56), nn.Linear(56, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.fc2(F.gelu(self.fc1(self.norm2(x)))))


class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 24, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.pos_embed = nn.Parameter(torch.randn(1, 17, 24) * 0.02)
        self.blocks = nn.Sequential(*[ViTBlock(24, 3) for _ in range(2)])
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class MHABlock(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, 3, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(dim, 56), nn.GELU(), nn.Dropout(0.1), nn.Linear(56, dim))

    def forward(self, x: Tensor) -> Tensor:
        y = self.ln_1(x)
        y, _ = self.self_attention(y, y, y, need_weights=False)
        x = x + y
        return x + self.mlp(self.ln_2(x))


class ViTWithMHA(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden_dim = 24
        self.conv_proj = nn.Conv2d(3, 24, 4, stride=4)
        self.class_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.pos_embedding = nn.Parameter(torch.empty(1, 17, 24).normal_(std=0.02))
        self.layers = nn.Sequential(MHABlock(24), MHABlock(24))
        self.ln, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        n, _, h, w = x.shape
        x = self.conv_proj(x).reshape(n, self.hidden_dim, (h // 4) * (w // 4)).permute(0, 2, 1)
        x = torch.cat([self.class_token.expand(n, -1, -1), x], dim=1)
        return self.head(self.ln(self.layers(x + self.pos_embedding))[:, 0])


class EncoderClassifier(nn.Module):
    def __init__(self, *, norm_first: bool):
        super().__init__()
        self.embed = nn.Embedding(61, 24)
        layer = nn.TransformerEncoderLayer(24, 3, 40, dropout=0.1, batch_first=True, norm_first=norm_first)
        norm = nn.LayerNorm(24) if norm_first else None
        self.encoder = nn.TransformerEncoder(layer, 2, norm=norm, enable_nested_tensor=False)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        x = self.encoder(self.embed(ids) * math.sqrt(24), src_key_padding_mask=padding)
        return self.head(x.mean(1))


class Seq2Seq(nn.Module):
    def __init__(self):
        super().__init__()
        self.source, self.target = nn.Embedding(61, 24), nn.Embedding(61, 24)
        self.transformer = nn.Transformer(24, 4, 1, 1, 40, dropout=0.1, batch_first=True)
        self.generator = nn.Linear(24, 61)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        mask = torch.triu(torch.full((tgt.shape[1], tgt.shape[1]), float("-inf"), device=src.device), 1)
        return self.generator(self.transformer(self.source(src), self.target(tgt), tgt_mask=mask))


class WindowAttention(nn.Module):
    """Windows with a table of relative positions; the head size is taken from the input."""

    def __init__(self, dim: int, window: int, num_heads: int):
        super().__init__()
        self.dim, self.window_size, self.num_heads = dim, window, num_heads
        self.scale = (dim // num_heads) ** -0.5
        self.relative_position_bias_table = nn.Parameter(torch.randn((2 * window - 1) ** 2, num_heads) * 0.02)
        coords = torch.stack(torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + window - 1
        self.register_buffer("relative_position_index", relative[..., 0] * (2 * window - 1) + relative[..., 1])
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B_, N, C = x.shape
        qkv = self.qkv(x).reshape(B_, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0] * self.scale, qkv[1], qkv[2]
        bias = self.relative_position_bias_table[self.relative_position_index.view(-1)].view(N, N, -1)
        attn = (q @ k.transpose(-2, -1) + bias.permute(2, 0, 1).contiguous().unsqueeze(0)).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B_, N, C))


class SwinBlock(nn.Module):
    def __init__(self, dim: int, shift: int):
        super().__init__()
        self.shift, self.window = shift, 4
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, 4, 3)
        self.mlp = nn.Sequential(nn.Linear(dim, 56), nn.GELU(), nn.Linear(56, dim))

    def forward(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        y, w = self.norm1(x), self.window
        y = torch.roll(y, (-self.shift, -self.shift), dims=(1, 2)) if self.shift else y
        y = y.view(B, H // w, w, W // w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, w * w, C)
        y = self.attn(y).view(B, H // w, W // w, w, w, C).permute(0, 1, 3, 2, 4, 5).contiguous().view(B, H, W, C)
        y = torch.roll(y, (self.shift, self.shift), dims=(1, 2)) if self.shift else y
        x = x + y
        return x + self.mlp(self.norm2(x))


class PatchMerging(nn.Module):
    def __init__(self, dim: int):
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        parts = [x[:, i::2, j::2, :] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, -1)))


class Swin(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 2, stride=2)
        self.blocks = nn.Sequential(SwinBlock(24, 0), SwinBlock(24, 2))
        self.merge = PatchMerging(24)
        self.norm, self.head = nn.LayerNorm(48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.merge(self.blocks(self.stem(x).permute(0, 2, 3, 1)))
        return self.head(self.norm(x).mean((1, 2)))


class Perceiver(nn.Module):
    """Learned latents read the input by cross attention."""

    def __init__(self):
        super().__init__()
        self.latents = nn.Parameter(torch.randn(6, 20))
        self.embed = nn.Linear(3, 18)
        self.to_q, self.to_kv = nn.Linear(20, 24, bias=False), nn.Linear(18, 48, bias=False)
        self.to_out, self.heads, self.norm = nn.Linear(24, 20), 3, nn.LayerNorm(20)
        self.ff = nn.Sequential(nn.Linear(20, 44), nn.GELU(), nn.Linear(44, 20))
        self.head = nn.Linear(20, 5)

    def forward(self, x: Tensor) -> Tensor:
        b = x.shape[0]
        x = self.embed(x.flatten(2).transpose(1, 2))
        latents = self.latents.unsqueeze(0).repeat(b, 1, 1)
        q = self.to_q(latents)
        k, v = self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (t.reshape(b, t.shape[1], self.heads, -1).transpose(1, 2) for t in (q, k, v))
        weights = torch.einsum("bhid,bhjd->bhij", q, k).mul(q.shape[-1] ** -0.5).softmax(-1)
        out = torch.einsum("bhij,bhjd->bhid", weights, v).transpose(1, 2).reshape(b, latents.shape[1], -1)
        latents = latents + self.to_out(out)
        latents = latents + self.ff(self.norm(latents))
        return self.head(latents.mean(1))


class LinearAttention(nn.Module):
    """Softmax-free attention by two einsums with a positive feature map."""

    def __init__(self):
        super().__init__()
        self.embed, self.heads = nn.Linear(6, 20), 3
        self.q, self.k, self.v = (nn.Linear(20, 24, bias=False) for _ in range(3))
        self.out, self.head = nn.Linear(24, 20), nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, _ = x.shape
        q, k, v = (f(x).view(b, n, self.heads, -1) for f in (self.q, self.k, self.v))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        context = torch.einsum("bnhd,bnhe->bhde", k, v)
        norm = 1 / torch.einsum("bnhd,bhd->bnh", q, k.sum(1)).clamp(min=1e-6)
        out = torch.einsum("bnhd,bhde,bnh->bnhe", q, context, norm)
        return self.head((x + self.out(out.reshape(b, n, -1))).mean(1))


class MixerBlock(nn.Module):
    def __init__(self, positions: int, dim: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.tokens = nn.Sequential(nn.Linear(positions, 20), nn.GELU(), nn.Linear(20, positions))
        self.channels = nn.Sequential(nn.Linear(dim, 52), nn.GELU(), nn.Linear(52, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, stride=4)
        self.blocks = nn.Sequential(MixerBlock(16, 24), MixerBlock(16, 24))
        self.norm, self.head = nn.LayerNorm(24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(x)).mean(dim=1))


class SpatialGate(nn.Module):
    def __init__(self, dim: int, positions: int):
        super().__init__()
        self.norm, self.proj = nn.LayerNorm(dim), nn.Linear(positions, positions)

    def forward(self, x: Tensor) -> Tensor:
        u, v = x.chunk(2, dim=-1)
        return u * self.proj(self.norm(v).transpose(-1, -2)).transpose(-1, -2)


class GMLP(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 4, stride=4)
        self.norm, self.fc1, self.gate, self.fc2 = (
            nn.LayerNorm(24), nn.Linear(24, 60), SpatialGate(30, 16), nn.Linear(30, 24),
        )  # fmt: skip
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.fc2(self.gate(F.gelu(self.fc1(self.norm(x)))))
        return self.head(x.mean(1))


class ReducedAttention(nn.Module):
    """Keys and values of fewer positions, by a strided convolution (Wang et al., 2021)."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q, self.kv, self.proj = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim), nn.Linear(dim, dim)
        self.sr, self.norm = nn.Conv2d(dim, dim, 2, stride=2), nn.LayerNorm(dim)

    def forward(self, x: Tensor, side: int) -> Tensor:
        B, N, C = x.shape
        q = self.q(x).reshape(B, N, self.num_heads, -1).transpose(1, 2)
        x = self.sr(x.transpose(1, 2).reshape(B, C, side, side)).reshape(B, C, -1).transpose(1, 2)
        k, v = self.kv(self.norm(x)).reshape(B, -1, 2, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, N, C))


class QuotientAttention(nn.Module):
    """The size of a head is computed from the width of the input, and never multiplied again."""

    def __init__(self, dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, side: int) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, self.num_heads, C // self.num_heads).permute(2, 0, 3, 1, 4).unbind(0)
        attention = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        return self.proj((10 * attention).softmax(-1).matmul(v).transpose(1, 2).reshape(B, N, -1))


class Pyramid(nn.Module):
    """Two stages; the number of positions falls by merging patches of 2 x 2 side by side, as in Swin."""

    def __init__(self, attention: type[nn.Module]):
        super().__init__()
        self.embed, self.norms = nn.Conv2d(3, 8, 2, stride=2), nn.ModuleList([nn.LayerNorm(8), nn.LayerNorm(18)])
        self.attention = nn.ModuleList([attention(8, 2), attention(18, 3)])
        self.merge, self.head = nn.Linear(4 * 8, 18), nn.Linear(18, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, _, side, _ = x.shape
        x = x.flatten(2).transpose(1, 2)
        x = x + self.attention[0](self.norms[0](x), side)
        x = x.view(B, side // 2, 2, side // 2, 2, x.shape[-1]).permute(0, 1, 3, 4, 2, 5).flatten(3)
        x = self.merge(x).flatten(1, 2)
        x = x + self.attention[1](self.norms[1](x), side // 2)
        return self.head(x.mean(1))


def padded() -> tuple[Tensor, Tensor]:
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    return tokens(), padding


ENTRIES = (
    Entry(
        "vit",
        ViT,
        image,
        grows=(("blocks.*.fc1", 56), ("blocks.*.attn.qkv", 3), ("blocks.*.attn.qkv", 8), ("patch_embed", 24)),
        notes="query and value size are one attribute; the stream is read by layer norms only: centred and rescaled",
    ),
    Entry(
        "vit with MultiheadAttention",
        ViTWithMHA,
        image,
        grows=(("layers.*.mlp.0", 56), ("conv_proj", None)),
        notes="the stream grows by heads or by head size in all blocks together, with embed_dim and num_heads",
    ),
    Entry(
        "transformer encoder",
        lambda: EncoderClassifier(norm_first=False),
        padded,
        grows=(("encoder.layers.*.linear1", 40), ("embed", None)),
        notes="post-norm: the last norm's output is added again, so the stream grows by whole copies",
    ),
    Entry(
        "transformer encoder, norm first",
        lambda: EncoderClassifier(norm_first=True),
        padded,
        grows=(("encoder.layers.*.linear1", 40), ("embed", None)),
        notes="the stream with its heads in all layers; the factor sqrt(24) in the forward may stay",
    ),
    Entry(
        "transformer seq2seq",
        Seq2Seq,
        lambda: (tokens(), tokens(length=5)),
        grows=(("transformer.*coder.layers.0.linear1", 40), ("source", None)),
        slow=True,
    ),
    Entry(
        "swin",
        Swin,
        image,
        grows=(("blocks.*.mlp.0", 56), ("merge.reduction", 48), ("stem", None)),
        notes="one norm reads four tokens of the stream side by side, which a shift of each token would change but "
        "copies of all channels do not; the width behind the merging is read by a norm only",
    ),
    Entry(
        "attention over fewer positions",
        lambda: Pyramid(ReducedAttention),
        lambda: image(8),
        grows=(
            ("embed", None),
            ("merge", None),
            ("attention.0.q", 2),
            ("attention.1.q", 3),
            ("attention.1.q", 6),
            ("attention.*.sr", None),
        ),
        notes="the width of the stream is written for that of the convolution, and must stay heads times their size",
    ),
    Entry(
        "head size as a quotient",
        lambda: Pyramid(QuotientAttention),
        lambda: image(8),
        grows=(("embed", None), ("merge", None), ("attention.*.qkv", None)),
        notes="heads times their size must stay the stream's width, though that product stands nowhere",
    ),
    Entry(
        "perceiver",
        Perceiver,
        image,
        grows=(("ff.0", 44), ("embed", 18), ("to_q", 3), ("to_q", 8), ("to_out", 20)),
        notes="query and value sizes grow together, for key and value are equal chunks; the head and to_q read the "
        "latents beside the norm, so new channels carry the mean",
    ),
    Entry(
        "linear attention",
        LinearAttention,
        lambda: torch.randn(2, 5, 6),
        grows=(("embed", 20), ("q", 3), ("v", 8)),
        refused={"q": "contracted between two activations"},
        notes="elu + 1 of a zero is one: a wider query changes the function",
    ),
    Entry(
        "mixer",
        Mixer,
        image,
        grows=(("blocks.*.tokens.0", 20), ("blocks.*.channels.0", 52), ("stem", 24)),
        notes="the mixing over positions writes what is not linear in the channels, and no zeros, but copies of copies",
    ),
    Entry(
        "gmlp",
        GMLP,
        image,
        grows=(("stem", 24), ("fc1", 30)),
        notes="fc1's second half goes through gelu into the norm: neither centred nor zero, so by whole copies; the "
        "stream is read by mean and head beside the norm, which new channels with the mean allow",
    ),
)
