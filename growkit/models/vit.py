"""Vision transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growkit.config.models import PUBLISHED_VITS, VitSettings
from growkit.errors import ModelError
from growkit.models.conv import num_channels, scaled
from growkit.models.transformer import MLP_RATIO, Block, init_transformer

__all__ = ["ViT"]


class ViT(nn.Module):
    """ViT (Dosovitskiy et al., "An image is worth 16x16 words", ICLR 2021): class token, learnt positions, pre-norm.

    Args:
        settings: size, patch, and how narrow it starts.
        input_shape: (C, H, W).
        num_outputs: classes or regression targets.

    Raises:
        ModelError: the inputs are no images, or their sides no multiples of the patch.
    """

    def __init__(self, settings: VitSettings, input_shape: tuple[int, ...], num_outputs: int):
        super().__init__()
        channels, (height, width), patch = num_channels(settings.name, input_shape), input_shape[1:], settings.patch
        if height % patch or width % patch:
            raise ModelError(
                f"model 'vit' needs images whose sides are multiples of model.patch {patch}, got {height}x{width}"
            )
        full, depth, heads = PUBLISHED_VITS[settings.size]
        head_size = scaled(full // heads, settings.width)
        size = heads * head_size
        hidden = scaled(MLP_RATIO * size, settings.mlp_width)
        self.patches = nn.Conv2d(channels, size, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, size))
        self.positions = nn.Parameter(torch.zeros(1, 1 + (height // patch) * (width // patch), size))
        self.dropout = nn.Dropout(settings.dropout)
        self.blocks = nn.Sequential(
            *(Block(size, heads, hidden, settings.dropout) for _ in range(settings.depth or depth))
        )
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, num_outputs)
        init_transformer(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> outputs [B, num_outputs]."""
        patches = self.patches(x).flatten(2).transpose(1, 2)  # [B, patches, size]
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        tokens = self.blocks(self.dropout(tokens + self.positions))
        return self.head(self.norm(tokens[:, 0]))
