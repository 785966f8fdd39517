"""What a refusal says: the cause in the user's own line, and the remedy."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from growkit import find_sites, widen
from growkit.errors import GrowthRefused, ModelError
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


class Scaled(Hidden):
    """The outputs depend on the width; what is reshaped follows it."""

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.second(hidden.reshape(len(x), 1, hidden.shape[-1])[:, 0] * hidden.shape[-1] ** -0.5)


class Narrow(Hidden):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x))
        assert hidden.shape[-1] == 8, "too wide"
        return self.second(hidden)


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head, self.packs = nn.LSTM(4, 8, batch_first=True), nn.Linear(8, 3), True

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True) if self.packs else x
        return self.head(self.lstm(packed)[1][0][-1])


class Quarter(nn.Module):
    """Keeps a quarter of a width."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.first, self.second = 2, nn.Linear(5, 8 * 3), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).view(-1, self.base * 4, 3).mean(2))


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


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Scaled, "widening it changes the outputs by"),
        (Narrow, "the model fails at another width: AssertionError: too wide"),
    ],
)
def test_a_line_is_not_blamed_for_a_number_that_follows_the_width(kind: type[nn.Module], reason: str) -> None:
    model, x = kind(), torch.randn(3, 5)
    (refusal,) = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).refusals
    assert refusal.reason.startswith(reason)


def test_nobody_is_told_to_edit_the_attention_of_torch() -> None:
    model, x = nn.TransformerEncoderLayer(8, 2, 16, 0.0, batch_first=True), torch.randn(2, 5, 8)
    refusals = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).refusals
    assert [one.name for one in refusals] == ["self_attn", "self_attn#2"]
    assert all("must equal embed_dim" in one.reason and "write -1" not in one.reason for one in refusals)


def test_frozen_weights_that_silence_new_units_are_named() -> None:
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2).requires_grad_(False)), torch.randn(3, 4)
    (refusal,) = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).refusals
    assert "'2.weight' is frozen" in refusal.reason


def test_an_attribute_that_cannot_follow_a_width_is_named_with_what_it_holds() -> None:
    model, x = Quarter(), torch.randn(3, 5)
    (refusal,) = verify_sites(model, list(find_sites(model, x)), Inputs((x,))).refusals
    assert "'base' of the model holds 1/4 of the width of 'first'" in refusal.reason


def test_packed_sequences_are_named_and_the_remedy_serves() -> None:
    model, example = Packed(), (torch.randn(3, 5, 4), torch.tensor([5, 4, 2]))
    with pytest.raises(ModelError, match=rf"at {__file__}:{line_of(Packed, 2)}: the sizes in a packed") as told:
        find_sites(model, example)
    assert "unbacked" not in str(told.value) and "self.packs" in str(told.value)
    model.packs = False
    sites = find_sites(model, example)
    model.packs = True
    widen(model, sites["lstm"], 2)
    assert model.lstm.hidden_size == 10


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
