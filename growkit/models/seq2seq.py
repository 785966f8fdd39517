"""A small encoder-decoder transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growkit.config.models import Seq2seqSettings
from growkit.errors import ModelError
from growkit.models.conv import scaled
from growkit.models.transformer import MLP_RATIO, Attention, Block, init_transformer, make_mlp

__all__ = ["DecoderBlock", "Seq2Seq"]


class DecoderBlock(nn.Module):
    """Causal attention, attention to the source and an MLP, each behind a LayerNorm and added to the stream.

    Args:
        size: of the residual stream.
        heads: of both attentions.
        hidden: of the MLP.
        dropout: behind attentions and MLP.
    """

    def __init__(self, size: int, heads: int, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(size), Attention(size, heads, causal=True)
        self.norm2, self.cross = nn.LayerNorm(size), Attention(size, heads)
        self.norm3, self.mlp = nn.LayerNorm(size), make_mlp(size, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, source: Tensor, mask: Tensor) -> Tensor:
        """[B, T, size], source [B, S, size] seen through mask [B, 1, 1, S] -> [B, T, size]."""
        x = x + self.dropout(self.attention(self.norm1(x)))
        x = x + self.dropout(self.cross(self.norm2(x), source, mask))
        return x + self.dropout(self.mlp(self.norm3(x)))


class Seq2Seq(nn.Module):
    """Encoder and decoder (Vaswani et al., "Attention is all you need", NeurIPS 2017), pre-norm, learnt positions.

    Args:
        settings: sizes, and how narrow it starts.
        input_shape: (2, T): source and target so far.
        num_outputs: the size of the vocabulary; its last token is padding.

    Raises:
        ModelError: the inputs are no pairs of sequences.
    """

    def __init__(self, settings: Seq2seqSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        if len(input_shape) != 2 or input_shape[0] != 2:
            raise ModelError(
                f"model 'seq2seq' needs pairs of token sequences [2, T], the data have inputs of shape "
                f"{list(input_shape)}; data 'text_pair' gives such"
            )
        heads, length = settings.heads, input_shape[1]
        size = heads * scaled(settings.size // heads, settings.width)
        hidden = scaled(MLP_RATIO * size, settings.mlp_width)
        shape = size, heads, hidden, settings.dropout
        self.padding = num_outputs - 1
        self.source, self.target = nn.Embedding(num_outputs, size), nn.Embedding(num_outputs, size)
        self.source_positions = nn.Parameter(torch.zeros(length, size))
        self.target_positions = nn.Parameter(torch.zeros(length, size))
        self.dropout = nn.Dropout(settings.dropout)
        self.encoder = nn.ModuleList(Block(*shape) for _ in range(settings.depth))
        self.decoder = nn.ModuleList(DecoderBlock(*shape) for _ in range(settings.depth))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(size), nn.LayerNorm(size)
        self.head = nn.Linear(size, num_outputs)
        init_transformer(self)

    def forward(self, tokens: Tensor) -> Tensor:
        """Source and target so far [B, 2, T] -> scores of each next token of the target [B, T, num_outputs]."""
        source, target = tokens.unbind(1)
        mask = (source != self.padding)[:, None, None]
        memory = self.dropout(self.source(source) + self.source_positions[: source.shape[1]])
        for block in self.encoder:
            memory = block(memory, mask)
        memory = self.encoder_norm(memory)
        x = self.dropout(self.target(target) + self.target_positions[: target.shape[1]])
        for block in self.decoder:
            x = block(x, memory, mask)
        return self.head(self.decoder_norm(x))
