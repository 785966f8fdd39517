"""Settings of the seed models for sequences of tokens."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from growkit.config.base import Fraction
from growkit.config.model_base import ModelSettings, Share, Width

__all__ = ["GptSettings", "LstmSettings", "Seq2seqSettings"]


class LstmSettings(ModelSettings):
    """A language model: embedding, LSTM (Hochreiter and Schmidhuber, 1997), linear head.

    hidden: units of each layer. layers: LSTMs in a row. embedding: its size; null is that of hidden. tied: the head
    uses the embedding's weights (Press and Wolf, 2017), for which both sizes must be equal. width: scales hidden and
    embedding. dropout: behind the embedding and each layer.
    """

    name: Literal["lstm"] = "lstm"
    hidden: Width = 128
    layers: Annotated[int, Field(ge=1)] = 1
    embedding: Width | None = None
    tied: bool = False
    width: Share = 1.0
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _fit(self) -> LstmSettings:
        if self.tied and self.embedding not in (None, self.hidden):
            raise ValueError(
                f"tied: true needs an embedding of the size of hidden {self.hidden}, got {self.embedding}; leave it out"
            )
        return self

    def full(self) -> LstmSettings:
        """The same network at width 1."""
        return self.model_copy(update={"width": 1.0})


class GptSettings(ModelSettings):
    """A decoder-only transformer (Radford et al., 2019): learnt positions, pre-norm, GELU, head tied to the embedding.

    size: of the residual stream, a multiple of heads. depth: blocks. width: scales the size of heads, and so the
    stream, and the MLPs (4 times the stream). mlp_width: narrows only the hidden layer of the MLPs. tied: the head uses
    the embedding's weights. dropout: behind the positions and each sublayer.
    """

    name: Literal["gpt"] = "gpt"
    size: Width = 128
    depth: Annotated[int, Field(ge=1)] = 4
    heads: Annotated[int, Field(ge=1)] = 4
    width: Share = 1.0
    mlp_width: Share = 1.0
    tied: bool = True
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _fit(self) -> GptSettings:
        _check_heads(self.size, self.heads)
        return self

    def full(self) -> GptSettings:
        """The same network at width 1, its MLPs too."""
        return self.model_copy(update={"width": 1.0, "mlp_width": 1.0})


class Seq2seqSettings(ModelSettings):
    """An encoder-decoder transformer (Vaswani et al., 2017), pre-norm, with learnt positions.

    size: of the residual streams, a multiple of heads. depth: blocks of the encoder, and of the decoder. width: scales
    the size of heads, and so the streams, and the MLPs (4 times the stream). mlp_width: narrows only the hidden layer
    of the MLPs. dropout: behind the positions and each sublayer.
    """

    name: Literal["seq2seq"] = "seq2seq"
    size: Width = 128
    depth: Annotated[int, Field(ge=1)] = 2
    heads: Annotated[int, Field(ge=1)] = 4
    width: Share = 1.0
    mlp_width: Share = 1.0
    dropout: Fraction = 0.0

    @model_validator(mode="after")
    def _fit(self) -> Seq2seqSettings:
        _check_heads(self.size, self.heads)
        return self

    def full(self) -> Seq2seqSettings:
        """The same network at width 1, its MLPs too."""
        return self.model_copy(update={"width": 1.0, "mlp_width": 1.0})


def _check_heads(size: int, heads: int) -> None:
    if size % heads:
        raise ValueError(f"size must be a multiple of heads, got {size} and {heads}")
