"""Edits of weights that SAM's ascent has moved are refused."""

import pytest
import torch
from torch import nn

from growkit.errors import GrowthRefused
from growkit.graph import find_places
from growkit.optim.sam import SAM
from growkit.surgery import deepen, replay


def model_and_batch() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.randn(6, 4)


def ascended(model: nn.Module, x: torch.Tensor) -> SAM:
    sam = SAM(model.parameters(), torch.optim.SGD, lr=0.1, rho=0.05, model=model)
    model(x).square().sum().backward()
    sam.first_step(zero_grad=True)
    return sam


def test_an_insertion_is_not_undone_between_the_passes() -> None:
    model, x = model_and_batch()
    edit = deepen(model, find_places(model, x)["0"])
    sam = ascended(model, x)
    with pytest.raises(GrowthRefused, match="two passes of SAM"):
        edit.undo()
    assert len(model) == 5
    sam.restore()
    edit.undo()
    assert len(model) == 3


def test_records_are_not_replayed_between_the_passes() -> None:
    model, x = model_and_batch()
    edit = deepen(model, find_places(model, x)["0"])
    edit.undo()
    sam = ascended(model, x)
    with pytest.raises(GrowthRefused, match="two passes of SAM"):
        replay(model, edit.records)
    assert len(model) == 3 and sam.displaced
