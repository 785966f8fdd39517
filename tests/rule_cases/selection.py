"""Entries picked, sorted, written and added to: the position of an entry matters."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rule_cases.kit import image, pair, tokens, tokens2, vector, weight

PICKED, WRITTEN = "has single entries picked from it", "has single entries written to it"
WHOLE, SIZE = "is taken as a whole by", "depends on the data in size"


def _order(name: str) -> str:
    return f"has its entries rearranged by {name}"


def _first(h: Tensor, *at: int) -> Tensor:
    """Positions for every sample and channel."""
    return torch.tensor(at)[None, :, None].expand(h.shape[0], -1, h.shape[2])


SELECTIONS = {
    "select": tokens(lambda m, h: h[:, -1], 8),
    "select_width": vector(lambda m, h: h[:, :1] * h[:, 3:4], PICKED),
    "unbind": tokens(lambda m, h: sum(h.unbind(1)), 8),
    "roll": vector(lambda m, h: h.roll(1, 1), _order("roll")),
    "roll_positions": tokens(lambda m, h: h.roll(1, 1), 8),
    "roll_flat": vector(lambda m, h: h.roll(1), "meets a form of aten.roll"),
    "flip": vector(lambda m, h: h.flip(1), _order("flip")),
    "flip_image": image(lambda m, h: h.flip(2, 3), 8),
    "fliplr": vector(lambda m, h: torch.fliplr(h), _order("fliplr")),
    "rot90": image(lambda m, h: torch.rot90(h, 1, (2, 3)), 8),
    "cumsum": vector(lambda m, h: h.cumsum(1), _order("cumsum")),
    "cumsum_positions": tokens(lambda m, h: h.cumsum(1).cumprod(1), 8),
    "cummax": vector(lambda m, h: h.cummax(1)[0], _order("cummax")),
    "cummax_positions": tokens(lambda m, h: h.cummax(1)[0] + h.cummin(1)[0], 8),
    "logcumsumexp": vector(lambda m, h: h.logcumsumexp(1), _order("logcumsumexp")),
    "diff": vector(lambda m, h: h.diff(dim=1), _order("diff")),
    "diff_positions": tokens(lambda m, h: h.diff(dim=1), 8),
    "diff_prepended": tokens(lambda m, h: h.diff(dim=1, prepend=h[:, :1]), "meets a form of aten.diff"),
    "sort": vector(lambda m, h: h.sort(1)[0], _order("sort")),
    "sort_positions": tokens(lambda m, h: h.sort(1)[0] + h.msort(), 8),
    "argsort": vector(lambda m, h: h.argsort(1).to(h.dtype), _order("argsort")),
    "topk": vector(lambda m, h: h.topk(3, 1)[0], _order("topk")),
    "topk_positions": tokens(lambda m, h: h.topk(3, 1)[0], 8),
    "index_select": vector(lambda m, h: h.index_select(1, torch.tensor([1, 0])), _order("index_select")),
    "index_positions": tokens(lambda m, h: h[:, torch.tensor([2, 0])], 8),
    "index_width": vector(lambda m, h: h[:, torch.tensor([1, 0, 2])], PICKED),
    "index_two": tokens(lambda m, h: h[torch.arange(4), torch.tensor([0, 1, 2, 3])], 8),
    "index_apart": image(lambda m, h: h[torch.arange(4), :, torch.tensor([0, 1, 2, 3])].mean(2), 8),
    "index_by_argmax": tokens(
        lambda m, h: h[torch.arange(len(h)), m.w(h).argmax(1)[:, 0]], 8, w=lambda: nn.Linear(8, 1),
    ),
    "index_by_mask": tokens(lambda m, h: h[m.mask].view(4, 2, -1), "meets rows whose number depends on the values",
                            mask=lambda: torch.tensor([[True, True, False, False, False]] * 4)),
    "index_table_by_width": vector(lambda m, h: m.t[h.long().clamp(0, 4)], {"a": PICKED}, t=weight(5)),
    "gather_width": vector(lambda m, h: h.gather(1, torch.zeros(4, 3, dtype=torch.long)), PICKED),
    "gather_positions": tokens(lambda m, h: h.gather(1, _first(h, 0, 3)), 8),
    "gather_fewer": tokens(lambda m, h: h.gather(1, torch.zeros(4, 2, 4, dtype=torch.long)), PICKED),
    "take_along": tokens(lambda m, h: torch.take_along_dim(h, torch.zeros(1, 2, 1, dtype=torch.long), 1), 8),
    "take_along_width": vector(lambda m, h: torch.take_along_dim(h, h.argsort(1), 1), _order("argsort")),
    "take": vector(lambda m, h: h.take(torch.arange(6).expand(4, -1)), f"{WHOLE} take"),
    "masked_select": vector(lambda m, h: h.masked_select(h > -100).view(4, -1), SIZE),
    "nonzero": vector(lambda m, h: h * h.nonzero().sum(), SIZE),
    "unique": vector(lambda m, h: h * h.unique().sum(), SIZE),
    "bucketize": vector(lambda m, h: torch.bucketize(h, torch.arange(8.0)).to(h.dtype), 8),
    "searchsorted": vector(lambda m, h: torch.searchsorted(torch.arange(8.0), h).to(h.dtype), 8),
    "isin": vector(lambda m, h: h * torch.isin(h.round(), torch.arange(8.0)), 8),
    "one_hot": tokens(lambda m, h: F.one_hot(h.argmax(1) % 3, 3).sum(2).to(h.dtype), 8),
    "tril": tokens(lambda m, h: h.tril(), f"{WHOLE} tril"),
    "tril_weight": vector(lambda m, h: F.linear(h, m.w.tril()), {"a": f"{WHOLE} tril"}, w=weight(5, 8)),
    "diagonal": tokens(lambda m, h: h.diagonal(dim1=1, dim2=2), f"{WHOLE} diagonal"),
    "diag_embed": vector(lambda m, h: torch.diag_embed(h).sum(1), f"{WHOLE} diag_embed"),
}  # fmt: skip


def _set_first(h: Tensor) -> Tensor:
    h = h * 1
    h[:, 0] = 0
    return h


def _set_step(h: Tensor) -> Tensor:
    h = h * 1
    h[:, ::2] = 0
    return h


def _add_front(m, h: Tensor) -> Tensor:
    h = h * 1
    h[:, : m.k] += h[:, m.k :].tanh()
    return h


def _set_token(m, h: Tensor, g: Tensor) -> Tensor:
    h = h * 1
    h[:, 1] = g[:, 0]
    return h


def _fill_halves(h: Tensor, g: Tensor) -> Tensor:
    out = h.new_zeros(h.shape[0], h.shape[1] + g.shape[1])
    out[:, : h.shape[1]] = h
    out[:, h.shape[1] :].copy_(g)
    return out


def _shift_some(m, h: Tensor) -> Tensor:
    """A part of the channels moves one step in time."""
    out = torch.zeros_like(h)
    out[:, :-1, : m.k] = h[:, 1:, : m.k]
    out[:, :, m.k :] = h[:, :, m.k :]
    return out


def _put(h: Tensor, *index, value) -> Tensor:
    h = h * 1
    h[index] = value
    return h


WRITES = {
    "set_first": vector(lambda m, h: _set_first(h), "is taken apart by number (select"),
    "set_step": vector(lambda m, h: _set_step(h), PICKED),
    "set_front": vector(_add_front, {"a": 4}, k=lambda: 4),
    "set_token": tokens2(_set_token, 8),
    "fill_halves": pair(lambda m, h, g: _fill_halves(h, g), {"a": 8, "c": 8}),
    "shift_some": tokens(_shift_some, {"a": 3, "a#2": 5}, k=lambda: 3),
    "constant_front": vector(lambda m, h: _put(h, slice(None), slice(0, 3), value=0.5), {"a": 3, "a#2": 5}),
    "put_rows": tokens(lambda m, h: _put(h, slice(None), torch.tensor([0, 2]), value=h[:, :2]), 8),
    "put_width": vector(lambda m, h: _put(h, slice(None), torch.tensor([0, 2]), value=h[:, :2] * 0.5), WRITTEN),
    "put_two": tokens(lambda m, h: _put(h, torch.tensor([0, 1]), torch.tensor([2, 3]), value=m.g), 8, g=weight(8)),
    "put_mask": tokens(
        lambda m, h: _put(h, m.mask, value=m.g), "meets a form of aten.index_put", g=weight(8),
        mask=lambda: torch.tensor([[True, True, False, False, False]] * 4),
    ),
    "index_fill": tokens(lambda m, h: h.index_fill(1, torch.tensor([0]), 0.5), 8),
    "index_fill_width": vector(lambda m, h: h.index_fill(1, torch.tensor([0]), 0.5), WRITTEN),
    "index_add": tokens2(lambda m, h, g: h.index_add(1, torch.tensor([0, 1]), g[:, :2]), 8),
    "index_add_width": pair(lambda m, h, g: h.index_add(1, torch.tensor([0, 1]), g[:, :2]), WRITTEN),
    "index_copy": tokens2(lambda m, h, g: h.index_copy(1, torch.tensor([0, 1]), g[:, :2]), 8),
    "scatter": tokens2(lambda m, h, g: h.scatter(1, _first(h, 0, 3, 1, 2, 4), g), 8),
    "scatter_width": vector(lambda m, h: h.scatter(1, h.argsort(1), h), _order("argsort")),
    "scatter_some": vector(lambda m, h: h.scatter(1, torch.zeros(4, 2, dtype=torch.long), 0.5), WRITTEN),
    "scatter_add": tokens2(lambda m, h, g: torch.zeros_like(h).scatter_add_(1, _first(h, 0, 3, 1, 1, 1), g), 8),
    "scatter_reduce": tokens2(lambda m, h, g: h.scatter_reduce(1, _first(h, 0, 3, 1, 1, 1), g, "amax"), 8),
    "masked_scatter": pair(lambda m, h, g: h.masked_scatter(h > 0, g), f"{WHOLE} masked_scatter"),
    "select_scatter": tokens2(lambda m, h, g: h.select_scatter(g[:, 0], 1, 2), 8),
    "slice_scatter": pair(lambda m, h, g: h.slice_scatter(m.w(g), 1, 0, m.k), {"a": 3, "a#2": 5, "c": 8}, k=lambda: 3,
                          w=lambda: nn.Linear(8, 3)),
    "fill_diagonal_": tokens(lambda m, h: (h[0] * 1).fill_diagonal_(0)[None] + h, f"{WHOLE} fill_diagonal_"),
    "tril_": tokens(lambda m, h: (h * 1).tril_(), f"{WHOLE} tril_"),
    "add_": pair(lambda m, h, g: (h * 1).add_(g).mul_(g), 8),
    "copy_": pair(lambda m, h, g: torch.empty_like(h).copy_(g) * h, 8),
    "zero_": vector(lambda m, h: h + (h * 1).zero_(), 8),
    "resized_in_place": tokens(lambda m, h: (h * 1).transpose_(1, 2).transpose_(1, 2).squeeze_(), 8),
}  # fmt: skip
