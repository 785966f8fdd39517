"""Views, orders, concatenations, copies and splits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from rule_cases.kit import image, pair, series, tokens, tokens2, vector, weight

SHIFTED = "meets itself shifted by some units"
CUT = "is what an uneven split leaves over"

VIEWS = {
    "view": vector(lambda m, h: h.view(len(h), m.k, -1).flatten(1), {"a": 2, "a#2": 4}, k=lambda: 2),
    "unflatten": vector(
        lambda m, h: h.unflatten(1, (m.k, -1)).transpose(1, 2).flatten(1), {"a": 2, "a#2": 4}, k=lambda: 2,
    ),
    "view_as": pair(lambda m, h, g: h.view_as(g) * g, 8),
    "reshape_as": pair(lambda m, h, g: h.reshape_as(g) + g, 8),
    "ravel": vector(lambda m, h: h.ravel().view(len(h), -1), 8),
    "squeeze_all": vector(lambda m, h: h[:, None, :, None].squeeze(), 8),
    "squeeze_dims": vector(lambda m, h: h[:, None, :, None].squeeze((1, 3)), 8),
    "unsqueeze_": vector(lambda m, h: (h * 1).unsqueeze_(1).squeeze_(1), 8),
    "atleast_3d": vector(lambda m, h: torch.atleast_3d(h).squeeze(-1), 8),
    "flatten_image": image(lambda m, h: h.flatten(1), 8),
    "permute": image(lambda m, h: h.permute(0, 2, 3, 1).mean((1, 2)), 8),
    "movedim": image(lambda m, h: h.movedim((1, 2), (-1, 1)).mean((1, 2)), 8),
    "moveaxis": image(lambda m, h: h.moveaxis(1, -1).mean((1, 2)), 8),
    "swapaxes": series(lambda m, h: h.swapaxes(1, 2).swapdims(1, 2), 8),
    "transposes": tokens(lambda m, h: h.mT.mH.transpose(1, 2).transpose_(1, 2), 8),
    "numpy_T": vector(lambda m, h: h.T.t().adjoint().T, 8),
    "channels_last": image(lambda m, h: h.contiguous(memory_format=torch.channels_last), 8),
    "pixel_shuffle": image(lambda m, h: F.pixel_shuffle(h, 2), {"a": 2}),
    "pixel_unshuffle": image(lambda m, h: F.pixel_unshuffle(h, 2), 8),
    "channel_shuffle": image(lambda m, h: F.channel_shuffle(h, m.k), {"a": 2, "a#2": 4}, k=lambda: 2),
    "view_dtype": vector(lambda m, h: h.view(torch.int64).view(torch.float64), "is taken as a whole by view"),
    "as_strided": vector(lambda m, h: h.as_strided((4, 4), (8, 1)), "is taken as a whole by as_strided"),
}  # fmt: skip

JOINS = {
    "cat": pair(lambda m, h, g: torch.cat([h, g], 1), {"a": 8, "c": 8}),
    "cat_twice": vector(lambda m, h: torch.cat([h, h.tanh()], 1), 8),
    "cat_with_one": vector(lambda m, h: torch.cat([h, m.w(h)], 1), 8, w=lambda: nn.Linear(8, 1)),
    "cat_with_nothing": vector(lambda m, h: torch.cat([h.new_zeros(0), h], 1), 8),
    "cat_in_loop": vector(lambda m, h: torch.cat([torch.cat([h, h.relu()], 1), h], 1), 8),
    "cat_over_positions": tokens2(lambda m, h, g: torch.cat([h, g], 1), 8),
    "stack": pair(lambda m, h, g: torch.stack([h, g], 1).flatten(1), 8),
    "stack_sum": pair(lambda m, h, g: torch.stack([h, g]).sum(0), 8),
    "hstack": pair(lambda m, h, g: torch.hstack([h, g]), {"a": 8, "c": 8}),
    "vstack": pair(lambda m, h, g: torch.vstack([h, g]), 8),
    "dstack": pair(lambda m, h, g: torch.dstack([h, g]).flatten(1), 8),
    "column_stack": pair(
        lambda m, h, g: torch.column_stack([h, g, h[:, 0]]), {"a": "is taken apart by number", "c": 8},
    ),
    "broadcast_tensors": vector(lambda m, h: torch.mul(*torch.broadcast_tensors(h, h.new_ones(1, 1))), 8),
    "meshgrid": vector(
        lambda m, h: torch.stack([torch.mul(*torch.meshgrid(r, m.g, indexing="ij")).sum(1) for r in h]), 8,
        g=lambda: torch.arange(3.0),
    ),
    "repeat": vector(lambda m, h: h.repeat(1, 3), 8),
    "repeat_batch": vector(lambda m, h: h.repeat(2, 1, 1).sum(0), 8),
    "tile": vector(lambda m, h: h.tile(2), 8),
    "repeat_interleave": vector(lambda m, h: h.repeat_interleave(2, 1), 8),
    "repeat_interleave_by_tensor": vector(
        lambda m, h: h.repeat_interleave(torch.tensor([1, 2, 1, 2, 1, 1, 1, 1]), 1)[:, :10],
        "depends on the data in size",
    ),
    "expand_gate": image(lambda m, h: h * m.w(h).expand(-1, h.shape[1], -1, -1), 8, w=lambda: nn.Conv2d(8, 1, 1)),
    "expand_as_gate": image(lambda m, h: h * m.w(h).expand_as(h), 8, w=lambda: nn.Conv2d(8, 1, 1)),
    "expand_token": tokens(
        lambda m, h: torch.cat([m.t.expand(h.shape[0], -1, -1), h], 1), 8, t=weight(1, 1, 8)
    ),
    "shared_heads": tokens2(
        lambda m, h, g: h * m.w(g).unflatten(2, (m.k, -1))[:, :, :, None].expand(-1, -1, -1, m.r, -1).flatten(2),
        {"a": 2, "a#2": 4, "c": 8}, w=lambda: nn.Linear(8, 2), k=lambda: 2, r=lambda: 4,
    ),
    "repeat_position": vector(lambda m, h: h + m.p.repeat(h.shape[0], 1), 8, p=weight(1, 8)),
    "ones": vector(lambda m, h: h * torch.ones(h.shape[1]), 8),
    "zeros_joined": vector(lambda m, h: torch.cat([h, torch.zeros(h.shape[0], 3)], 1), {"a": 8}),
    "full": vector(lambda m, h: h + torch.full((h.shape[1],), 0.3), 8),
    "arange": vector(lambda m, h: h + torch.arange(h.shape[1]), "is a size written in the forward (arange)"),
    "linspace": vector(
        lambda m, h: h + torch.linspace(0, 1, h.shape[1]), "is a size written in the forward (linspace)",
    ),
    "scalar_tensor": vector(lambda m, h: h * torch.tensor(0.5), 8),
    "constant": vector(lambda m, h: h + torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8]), "is the model's constant"),
    "pad_width": vector(lambda m, h: F.pad(h, (2, 1)), 8),
    "pad_option_a": image(
        lambda m, h: F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)) + m.w(h), 8, w=lambda: nn.Conv2d(8, 12, 1, 2)
    ),
    "pad_shifts": vector(lambda m, h: F.pad(h, (1, -1)), "is padded"),
    "crop": vector(lambda m, h: F.pad(h, (-1, -1)), "is padded"),
    "pad_circular_width": series(
        lambda m, h: F.pad(h.transpose(1, 2), (1, 1), mode="circular").transpose(1, 2), "is padded"
    ),
    "pad_reflect_width": series(
        lambda m, h: F.pad(h.transpose(1, 2), (1, 1), mode="reflect").transpose(1, 2), "is padded"
    ),
    "pad_positions": image(lambda m, h: F.pad(h, (1, 1, 1, 1), value=0.5), 8),
    "pad_replicate": image(lambda m, h: F.pad(h, (1, 1, 1, 1), mode="replicate"), 8),
}  # fmt: skip

SPLITS = {
    "chunk_used_apart": vector(
        lambda m, h: torch.add(*(w(part) for w, part in zip(m.w, h.chunk(2, 1), strict=True))), {"a": 4, "w.0": 5},
        w=lambda: nn.ModuleList([nn.Linear(4, 5), nn.Linear(4, 5)]),
    ),
    "chunk_uneven": vector(lambda m, h: torch.cat(h.chunk(3, 1)[::-1], 1), CUT),
    "chunk_first": vector(lambda m, h: h.chunk(2, 1)[0], {"a": 4}),
    "split": vector(lambda m, h: torch.mul(*h.split(h.shape[1] // 2, 1)), {"a": 4}),
    "split_rest": vector(lambda m, h: torch.cat(h.split(m.k, 1)[::-1], 1), {"a": 3}, k=lambda: 3),
    "split_sizes": vector(lambda m, h: torch.cat(h.split(m.ks, 1)[::-1], 1), {"a": 3, "a#2": 5}, ks=lambda: [3, 5]),
    "split_sizes_empty": vector(lambda m, h: torch.cat(h.split(m.ks, 1), 1), {"a": 8}, ks=lambda: [8, 0]),
    "tensor_split": vector(lambda m, h: torch.mul(*h.tensor_split(2, 1)), {"a": 4}),
    "tensor_split_uneven": vector(lambda m, h: torch.cat(h.tensor_split(3, 1)[::-1], 1), CUT),
    "tensor_split_at": vector(
        lambda m, h: torch.cat(h.tensor_split((m.k,), 1)[::-1], 1), {"a": 3, "a#2": 5}, k=lambda: 3,
    ),
    "hsplit": vector(lambda m, h: torch.mul(*torch.hsplit(h, 2)), {"a": 4}),
    "split_of_cat": pair(lambda m, h, g: torch.mul(*torch.cat([h, g], 1).chunk(2, 1)), 8),
    "split_across_cat": pair(
        lambda m, h, g: torch.mul(*torch.cat([h, g, h], 1).chunk(2, 1)), {"a": SHIFTED, "c": SHIFTED},
    ),
    "sum_in_groups": vector(lambda m, h: h.unflatten(1, (-1, 2)).sum(2), {"a": 4}),
    "softmax_in_groups": vector(lambda m, h: h.unflatten(1, (2, -1)).softmax(1).flatten(1), {"a": 4}),
    "chunk_of_product": vector(
        lambda m, h: torch.mul(*h.unflatten(1, (-1, 2)).flatten(1).chunk(2, 1)), {"a": 2, "a#2": 2},
    ),
    "all_differences": vector(lambda m, h: (h[:, :, None] - h[:, None]).relu().flatten(1), 8),
    "cat_both_ways": pair(lambda m, h, g: torch.cat([h, g], 1) + torch.cat([g, h], 1).tanh(), 8),
    "cat_misaligned": pair(
        lambda m, h, g: torch.cat([h, m.w(g)], 1) + torch.cat([m.w(g), h], 1).tanh(),
        {"a": SHIFTED, "c": 8}, w=lambda: nn.Linear(8, 5)
    ),
    "glu": vector(lambda m, h: F.glu(h, 1), {"a": 4}),
    "qkv": tokens(lambda m, h: (h.chunk(2, -1)[0] * h.chunk(2, -1)[1].sigmoid()), {"a": 4}),
    "shuffle_by_hand": image(
        lambda m, h: h.view(h.shape[0], m.k, -1, *h.shape[2:]).transpose(1, 2).reshape(h.shape[0], -1, *h.shape[2:]),
        {"a": 2, "a#2": 4}, k=lambda: 2,
    ),
    "slice_front": vector(lambda m, h: h[:, : m.k] * h[:, -m.k :], {"a": 4}, k=lambda: 4),
    "slice_behind": vector(lambda m, h: h[:, 3:], {"a": 5}),
    "slice_last": vector(lambda m, h: h[:, -m.k :], {"a": 2}, k=lambda: 2),
    "slice_far_start": vector(lambda m, h: h[:, -100 : m.k], {"a": 3}, k=lambda: 3),
    "slice_middle": vector(lambda m, h: h[:, 2:-2], {"a": 4}),
    "slice_steps": vector(lambda m, h: h[:, ::2], "has single entries picked from it"),
    "slice_neighbours": vector(lambda m, h: h[:, 1:] - h[:, :-1], SHIFTED),
    "narrow": vector(lambda m, h: h.narrow(1, 0, m.k), {"a": 4}, k=lambda: 4),
    "slice_everything": vector(lambda m, h: h[:, : m.k], 8, k=lambda: 8),
}  # fmt: skip
