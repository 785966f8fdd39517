"""A language model on LSTMs."""

from __future__ import annotations

from torch import Tensor, nn

from growkit.config.models import LstmSettings
from growkit.models.conv import scaled
from growkit.models.tokens import check_tokens

__all__ = ["LSTM"]


class LSTM(nn.Module):
    """Embedding, LSTMs in a row, linear head; each token is predicted from those up to the one before it.

    Args:
        settings: sizes, and whether the head is tied to the embedding.
        input_shape: (T,), the length of a sequence.
        num_outputs: the size of the vocabulary.

    Raises:
        ModelError: the inputs are no sequences.
    """

    def __init__(self, settings: LstmSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        check_tokens(settings.name, input_shape)
        hidden = scaled(settings.hidden, settings.width)
        size = scaled(settings.embedding or settings.hidden, settings.width)
        self.embedding = nn.Embedding(num_outputs, size)
        self.layers = nn.ModuleList(
            nn.LSTM(hidden if number else size, hidden, batch_first=True) for number in range(settings.layers)
        )
        self.dropout = nn.Dropout(settings.dropout)
        self.head = nn.Linear(hidden, num_outputs)
        nn.init.normal_(self.embedding.weight, std=size**-0.5)
        if settings.tied:
            self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> scores of the next one [B, T, num_outputs]."""
        x = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            x = self.dropout(layer(x)[0])
        return self.head(x)
