"""What is compared: outputs that are computed, beside masks; what a forward keeps; outputs with gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.surgery import Observation, function_change
from growkit.surgery.recording import Recorded

Last = Callable[[Tensor], Tensor]


class Masked(nn.Module):
    """A policy whose illegal actions are masked."""

    def __init__(self, last: Last):
        super().__init__()
        self.first, self.second, self.head, self.last = nn.Linear(5, 8), nn.Linear(8, 10), nn.Linear(10, 4), last

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.second(torch.relu(self.first(x))))
        return self.last(self.head(h) * (1 + (h.shape[-1] - 10) * self.slope))

    slope = 0.0


def masked(value: float) -> Last:
    legal = torch.tensor([True, True, False, True])
    return lambda logits: logits.masked_fill(~legal, value)


LASTS: dict[str, Last] = {
    "masked by -1e9": masked(-1e9),
    "masked by the least number": masked(torch.finfo(torch.float32).min),
    "masked by infinity": masked(float("-inf")),
    "beside a constant": lambda logits: torch.cat([logits, torch.full((len(logits), 1), 1e6)], -1),
    "beside three": lambda logits: torch.cat([logits, torch.tensor([1e6, -1e5, 3e4]).expand(len(logits), 3)], -1),
}


@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS.keys())
def test_widths_before_masked_outputs_grow(last: Last) -> None:
    torch.manual_seed(0)
    model, x = Masked(last), torch.randn(6, 5)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    assert [site.name for site in verdict.sites] == ["first", "second"]
    assert growkit.widen(model, verdict.sites[0], 3).records[0].new_width == 11


@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS.keys())
def test_a_mask_does_not_hide_that_the_others_change(last: Last) -> None:
    torch.manual_seed(0)
    model, x = Masked(last), torch.randn(6, 5)
    model.slope = 1e-3
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    assert [site.name for site in verdict.sites] == ["first"]
    assert "changes the outputs" in verdict.refusals[0].reason


def test_a_mask_that_moves_is_a_change() -> None:
    before, after = torch.tensor([[1.0, float("-inf"), 2.0]]), torch.tensor([[1.0, 2.0, float("-inf")]])
    assert function_change(Observation([before], []), Observation([after], [])).eval == float("inf")
    assert function_change(Observation([before], []), Observation([before], [])).eval == 0.0


def test_numbers_that_are_none_are_never_the_same() -> None:
    outputs = torch.tensor([[1.0, float("nan")]])
    assert function_change(Observation([outputs], []), Observation([outputs], [])).eval == float("inf")


class Graph(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        return torch.sparse.mm(edges, self.second(torch.relu(self.first(x))))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr], ids=str)
def test_a_graph_network_grows_with_sparse_edges(layout: torch.layout) -> None:
    torch.manual_seed(0)
    model, example = Graph(), (torch.randn(6, 5), (torch.rand(6, 6) > 0.5).float().to_sparse(layout=layout))
    verdict = growkit.verify_sites(model, growkit.find_sites(model, example))
    assert [site.name for site in verdict.sites] == ["first"]
    assert growkit.widen(model, verdict.sites[0], 3).records[0].new_width == 11


class Keeps(nn.Module):
    """Notes something of its units for a later call."""

    def __init__(self, note: Callable[[Keeps, Tensor], object]):
        super().__init__()
        self.first, self.head, self.note = nn.Linear(5, 8), nn.Linear(8, 3), note
        self.register_buffer("power", torch.ones(1))
        self.mean, self.calls = 0.5, 0

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        outputs = self.head(h) * self.power.clone() + self.mean
        if self.training:
            self.note(self, h.detach())
        return outputs


def in_a_buffer(model: Keeps, h: Tensor) -> None:
    model.power.mul_(0.9).add_(0.1 * h.square().sum() / len(h) / h.shape[-1] ** 0.5)


def in_a_new_buffer(model: Keeps, h: Tensor) -> None:
    model.power = torch.full((1,), 1.0 / h.shape[-1])


def of_the_batch(model: Keeps, h: Tensor) -> None:
    model.calls += 1
    model.power.mul_(0.9).add_(0.1 * h.square().sum() / len(h))
    model.mean *= 0.9


@pytest.mark.parametrize("note", [in_a_buffer, in_a_new_buffer])
def test_what_a_forward_keeps_must_stay(note: Callable[[Keeps, Tensor], object]) -> None:
    torch.manual_seed(0)
    model, x = Keeps(note), torch.randn(6, 5)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    assert not verdict.sites and len(verdict.refusals) == 1


def test_what_it_keeps_of_the_units_sum_may_go_on() -> None:
    torch.manual_seed(0)
    model, x = Keeps(of_the_batch), torch.randn(6, 5)
    (site,) = growkit.verify_sites(model, growkit.find_sites(model, x)).sites
    edit = growkit.widen(model, site, 3)
    assert edit.records[0].new_width == 11 and float(model.power) == 1.0 and model.mean == 0.5 and model.calls == 0


class WithGradients(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.head(h / h.shape[-1] if torch.is_grad_enabled() else h)


def test_a_forward_that_does_otherwise_with_gradients_is_refused() -> None:
    torch.manual_seed(0)
    model, x = WithGradients(), torch.randn(6, 5)
    (refusal,) = growkit.verify_sites(model, growkit.find_sites(model, x)).refusals
    assert "where gradients are recorded" in refusal.reason


def test_a_comparison_without_calls_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(6, 5)
    (site,) = growkit.verify_sites(model, growkit.find_sites(model, x)).sites

    def no_mode(recorded: Recorded, model: nn.Module) -> list[Tensor]:
        raise NotImplementedError("no mode around this operation")

    monkeypatch.setattr(Recorded, "call", no_mode)
    with pytest.warns(UserWarning, match=r"only outputs are compared.*\(NotImplementedError\)"):
        growkit.widen(model, site, 2)
