"""What the transformers share: attention, the pre-norm block, initial weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

__all__ = ["MLP_RATIO", "Attention", "Block", "init_transformer", "make_mlp"]

MLP_RATIO = 4  # hidden units of an MLP, in sizes of the stream


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al., 2017); queries come from one sequence, keys and values from another or it.

    Args:
        size: of the residual stream.
        heads: number of heads; `size` is a multiple.
        causal: no position sees a later one.
    """

    def __init__(self, size: int, heads: int, causal: bool = False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.out = nn.Linear(size, size)

    def forward(self, x: Tensor, source: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """[B, T, size], and keys and values from source [B, S, size] -> [B, T, size].

        Args:
            x: where queries come from.
            source: where keys and values come from; None for `x`.
            mask: [B, 1, 1, S], true where a key may be seen; None for all.
        """
        source = x if source is None else source
        query, key, value = (
            layer(read).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, read in ((self.query, x), (self.key, source), (self.value, source))
        )
        found = scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=self.causal)
        return self.out(found.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to the stream.

    Args:
        size: of the residual stream.
        heads: of the attention.
        hidden: of the MLP.
        dropout: behind attention and MLP.
        causal: no position sees a later one.
    """

    def __init__(self, size: int, heads: int, hidden: int, dropout: float = 0.0, causal: bool = False):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size, eps=1e-6), Attention(size, heads, causal)
        self.norm2, self.mlp = nn.LayerNorm(size, eps=1e-6), make_mlp(size, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B, T, size] -> [B, T, size]; `mask` [B, 1, 1, T] is true where a token may be seen."""
        x = x + self.dropout(self.attention(self.norm1(x), mask=mask))
        return x + self.dropout(self.mlp(self.norm2(x)))


def make_mlp(size: int, hidden: int) -> nn.Sequential:
    """Linear, GELU, linear."""
    return nn.Sequential(nn.Linear(size, hidden), nn.GELU(), nn.Linear(hidden, size))


def init_transformer(model: nn.Module) -> None:
    """Draw weights in place from a normal distribution of deviation 0.02, cut at two; biases are 0."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding | nn.Conv2d):
            nn.init.trunc_normal_(module.weight, std=0.02, a=-0.04, b=0.04)
            if not isinstance(module, nn.Embedding) and module.bias is not None:
                nn.init.zeros_(module.bias)
    for name, parameter in model.named_parameters():
        if name.endswith(("class_token", "positions")):
            nn.init.trunc_normal_(parameter, std=0.02, a=-0.04, b=0.04)
