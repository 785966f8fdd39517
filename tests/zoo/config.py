"""Sizes of the language models, in one dataclass as is the custom."""

from __future__ import annotations

from dataclasses import dataclass

VOCABULARY = 61


@dataclass
class Config:
    vocab_size: int = VOCABULARY
    hidden_size: int = 48
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    intermediate_size: int = 72
    num_hidden_layers: int = 2
    max_positions: int = 16
    eps: float = 1e-6
    dropout: float = 0.1
