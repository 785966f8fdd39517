"""A small decoder-only transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growkit.config.models import GptSettings
from growkit.models.conv import scaled
from growkit.models.tokens import check_tokens
from growkit.models.transformer import MLP_RATIO, Block, init_transformer

__all__ = ["GPT"]


class GPT(nn.Module):
    """A language model (Radford et al., "Language models are unsupervised multitask learners", 2019).

    Args:
        settings: sizes, and how narrow it starts.
        input_shape: (T,), the length of a sequence.
        num_outputs: the size of the vocabulary.

    Raises:
        ModelError: the inputs are no sequences.
    """

    def __init__(self, settings: GptSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        length = check_tokens(settings.name, input_shape)
        heads = settings.heads
        size = heads * scaled(settings.size // heads, settings.width)
        hidden = scaled(MLP_RATIO * size, settings.mlp_width)
        self.embedding = nn.Embedding(num_outputs, size)
        self.positions = nn.Parameter(torch.zeros(length, size))
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.Sequential(
            *(Block(size, heads, hidden, settings.dropout, causal=True) for _ in range(settings.depth))
        )
        self.norm = nn.LayerNorm(size)
        self.head = nn.Linear(size, num_outputs, bias=False)
        init_transformer(self)
        if settings.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> scores of the next one [B, T, num_outputs]; shorter sequences than in training will do."""
        x = self.dropout(self.embedding(tokens) + self.positions[: tokens.shape[1]])
        return self.head(self.norm(self.blocks(x)))
