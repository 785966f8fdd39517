"""A forward that compares a width with an attribute, and gives it to no operation: the attribute changes along."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import growkit


class Checked(nn.Module):
    def __init__(self, check: Callable[[Checked, Tensor], object]):
        super().__init__()
        self.first, self.second, self.check = nn.Linear(5, 8), nn.Linear(8, 3), check
        self.dim, self.other, self.config = 8, 8, SimpleNamespace(hidden=8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.first(x))
        self.check(self, h)
        return self.second(h)


def asserts(model: Checked, h: Tensor) -> None:
    assert h.shape[-1] == model.dim, "wrong size"


def raises(model: Checked, h: Tensor) -> None:
    if h.size(-1) != model.dim:
        raise ValueError(f"expected {model.dim}")


def asserts_of_a_configuration(model: Checked, h: Tensor) -> None:
    torch._assert(h.shape[-1] == model.config.hidden, "wrong size")


def asserts_both(model: Checked, h: Tensor) -> None:
    assert h.shape[-1] == model.dim == model.config.hidden


def asserts_a_number(model: Checked, h: Tensor) -> None:
    assert h.shape[-1] == 8


def grown(check: Callable[[Checked, Tensor], object]) -> tuple[int, int, int]:
    torch.manual_seed(0)
    model, x = Checked(check), torch.randn(4, 5)
    (site,) = growkit.verify_sites(model, growkit.find_sites(model, x)).sites
    growkit.widen(model, site, 3)
    model(x)
    return model.dim, model.other, model.config.hidden


@pytest.mark.parametrize(
    ("check", "numbers"),
    [
        (asserts, (11, 8, 8)),
        (raises, (11, 8, 8)),
        (asserts_of_a_configuration, (8, 8, 11)),
        (asserts_both, (11, 8, 11)),
    ],
    ids=["assert", "raise", "configuration", "two of them"],
)
def test_the_attribute_changes_along_and_no_other(check, numbers: tuple[int, int, int]) -> None:
    assert grown(check) == numbers


def test_a_number_in_a_check_is_refused_with_its_line() -> None:
    model, x = Checked(asserts_a_number), torch.randn(4, 5)
    (refusal,) = growkit.verify_sites(model, growkit.find_sites(model, x)).refusals
    assert "AssertionError" in refusal.reason and str(refusal.location).endswith(
        f":{asserts_a_number.__code__.co_firstlineno + 1}"
    )
