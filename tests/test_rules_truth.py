"""Every rule against the truth: the module is widened for real, and its outputs stay or the width was refused."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator

import pytest
import torch
from rule_cases import CASES
from rule_cases.kit import ByCopies
from torch import Tensor, nn

from growkit.graph import GrowthSite, Sites, find_sites
from growkit.surgery import Extension, Growth, Inputs, Observation, function_change, grow, lookup, observe

# control flow reads the gradients of what it branches on
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True, scope="module")
def double_precision() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@functools.cache
def traced(name: str) -> tuple[nn.Module, Tensor, Sites]:
    """The module with every weight and statistic perturbed, so that no check is empty."""
    torch.manual_seed(0)
    model, example = CASES[name].make(), CASES[name].example()
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data += 0.1 + 0.1 * torch.rand_like(tensor)
    return model, example, find_sites(model, example)


def random_entries(model: nn.Module, site: GrowthSite, num_new: int, *, silent: bool) -> Extension:
    """Random new entries in all tensors of a site, but along dimensions that must be silent."""
    values = {}
    for edit in site.tensor_edits(num_new):
        for dim, index in enumerate(edit.index_maps):
            if index is None or (silent and (edit.pass_through or dim in edit.silent_dims)):
                continue
            shape = list(lookup(model, edit.names[0], edit.kind).shape)
            shape[dim] = int((index < 0).sum())
            values[edit.names[0], dim] = 0.5 + torch.rand(shape)
    return Extension(values)


def units(sites: list[GrowthSite]) -> list[tuple[GrowthSite, int]]:
    return [(site, site.width if site.by_copies else 2) for site in sites]


def change(model: nn.Module, before: list[Observation], sites: list[GrowthSite], batches: list[Inputs], **how) -> float:
    """How far the outputs move in either mode while the module is wider at some sites."""
    edit = grow(model, [Growth(site, num, random_entries(model, site, num, **how)) for site, num in units(sites)])
    try:
        after = [observe(model, batch) for batch in batches]
    finally:
        edit.undo()
    return max(function_change(*pair).worst for pair in zip(before, after, strict=False))


@pytest.mark.parametrize("name", CASES)
def test_the_widths_are_those_expected(name: str) -> None:
    sites = traced(name)[2]
    expected = CASES[name].expected
    by_units = {site.name: site.width for site in sites if not site.by_copies}
    assert by_units == {k: v for k, v in expected.items() if isinstance(v, int)}
    by_copies = {site.name: site.copied_because for site in sites if site.by_copies}
    assert by_copies.keys() == {k for k, v in expected.items() if isinstance(v, ByCopies)}
    reasons = by_copies | {refusal.name: refusal.reason for refusal in sites.refusals}
    for width, reason in expected.items():
        if isinstance(reason, str):
            assert reason in reasons.get(width, "no refusal"), reasons


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.accepts])
def test_what_is_accepted_keeps_the_function(name: str) -> None:
    torch.manual_seed(1)
    model, example, sites = traced(name)
    model = copy.deepcopy(model)
    batches = [Inputs((example,)), Inputs((example,)).one_more()]
    before = [observe(model, batch) for batch in batches]
    for site in sites:
        assert change(model, before, [site], batches, silent=True) <= 1e-12, site
        assert change(model, before, [site], batches[:1], silent=False) > 1e-6, f"{site}: the check cannot fail"
    assert len(sites) < 2 or change(model, before, list(sites), batches, silent=True) <= 1e-12
