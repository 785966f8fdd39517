"""What a refusal says: the cause in the user's own line, and the remedy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from growkit import find_sites, widen
from growkit.errors import GrowthRefused
from growkit.surgery import Inputs, verify_sites


class Hidden(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 4)


class Written(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        hidden = hidden.view(-1, 8)
        return self.second(hidden)


class Softmax(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).softmax(-1))


class Picked(Hidden):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden) + hidden[:, :1] + hidden[:, 3, None]


def line_of(kind: type[nn.Module], number: int) -> int:
    return kind.forward.__code__.co_firstlineno + number


def test_a_size_written_in_a_view_is_reported_where_it_stands_with_the_remedy() -> None:
    model, x = Written(), torch.randn(2, 5)  # 2 x 12 entries fill rows of 8, so that the next line fails
    (refusal,) = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).refusals
    assert refusal.reason.startswith("view is given the number 8: write -1")
    assert refusal.location == f"{__file__}:{line_of(Written, 2)}"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Softmax, "softmax runs over it, and new entries would change its result"),
        (Picked, "is taken apart by number (select: x[0], x[1], ...)"),
    ],
)
def test_a_refusal_names_what_the_forward_does(kind: type[nn.Module], reason: str) -> None:
    refusals = find_sites(kind(), torch.randn(3, 5)).refusals
    assert reason in next(refusal.reason for refusal in refusals if refusal.name == "first")


def test_an_optimizer_with_factored_state_is_refused_with_a_remedy_for_it() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), torch.randn(3, 4)
    optimizer = torch.optim.Adafactor(model.parameters())
    model(x).sum().backward()
    optimizer.step()
    before = [parameter.clone() for parameter in model.parameters()]
    with pytest.raises(
        GrowthRefused, match=r"row_var.*in Adafactor; take one that keeps a number.*resize_state"
    ) as told:
        widen(model, find_sites(model, x)["0"], 2, optimizer=optimizer)
    assert "in the forward" not in str(told.value)
    assert all(torch.equal(now, then) for now, then in zip(model.parameters(), before, strict=True))
