"""The zoo: modules as users write them, grown wherever growkit accepts it and compared with an independent truth."""

from __future__ import annotations

import fnmatch
import functools
import gc
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from zoo import ZOO, Entry
from zoo.truth import Doubled, call, change, doubled, kept, larger, leaves_of, perturbed_twin, photograph, run

import growkit
from growkit.graph import GrowthSite, Refusal, Sites
from growkit.surgery import Edit, Extension, Growth, grow

EXACT = 1e-9

NOT_YET: dict[str, tuple[str, ...]] = {
    # remedies: products of gathered features, joint head sizes
    "dlrm": ("emb_l.* 8",),
    "graph attention": ("lin 6",),
    # rules: sizes that depend on data, products of weights, parts of a width
    "lstm tagger, packed": ("embedding 12", "lstm 9", "hidden2tag.0 15"),
    "routed experts": ("experts.*.w1 12", "embed 10"),
    "lora": ("first.lora_B 12",),
    "in place on views": ("b 9",),
}
"""What a perfect tool would do and growkit does not yet: entry -> expectations, as `expectations` writes them."""


def verify(model: nn.Module, sites: Sites, example: Any) -> tuple[list[GrowthSite], list[Refusal]]:
    """The sites that growkit stands by, and all refusals."""
    early = list(sites.refusals)
    verdict = growkit.verify_sites(model, sites, example=example)
    return list(verdict.sites), [*early, *verdict.refusals]


@dataclass
class Case:
    """An entry after analysis."""

    entry: Entry
    model: nn.Module
    example: Any
    other: Any
    sites: list[GrowthSite]
    refusals: list[Refusal]
    before: dict[str, Any]
    after: dict[str, Any]


@functools.cache
def analysed(name: str) -> Case:
    entry = ZOO[name]
    torch.manual_seed(0)
    model, example = entry.build(), entry.example()
    before = photograph(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # torch's draft_export leaves a log open
        try:
            accepted, refusals = verify(model, growkit.find_sites(model, example), example)
        except growkit.ModelError as error:  # only where NOT_YET says so: then nothing grows
            accepted, refusals = [], [Refusal("", 0, str(error), None)]
        gc.collect()
    after = photograph(model)
    torch.manual_seed(1)
    return Case(entry, model, example, entry.example(), accepted, refusals, before, after)


def random_units(
    model: nn.Module, site: GrowthSite, num_new: int, generator: torch.Generator, *, wrong: bool = False
) -> Extension:
    """Gaussian new slices wherever the site does not demand zeros; with `wrong` there too."""
    tensors = dict(model.named_parameters(remove_duplicate=False))
    values: dict[tuple[str, int], Tensor] = {}
    for edit in site.tensor_edits(num_new):
        if edit.kind != "parameter" or (edit.pass_through and not (wrong and edit.silent_dims)):
            continue
        for dim, index in enumerate(edit.index_maps):
            if index is not None and (wrong or dim not in edit.silent_dims):
                shape = list(tensors[edit.names[0]].shape)
                shape[dim] = int((index < 0).sum())
                values[edit.names[0], dim] = 0.3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return Extension(values)


def possible(site: GrowthSite, wished: int) -> int:
    """So many units, or copies of all where a site grows by whole copies."""
    return wished * site.grows_by


@contextmanager
def widened(
    model: nn.Module, orders: Sequence[tuple[GrowthSite, int]], seed: int, *, wrong: bool = False
) -> Iterator[Edit]:
    """The model with sites widened in one event, inside the block only."""
    generator = torch.Generator().manual_seed(seed)
    growths = [
        Growth(site, num, random_units(model, site, num, generator, wrong=wrong), remedied=not wrong)
        for site, num in orders
    ]
    edit = grow(model, growths)
    try:
        yield edit
    finally:
        edit.undo()


class Truth:
    """What the twin of a model computes, on three batches in both modes."""

    def __init__(self, case: Case):
        self.twin = perturbed_twin(case.model)
        batches = [doubled(case.example), doubled(case.other), larger(doubled(case.example), doubled(case.other))]
        self.known: list[tuple[Any, bool, list[Any]]] = []
        for batch in batches:
            for training in (False, True):
                try:
                    self.known.append((batch, training, run(self.twin, batch, training=training)))
                except Exception:
                    assert batch is batches[-1]  # a model may be bound to one size of batch

    def error(self) -> float:
        """How far the twin is now from what it computed at first."""
        return max(change(known, run(self.twin, batch, training=mode)) for batch, mode, known in self.known)

    def gradients(self, edit: Edit) -> dict[str, float]:
        """For each site of an edit the largest gradient of a new entry; NaN where one is not finite."""
        self.twin.zero_grad()
        with kept(self.twin), torch.random.fork_rng(), Doubled():
            torch.manual_seed(2)
            self.twin.train()
            leaves = leaves_of(call(self.twin, self.known[0][0]))
            outputs = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()]
            torch.stack([(out * torch.randn(out.shape, dtype=out.dtype)).sum() for out in outputs]).sum().backward()
        parameters = dict(self.twin.named_parameters(remove_duplicate=False))
        found = {record.site: 0.0 for record in edit.records}
        for record in edit.records:
            for one in record.tensors:
                parameter = parameters.get(one.names[0])
                if parameter is None or parameter.grad is None:
                    continue
                for dim, index in enumerate(one.index_maps):
                    if index is not None and len(index) == parameter.shape[dim]:
                        new = parameter.grad.index_select(dim, torch.from_numpy((index < 0).nonzero()[0]))
                        found[record.site] = max(found[record.site], float(new.abs().max()))
        self.twin.zero_grad()
        return found


def entries(names: Sequence[str] = tuple(ZOO)) -> list[Any]:
    return [pytest.param(name, marks=[pytest.mark.slow] if ZOO[name].slow else []) for name in names]


@pytest.mark.parametrize("name", entries())
def test_analysis_leaves_the_model_as_it_was(name: str) -> None:
    case = analysed(name)
    assert case.after == case.before


@pytest.mark.parametrize("name", entries())
def test_every_accepted_width_keeps_the_function_and_learns(name: str) -> None:
    case = analysed(name)
    truth = Truth(case)
    assert truth.error() == 0.0
    before = photograph(truth.twin)
    for number, site in enumerate(case.sites):
        errors, reached = [], 0.0
        for draw in range(4):  # a unit of a ReLU may be silent on a small batch
            with widened(truth.twin, [(site, possible(site, 1 + (number + draw) % 3))], seed=draw) as edit:
                errors.append(truth.error())
                reached = max(reached, *truth.gradients(edit).values())
            if reached:
                break
        assert photograph(truth.twin) == before, site
        assert max(errors) <= EXACT, (site, errors)
        assert 0.0 < reached < float("inf"), site


@pytest.mark.parametrize("name", entries())
def test_the_truth_notices_an_edit_that_silences_nothing(name: str) -> None:
    case = analysed(name)
    truth = Truth(case)
    for site in case.sites:
        errors = []
        for draw in range(4):
            with widened(truth.twin, [(site, possible(site, 3))], seed=draw, wrong=True):
                errors.append(truth.error())
            if errors[-1] > 1e-6:
                break
        assert errors[-1] > 1e-6, (site, errors)


@pytest.mark.parametrize("name", entries())
def test_accepted_widths_keep_the_function_together_and_one_after_the_other(name: str) -> None:
    case = analysed(name)
    truth, chance = Truth(case), random.Random(0)
    before = photograph(truth.twin)
    for seed in range(2):
        some = chance.sample(case.sites, chance.randint(min(2, len(case.sites)), len(case.sites)))
        if not some:
            continue
        orders = [(site, possible(site, chance.randint(1, 4))) for site in some]
        events = [orders] if seed == 0 else [[one] for one in orders]
        with ExitStack() as edits:  # taken back last first
            for event in events:
                edits.enter_context(widened(truth.twin, event, seed))
            assert truth.error() <= EXACT, orders
        assert photograph(truth.twin) == before


def expectations() -> Iterator[Any]:
    for name, entry in ZOO.items():
        for where, width in entry.grows:
            wanted = f"{where} {width}" if width else where
            marks = [pytest.mark.slow] if entry.slow else []
            if wanted in NOT_YET.get(name, ()):
                marks.append(pytest.mark.xfail(strict=True, reason="not yet"))
            yield pytest.param(name, where, width, marks=marks, id=f"{name}-{wanted}")


def names_of(site: GrowthSite) -> set[str]:
    """The modules and parameters where a site makes units."""
    tensors = {name for member in site.producers for name in member.names}
    return {site.name, *tensors, *(name.rpartition(".")[0] for name in tensors)}


@pytest.mark.parametrize(("name", "where", "width"), list(expectations()))
def test_what_can_grow_grows(name: str, where: str, width: int | None) -> None:
    case = analysed(name)
    named = [*dict(case.model.named_modules()), *dict(case.model.named_parameters())]
    fitting = fnmatch.filter(named, where)
    assert fitting, "the expectation names nothing"
    found = {one for site in case.sites if width in (None, site.width) for one in names_of(site)}
    refusals = [(refusal.name, refusal.width, refusal.reason) for refusal in case.refusals]
    assert [one for one in fitting if one not in found] == [], refusals


def wrong_ones() -> Iterator[Any]:
    for name, entry in ZOO.items():
        for where, reason in entry.refused.items():
            marks = [pytest.mark.slow] if entry.slow else []
            if f"refused: {where}" in NOT_YET.get(name, ()):
                marks.append(pytest.mark.xfail(strict=True, reason="not yet"))
            yield pytest.param(name, where, reason, marks=marks, id=f"{name}-{where}")


@pytest.mark.parametrize(("name", "where", "reason"), list(wrong_ones()))
def test_what_cannot_grow_is_refused_for_the_right_reason(name: str, where: str, reason: str) -> None:
    given = [(one.name, one.reason) for one in analysed(name).refusals if fnmatch.fnmatch(one.name, where)]
    assert any(reason in text for _, text in given), given or [one.name for one in analysed(name).refusals]


def test_the_table_of_what_is_missing_names_expectations() -> None:
    for name, missing in NOT_YET.items():
        known = {f"{where} {width}" if width else where for where, width in ZOO[name].grows}
        assert set(missing) <= known | {f"refused: {where}" for where in ZOO[name].refused}, name
