"""Sizes that torch's own modules keep beside their weights, after growth."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from growkit import find_sites, widen
from growkit.graph import AttributeEdit
from growkit.surgery import Growth, Inputs, grow, verify_sites
from growkit.surgery.attributes import find_attribute_changes


class Block(nn.Module):
    """Torch's attention on a stream of 3 heads of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm, self.last, self.head = (
            nn.Linear(5, 12),
            nn.LayerNorm(12),
            nn.LayerNorm(12),
            nn.Linear(12, 4),
        )
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        return self.head(self.last(x + self.attention(y, y, y, need_weights=False)[0]).mean(1))


def test_one_more_head_keeps_the_size_of_the_others() -> None:
    torch.manual_seed(0)
    model, x = Block(), torch.randn(2, 7, 5)
    site = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).sites[0]
    edit = grow(model, [Growth(site, 1)])
    attention = model.attention
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (16, 4, 4)
    edit.undo()
    assert (attention.embed_dim, attention.num_heads, attention.head_dim) == (12, 3, 4)


def test_wider_heads_are_known_to_torchs_attention() -> None:
    edits = [AttributeEdit("attention", "embed_dim", 15)]
    changes = find_attribute_changes(Block(), edits, ["attention.in_proj_weight"])
    assert {(change.name, change.new) for change in changes} == {("embed_dim", 15), ("head_dim", 5)}


def test_a_layer_norm_without_weights_keeps_its_size_in_an_attribute_that_follows():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8, elementwise_affine=False), nn.Linear(8, 3))
    x = torch.randn(4, 5)
    (site,) = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).sites
    before = model(x)
    edit = widen(model, site, 8)
    assert model[1].normalized_shape == (16,)
    torch.testing.assert_close(model(x), before, rtol=0, atol=1e-6)
    edit.undo()
    assert model[1].normalized_shape == (8,)
