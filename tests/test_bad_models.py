"""Models that cannot be grown, or only with care: handled, or refused with a reason; never another kind of error."""

from __future__ import annotations

import copy
import gc
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from misfits import BAD, Net, Returns, WithDeepLock, WithHooks, WithLock, WithNonLeaf, X, half_frozen
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from zoo.idioms import BranchOnMean
from zoo.truth import call, photograph

import growkit
from growkit.errors import GrowkitError, ModelError
from growkit.graph import copy_of, output_tensors


def outcome(model: nn.Module, example: Any) -> tuple[int, str]:
    """How many sites growkit stands by, and all it says of the rest; nothing but its own errors may come out."""
    try:
        sites = growkit.find_sites(model, example)
        verdict = growkit.verify_sites(model, sites, example=example)
        for site in verdict.sites:
            growkit.widen(model, site, 2, example=example).undo()
    except GrowkitError as error:
        return 0, str(error)
    return len(verdict.sites), "; ".join(one.reason for one in (*sites.refusals, *verdict.refusals))


@pytest.mark.parametrize("name", BAD)
def test_it_grows_or_is_refused_with_a_reason_and_stays_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    bad = BAD[name]
    model, example = bad.build(), bad.example()
    before = photograph(model)
    number, text = outcome(model, example)
    after = photograph(model)
    assert [part for part in before if before[part] != after[part]] == []
    if bad.grows is not None:
        assert number == bad.grows, text
    else:
        assert number == 0 and text and (bad.refused or "") in text, text


UNFIT: dict[str, str | None] = {
    "lazy": "LazyLinear at 0 has not seen data yet",
    "meta device": "meta device have no values",
    "quantised": "a quantised module cannot grow",
    "raises": "the cat ate it",
    "raises in eval mode": "eval is not there yet",
    "returns a string": "must return one tensor",
    "returns None": "must return one tensor",
    "returns a dataclass": "must return one tensor",
    "returns a generator": "must return one tensor",
    "returns whole numbers": "",
    "complex": "moves the complex weight 'a.weight'",
    "sparse parameter": "the sparse 'w'",
    "data parallel": "unwrapped",
    "compiled": "unwrapped",
    "scripted": "scripted module cannot be traced",
    "frozen": "",
    "no parameters": "",
    "not finite": "finite",
    "holds a lock": None,
    "holds a lock in a record": None,
    "holds a generator": None,
    "holds a tensor with history": None,
    "hooks": None,
    "forbids copies": "must allow a deep copy",
}
"""A text in the refusal; None where the model grows while it trains."""


@pytest.mark.parametrize("name", UNFIT)
def test_growing_while_training_works_or_is_refused_before_anything_has_changed(name: str) -> None:
    torch.manual_seed(0)
    model, text = BAD[name].build(), UNFIT[name]
    before = photograph(model)
    data = torch.randn(40, 6), torch.randint(0, 3, (40,))
    settings = {"train.epochs": 2, "growth.when.start": 1}
    if text is None:
        assert growkit.grow(model, data, config=settings, observers=()).events
        return
    with pytest.raises(GrowkitError) as caught:
        growkit.grow(model, data, config=settings, observers=())
    assert text in str(caught.value)
    after = photograph(model)
    assert [part for part in before if before[part] != after[part]] == []


class Spectral(nn.Module):
    """Complex weights in one layer, real ones in another."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8, dtype=torch.complex64), nn.Linear(8, 7, dtype=torch.complex64)
        self.c, self.d = nn.Linear(7, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.d(torch.tanh(self.c(self.b(self.a(x.to(torch.complex64))).abs())))


def test_real_widths_grow_beside_complex_ones() -> None:
    data = torch.randn(40, 6), torch.randint(0, 3, (40,))
    grown = growkit.grow(Spectral(), data, config={"train.epochs": 2, "growth.when.start": 1}, observers=())
    assert {one.site for event in grown.events for one in event.grown} == {"c"}
    assert sum("complex weight" in refusal for refusal in grown.refusals) == 2


@pytest.fixture
def one_process() -> Iterator[None]:
    init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
def test_distributed_wrappers_are_refused(wrap: str, one_process: None) -> None:
    model, x = Net(), torch.randn(*X)
    if wrap == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        fsdp = pytest.importorskip("torch.distributed.fsdp")
        fsdp.fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    number, text = outcome(model, x)
    assert number == 0 and "unwrapped" in text


def test_widths_of_a_model_without_values_are_known() -> None:
    with torch.device("meta"):
        model = Net()
    for device in ("cpu", "meta"):
        sites = growkit.find_sites(model, torch.randn(*X, device=device))
        assert [(site.name, site.width) for site in sites] == [("a", 8)]


@pytest.mark.parametrize("function", ["verify_sites", "widen", "deepen"])
def test_what_needs_values_refuses_a_model_without(function: str) -> None:
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(*X)
    calls: dict[str, Callable[[], Any]] = {
        "verify_sites": lambda: growkit.verify_sites(model, growkit.find_sites(model, x)),
        "widen": lambda: growkit.widen(model, growkit.find_sites(model, x)["0"], 2),
        "deepen": lambda: growkit.deepen(model, growkit.find_places(model, x)["0"]),
    }
    with pytest.raises(ModelError, match=r"no values to compare or to grow, got '0.weight'; call model.to_empty"):
        calls[function]()


def test_a_model_that_holds_a_lock_becomes_deeper() -> None:
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), WithLock(8)), torch.randn(*X)
    y = call(model, x)
    growkit.deepen(model, growkit.find_places(model, x)["0"])
    assert len(model) == 5 and torch.allclose(call(model, x), y, atol=1e-6)


def test_hooks_run_as_before_after_growth() -> None:
    model, x = WithHooks(), torch.randn(*X)
    y = call(model, x)
    growkit.widen(model, growkit.find_sites(model, x)["a"], 2)
    assert torch.allclose(call(model, x), y, atol=1e-6)
    assert [len(module._forward_hooks) for module in (model, model.a)] == [1, 1]


def legacy_weight_norm() -> nn.Module:
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nn.utils.weight_norm(model.a)
    return model


def test_a_hook_that_computes_a_weight_runs_in_the_trial_too() -> None:
    model, x = legacy_weight_norm(), torch.randn(*X)
    y = call(model, x)
    verdict = growkit.verify_sites(model, growkit.find_sites(model, x))
    for site in verdict.sites:
        growkit.widen(model, site, 2)
    assert [site.name for site in verdict.sites] == ["a"] and verdict.worst < 1e-5 < verdict.control
    assert torch.allclose(call(model, x), y, atol=1e-6)


def test_a_model_that_lives_on_another_dtype_keeps_it() -> None:
    model, x = Net().bfloat16(), torch.randn(*X).bfloat16()
    growkit.widen(model, growkit.find_sites(model, x)["a"], 2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_frozen_weights_stay_frozen() -> None:
    model, x = half_frozen(), torch.randn(*X)
    growkit.widen(model, growkit.find_sites(model, x)["a"], 2)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]


# copies


def test_a_copy_shares_only_what_cannot_be_copied() -> None:
    model, other = WithDeepLock(), WithNonLeaf()
    twin, second = copy_of(model), copy_of(other)
    assert twin.tools["kept"].lock is model.tools["kept"].lock
    assert twin.tools["kept"].of[0] is twin
    assert second.kept is not other.kept and torch.equal(second.kept, other.kept) and second.kept.is_leaf
    for a, b in ((model, twin), (other, second)):
        assert all(p is not q and torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_a_copy_that_can_be_made_is_a_deep_copy() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model.append(model[0])
    twin, known = copy_of(model), copy.deepcopy(model)
    assert twin[2] is twin[0]
    assert all(torch.equal(a, b) for a, b in zip(twin.state_dict().values(), known.state_dict().values(), strict=True))


def test_a_buffer_with_history_is_copied_without_it() -> None:
    model = Net()
    model.register_buffer("trace", model.a.weight.sum(0))
    old, new = model.get_buffer("trace"), copy_of(model).get_buffer("trace")
    assert new.is_leaf and new is not old and torch.equal(new, old)


def test_what_a_model_forbids_stays_forbidden() -> None:
    with pytest.raises(ModelError, match="must allow a deep copy.*NotImplementedError: there can be only one"):
        copy_of(BAD["forbids copies"].build())


# outputs


@pytest.mark.parametrize("name", [name for name in BAD if name.startswith("returns") and BAD[name].grows == 1])
def test_tensors_of_an_output_are_found_whatever_holds_them(name: str) -> None:
    model, x = BAD[name].build(), torch.randn(*X)
    y = Net.forward(model, x)  # type: ignore[arg-type]
    found = output_tensors(model(x))
    assert found and torch.equal(found[0], y)


def test_names_of_modules_do_not_depend_on_the_class_of_the_output() -> None:
    def graph(what: Callable[[Tensor], Any]) -> list[Any]:
        sites = growkit.find_sites(Returns(what), torch.randn(*X))
        return [(site.name, site.members, site.location, site.chain) for site in sites]

    assert graph(lambda y: {"y": y}) == graph(BAD["returns a dataclass"].build().what)  # type: ignore[operator]


def test_hooks_on_the_whole_model_see_its_own_output() -> None:
    model, seen = BAD["returns a dataclass"].build(), []
    model.register_forward_hook(lambda module, args, output: seen.append(type(output).__name__))
    growkit.find_sites(model, torch.randn(*X))
    assert set(seen) == {"Answer"} and len(model._forward_hooks) == 1


# what torch leaves behind


def test_tracing_a_branch_on_values_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sites = growkit.find_sites(BranchOnMean(), torch.randn(4, 10))
        gc.collect()
    assert sites.graph.path_specialised and list(tmp_path.rglob("*")) == []
