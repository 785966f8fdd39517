"""Where a plausible rule would be wrong: shifted slices, numbers in the code, parameters that divide."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.graph import GrowthSite, TensorEdit, find_sites
from growkit.surgery import Inputs, verify_sites


class Between(nn.Module):
    """`b(idiom(a(x)))`."""

    def __init__(self, idiom: Callable[[Tensor], Tensor], width: int = 8):
        super().__init__()
        self.idiom, self.a = idiom, nn.Linear(6, width)
        self.b = nn.Linear(idiom(torch.zeros(2, width)).shape[-1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.idiom(self.a(x)))


class Images(nn.Module):
    def __init__(self, idiom: Callable[[Tensor], Tensor]):
        super().__init__()
        self.idiom, self.a, self.b = idiom, nn.Conv2d(3, 8, 3), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.idiom(self.a(x))).mean((2, 3))


def example(model: nn.Module) -> Tensor:
    return torch.randn(4, 6) if isinstance(model, Between) else torch.randn(4, 3, 6, 6)


def site_of(model: nn.Module, name: str = "a") -> GrowthSite:
    return find_sites(model, example(model))[name]


def edit_of(site: GrowthSite, tensor: str, num_new: int = 1) -> TensorEdit:
    return next(edit for edit in site.tensor_edits(num_new) if edit.names[0] == tensor)


@pytest.mark.parametrize(
    "model",
    [
        Images(lambda h: F.channel_shuffle(h, 2)),
        Images(lambda h: h.view(h.shape[0], 2, -1, 4, 4).transpose(1, 2).flatten(1, 2)),
        Between(lambda h: h / h.shape[1]),
        Between(lambda h: h * h.shape[1] ** -0.5),
        Between(lambda h: h[:, :4] + h[:, 4:]),
        Between(lambda h: F.softmax(h.view(-1, 2, 4), 1).flatten(1)),
    ],
    ids=["shuffle", "shuffle_by_hand", "size_as_factor", "root_of_size", "halves", "view"],
)
def test_a_number_that_does_not_follow_is_found_by_the_trial(model):
    """What the code computes from a size, or writes as a number, a trace cannot show: the widened copy does."""
    torch.manual_seed(0)
    x = example(model)
    sites = list(find_sites(model, x))
    unsafe = {refusal.name for refusal in verify_sites(model, sites, Inputs((x,))).refusals}
    assert "a" in unsafe


@pytest.mark.parametrize("shift", [1, 2])
@pytest.mark.parametrize("width", [64, 2048])
def test_neighbouring_units_are_compared_at_any_width(width, shift):
    model = Between(lambda h: h[:, shift:] - h[:, :-shift], width)
    refusals = find_sites(model, example(model)).refusals
    assert any(refusal.reason == "meets itself shifted by some units" for refusal in refusals)


def test_new_channels_of_a_padded_shortcut_stand_before_the_padding_behind():
    model = Between(lambda h: F.pad(h, (2, 1)))
    edit = edit_of(site_of(model), "b.weight", 2)
    assert edit.index_maps[1].tolist() == [*range(10), -1, -1, 10]


@pytest.mark.parametrize(
    ("copies", "columns"),
    [
        (lambda h: h.repeat(1, 2), [*range(8), -1, *range(8, 16), -1]),
        (lambda h: h.repeat_interleave(2, 1), [*range(16), -1, -1]),
        (lambda h: torch.kron(h, torch.ones(1, 2)), [*range(16), -1, -1]),
        (lambda h: torch.stack([h, h.tanh()], 2).flatten(1), [*range(16), -1, -1]),
    ],
    ids=["repeat", "repeat_interleave", "kron", "stack"],
)
def test_every_copy_of_a_width_grows_in_its_place(copies, columns):
    assert edit_of(site_of(Between(copies)), "b.weight").index_maps[1].tolist() == columns


def test_weight_norm_gives_new_rows_a_length_of_their_own():
    model = Between(torch.tanh)
    model.b = nn.utils.parametrizations.weight_norm(nn.Linear(8, 5))
    model = nn.Sequential(model, nn.Linear(5, 2))
    sites = find_sites(model, torch.randn(4, 6))
    length, direction = (f"0.b.parametrizations.weight.original{i}" for i in range(2))
    into, out_of = sites["0.a"], sites["0.b"]
    assert edit_of(into, direction).silent_dims == (1,)
    assert edit_of(out_of, direction).silent_dims == ()
    assert (edit_of(out_of, length).pass_through, edit_of(out_of, length).neutral) == (True, 1.0)


def test_a_parameter_that_divides_is_never_extended_by_zero():
    class Divided(Between):
        def __init__(self) -> None:
            super().__init__(torch.tanh)
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x: Tensor) -> Tensor:
            return self.b((self.a(x) + self.scale) / self.scale.square())

    assert edit_of(site_of(Divided()), "scale").neutral == 1.0


def test_an_unknown_function_is_called_by_its_name():
    model = Between(lambda h: torch.vmap(torch.sin)(h))
    reasons = [refusal.reason for refusal in find_sites(model, example(model)).refusals]
    assert "meets an operation without a rule: _add_batch_dim" in reasons
