from __future__ import annotations

import copy
import dataclasses
import functools
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from growkit.errors import GrowthRefused, SurgeryError, UserInputError
from growkit.graph import GrowthSite, Sites, find_sites
from growkit.surgery import (
    EDIT_VERSION,
    Edit,
    EditRecord,
    Extension,
    Growth,
    Inputs,
    align_state,
    function_change,
    grow,
    lookup,
    new_entries,
    observe,
    replay,
    transaction,
    undo,
    verify_sites,
)
from growkit.surgery.records import IndexMap, runs_of
from growkit.surgery.tensors import grow_state, grow_values, replace_data

IMAGES = (2, 6, 6)


class Stream(nn.Module):
    """Width of the residual stream, read by a norm and two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Linear(5, 6), nn.BatchNorm1d(6)
        self.inner, self.outer, self.head = nn.Linear(6, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.outer(torch.tanh(self.inner(self.norm(x))))
        return self.head(x)


class Tied(nn.Module):
    """One square weight under two names: both of its dimensions are the site."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second, self.head = (
            nn.Linear(5, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 4),
            nn.Linear(4, 3),
        )
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(torch.tanh(self.stem(x)))))))


class Functional(nn.Module):
    """Raw parameters and buffers, no layer modules."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(6, 5)), nn.Parameter(torch.randn(6))
        self.gain, self.shift = nn.Parameter(torch.rand(6) + 0.5), nn.Parameter(torch.randn(6))
        self.slope = nn.Parameter(torch.tensor([0.1, 0.2, 0.3, 0.1, 0.2, 0.3]))
        self.w2 = nn.Parameter(torch.randn(3, 6))
        self.register_buffer("mean", torch.randn(6))
        self.register_buffer("var", torch.rand(6) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(x, self.w1, self.b1)
        x = F.batch_norm(x, self.get_buffer("mean"), self.get_buffer("var"), self.gain, self.shift, self.training)
        return F.linear(F.prelu(x, self.slope), self.w2)


def conv_bn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 1),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.GroupNorm(4, 4),
        nn.Tanh(),
        nn.Conv2d(4, 3, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


def vgg_like() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 3, 3),
        nn.Tanh(),
        nn.Conv2d(3, 4, 3, bias=False),
        nn.Tanh(),
        nn.Conv2d(4, 2, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


CASES: dict[str, tuple[Any, tuple[int, ...]]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Dropout(0.4), nn.Linear(6, 3)), (5,)),
    "conv and batch norm": (conv_bn, IMAGES),
    "residual stream": (Stream, (5,)),
    "flatten to linear": (
        lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)),
        IMAGES,
    ),
    "depthwise": (depthwise, IMAGES),
    "tied weights": (Tied, (5,)),
    "functional": (Functional, (5,)),
    "vgg-like": (vgg_like, IMAGES),
    "grey pointwise": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.Tanh(), nn.Conv2d(2, 3, 1), nn.AvgPool2d(6), nn.Flatten()),
        (1, 6, 6),
    ),
}


@functools.cache
def traced(name: str) -> tuple[nn.Module, Sites, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[name]
    model, x = make(), torch.randn(6, *shape)
    model(x)  # running statistics away from their start
    return model, find_sites(model, x), x


@pytest.fixture(autouse=True)
def seed_widths() -> Iterator[None]:
    """Traces are shared: give every site its seed width back."""
    yield
    for name in CASES:
        if traced.cache_info().currsize and name in _used:
            for site in traced(name)[1]:
                site.resize(site.seed_width)


_used: set[str] = set()


def fresh(name: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Sites, Tensor]:
    _used.add(name)
    model, sites, x = traced(name)
    return copy.deepcopy(model).to(dtype), sites, x.to(dtype)


def random_fan_in(model: nn.Module, site: GrowthSite, num_new: int, *, fan_out: bool = False) -> Extension:
    """Gaussian new slices of everything that makes the units; with `fan_out` also of what reads them."""
    values = {}
    for edit in site.tensor_edits(num_new):
        for dim, index in enumerate(edit.index_maps):
            if index is None or edit.pass_through or (dim in edit.consumer_dims and not fan_out and dim == 1):
                continue
            shape = list(lookup(model, edit.names[0], edit.kind).shape)
            shape[dim] = int((index < 0).sum())
            values[edit.names[0], dim] = torch.randn(shape, dtype=next(model.parameters()).dtype)
    return Extension(values)


def widen_all(model: nn.Module, sites: Sites, num_new: int = 2, **kwargs: Any) -> Edit:
    return grow(model, [Growth(site, num_new, random_fan_in(model, site, num_new)) for site in sites], **kwargs)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    state = {} if optimizer is None else {i: dict(optimizer.state[p]) for i, p in enumerate(model.parameters())}
    return {
        "values": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "layout": {name: tensor.stride() for name, tensor in model.state_dict().items()},
        "gradients": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "optimizer": copy.deepcopy(state),
        "attributes": {n: {k: v for k, v in vars(m).items() if type(v) is int} for n, m in model.named_modules()},
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b


# the function is kept


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=["fp64", "fp32"])
def test_widening_with_zero_fan_out_keeps_outputs(name: str, dtype: torch.dtype, tolerance: float) -> None:
    model, sites, x = fresh(name, dtype)
    before = observe(model, Inputs((x,)))
    for site in sites:
        edit = grow(model, [Growth(site, 2, random_fan_in(model, site, 2))])
        change = function_change(before, observe(model, Inputs((x,))))
        assert change.worst <= tolerance, (site.name, change)
        edit.undo()
    widen_all(model, sites)
    assert function_change(before, observe(model, Inputs((x,)))).worst <= tolerance


@pytest.mark.parametrize("name", CASES)
def test_a_random_fan_out_changes_the_outputs(name: str) -> None:
    model, sites, x = fresh(name)
    before = observe(model, Inputs((x,)))
    for site in sites:
        edit = grow(model, [Growth(site, 2, random_fan_in(model, site, 2, fan_out=True))])
        assert function_change(before, observe(model, Inputs((x,)))).worst > 1e-3, site.name
        edit.undo()


@pytest.mark.parametrize("name", CASES)
def test_parameters_stay_the_same_objects_under_all_their_names(name: str) -> None:
    model, sites, _ = fresh(name)
    before = {key: id(p) for key, p in model.named_parameters(remove_duplicate=False)}
    widen_all(model, sites)
    assert {key: id(p) for key, p in model.named_parameters(remove_duplicate=False)} == before


def test_new_entries_of_norms_and_slopes_are_neutral() -> None:
    model, sites, _ = fresh("functional")
    slope = float(model.slope.detach().mean())
    grow(model, [Growth(sites[0], 2)])
    assert model.shift[-2:].tolist() == [0, 0] and model.get_buffer("mean")[-2:].tolist() == [0, 0]
    assert model.get_buffer("var")[-2:].tolist() == [1, 1]
    assert model.slope[-2:].tolist() == pytest.approx([slope, slope])


def test_modules_know_their_new_sizes() -> None:
    model, sites, _ = fresh("depthwise")
    grow(model, [Growth(sites[0], 3)])
    stem, spread, norm, slope, group, head = (model[i] for i in (0, 1, 2, 3, 4, 6))
    assert stem.out_channels == norm.num_features == slope.num_parameters == group.num_channels == head.in_channels == 7
    assert spread.groups == spread.in_channels == spread.out_channels == group.num_groups == 7
    assert head.out_channels == 3


def test_a_site_grows_again_and_again() -> None:
    model, sites, x = fresh("conv and batch norm")
    before = observe(model, Inputs((x,)))
    for _ in range(3):
        grow(model, [Growth(sites[0], 1, random_fan_in(model, sites[0], 1))])
    assert sites[0].width == model[0].out_channels == 7
    assert function_change(before, observe(model, Inputs((x,)))).worst <= 1e-5


def test_the_next_backward_works_while_a_loss_of_an_earlier_step_is_alive() -> None:
    model, sites, x = fresh("mlp")
    alive = model(x).square().sum()
    alive.backward()
    grow(model, [Growth(sites[0], 2)])
    model(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.shape == p.shape for p in model.parameters())


# two sites in one call


def test_where_two_sites_cross_new_rows_and_columns_are_zero_and_values_land_in_place() -> None:
    model, sites, _ = fresh("vgg-like")
    first, second = sites["0"], sites["2"]
    old = model[2].weight.detach().clone()  # [4, 3, 3, 3]: rows of the second site, columns of the first
    columns, rows = torch.randn(4, 2, 3, 3), torch.randn(5, 3, 3, 3)
    for order in ((first, second), (second, first)):
        values = {first: {("2.weight", 1): columns}, second: {("2.weight", 0): rows}}
        units = {first: 2, second: 5}
        edit = grow(model, [Growth(site, units[site], Extension(values[site])) for site in order])
        weight = model[2].weight
        assert torch.equal(weight[:4, :3], old) and torch.equal(weight[:4, 3:], columns)
        assert torch.equal(weight[4:, :3], rows) and not weight[4:, 3:].any()
        edit.undo()


def test_a_square_weight_takes_both_of_its_new_sides() -> None:
    model, sites, _ = fresh("tied weights")
    rows, columns = torch.randn(2, 4), torch.randn(4, 2)
    grow(model, [Growth(sites[0], 2, Extension({("first.weight", 0): rows, ("first.weight", 1): columns}))])
    weight = model.second.weight
    assert weight is model.first.weight
    assert torch.equal(weight[4:, :4], rows) and torch.equal(weight[:4, 4:], columns) and not weight[4:, 4:].any()


# optimizer state

OPTIMIZERS = {
    "sgd momentum": lambda p, fused: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, fused=fused),
    "adam": lambda p, fused: torch.optim.Adam(p, lr=0.01, amsgrad=True, fused=fused),
    "adamw": lambda p, fused: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1, fused=fused),
}


def pad(old: Tensor, like: Tensor, index_maps: tuple[IndexMap | None, ...]) -> Tensor:
    """A grown state by hand, entry by entry of the index map."""
    grown = torch.zeros(like.shape, dtype=old.dtype)
    maps = [np.arange(n) if index is None else index for n, index in zip(like.shape, index_maps, strict=True)]
    kept = np.ix_(*[np.flatnonzero(index >= 0) for index in maps])
    source = np.ix_(*[index[index >= 0] for index in maps])
    grown[tuple(torch.from_numpy(i) for i in kept)] = old[tuple(torch.from_numpy(i) for i in source)]
    return grown


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
@pytest.mark.parametrize("name", ["flatten to linear", "conv and batch norm"])
def test_optimizer_state_is_carried_and_training_goes_on(name: str, optimizer_name: str, fused: bool) -> None:
    # float64: the gradient of a bias before batch norm is rounding alone, which Adam would blow up to a step in float32
    model, sites, x = fresh(name, torch.float64)
    make = OPTIMIZERS[optimizer_name]
    optimizer = make(model.parameters(), fused)
    train(model, optimizer, x, 3)
    names = {p: n for n, p in model.named_parameters()}
    before = {n: copy.deepcopy(optimizer.state[p]) for p, n in names.items()}

    edit = grow(model, [Growth(sites[0], 2, random_fan_in(model, sites[0], 2))], optimizer=optimizer)
    maps = {change.names[0]: change.index_maps for change in edit.record.tensors}
    twin = copy.deepcopy(model)
    reference = make(twin.parameters(), False)
    for (n, p), (_, q) in zip(model.named_parameters(), twin.named_parameters(), strict=True):
        for key, old in before[n].items():
            grows = n in maps and isinstance(old, Tensor) and old.dim() > 0
            expected = pad(old, p, maps[n]) if grows else old
            assert torch.equal(optimizer.state[p][key], expected), (n, key)
            reference.state[q][key] = copy.deepcopy(expected)

    train(model, optimizer, x, 3)
    train(twin, reference, x, 3)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=1e-9, atol=1e-10)


class Counting(torch.optim.SGD):
    """An optimizer with memory of its own shape, which it resizes itself."""

    def __init__(self, params: Any):
        super().__init__(params, lr=0.1)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["rows"] = torch.arange(float(len(p)))

    def resize_state(self, parameter: nn.Parameter, index_maps: Any) -> None:
        index = index_maps[0]
        if index is not None:
            old = self.state[parameter]["rows"]
            self.state[parameter]["rows"] = torch.cat([old, -torch.ones(int((index < 0).sum()))])


def test_an_optimizer_that_can_resize_is_asked() -> None:
    model, sites, _ = fresh("mlp")
    optimizer = Counting(model.parameters())
    edit = grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    rows = [optimizer.state[p]["rows"].tolist() for p in model.parameters()]
    assert rows == [[0, 1, 2, 3, 4, 5, -1, -1], [0, 1, 2, 3, 4, 5, -1, -1], [0, 1, 2], [0, 1, 2]]
    edit.undo()
    assert len(optimizer.state[model[0].weight]["rows"]) == 6


def test_state_of_unknown_shape_is_refused_and_everything_rolled_back() -> None:
    model, sites, x = fresh("mlp")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, x, 1)
    optimizer.state[model[3].weight]["factors"] = torch.ones(7)  # the last tensor: others have grown by then
    before = snapshot(model, optimizer)
    with pytest.raises(SurgeryError, match=r"got factors \(7,\) for a parameter \(3, 6\) in SGD; give .* resize_state"):
        grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    assert same(snapshot(model, optimizer), before) and sites[0].width == 6


@pytest.mark.parametrize("name", ["grey pointwise", "conv and batch norm", "depthwise"])
def test_channels_last_parameters_and_state_stay_side_by_side(name: str) -> None:
    """Fused optimizers walk parameter and state in memory order; a loop over contiguous tensors is the truth."""
    model, sites, x = fresh(name, torch.float64)
    plain = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)
    fused = torch.optim.Adam(model.parameters(), lr=0.01, fused=True)
    loop = torch.optim.Adam(plain.parameters(), lr=0.01, foreach=False)
    train(model, fused, x.to(memory_format=torch.channels_last), 2)
    train(plain, loop, x, 2)
    for _ in range(2):
        width, extension = sites[0].width, random_fan_in(model, sites[0], 1)
        grow(plain, [Growth(sites[0], 1, extension)], optimizer=loop)
        sites[0].resize(width)
        grow(model, [Growth(sites[0], 1, extension)], optimizer=fused)
        for p in model.parameters():
            assert fused.state[p]["exp_avg"].stride() == fused.state[p]["exp_avg_sq"].stride() == p.stride()
        model.to(memory_format=torch.channels_last)  # as a run does after each event
        align_state(fused)
        train(model, fused, x.to(memory_format=torch.channels_last), 2)
        train(plain, loop, x, 2)
        for p, q in zip(model.parameters(), plain.parameters(), strict=True):
            assert fused.state[p]["exp_avg"].stride() == p.stride()
            assert torch.allclose(p, q, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("shape", "dim"), [((3, 1, 3, 3), 1), ((1, 3, 3, 3), 0), ((4, 2, 1, 1), 1), ((2, 1, 1, 1), 0)])
def test_state_follows_its_parameter_where_sizes_of_1_leave_the_layout_open(shape: tuple[int, ...], dim: int) -> None:
    parameter = nn.Parameter(torch.randn(shape).to(memory_format=torch.channels_last))
    optimizer = torch.optim.Adam([parameter])
    state = torch.arange(float(parameter.numel())).view(shape)  # the same entries, laid out the plain way
    optimizer.state[parameter] = {"exp_avg": state}
    maps = tuple(np.array([*range(size), -1]) if d == dim else None for d, size in enumerate(shape))
    old = parameter.detach().clone()
    replace_data(parameter, grow_values(parameter.data, maps))
    grow_state(optimizer, parameter, old.shape, maps)
    grown = optimizer.state[parameter]["exp_avg"]
    assert grown.stride() == parameter.stride()
    assert torch.equal(grown.narrow(dim, 0, shape[dim]), state) and torch.equal(
        parameter.narrow(dim, 0, shape[dim]), old
    )
    assert not grown.narrow(dim, shape[dim], 1).any()


# undo and failure


@pytest.mark.parametrize("name", CASES)
def test_undo_restores_every_bit(name: str) -> None:
    model, sites, x = fresh(name)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    train(model, optimizer, x, 2)
    before, widths = snapshot(model, optimizer), [site.width for site in sites]
    edit = widen_all(model, sites, 3, optimizer=optimizer)
    train(model, optimizer, x, 2)
    edit.undo()
    assert [site.width for site in sites] == widths
    after = snapshot(model, optimizer)
    assert after["attributes"] == before["attributes"] and after["layout"] == before["layout"]
    # training after the edit also moved what the edit did not change
    changed = {n for record in edit.records for change in record.tensors for n in change.names}
    assert same(
        {n: v for n, v in after["values"].items() if n in changed},
        {n: v for n, v in before["values"].items() if n in changed},
    )


@pytest.mark.parametrize("optimizer_name", OPTIMIZERS)
def test_undo_after_training_leaves_no_state_of_the_wrong_shape(optimizer_name: str) -> None:
    """State that came up after the edit has the wrong shape, and fused optimizers would not notice."""
    model, sites, x = fresh("mlp")
    optimizer = OPTIMIZERS[optimizer_name](model.parameters(), True)
    edit = grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    train(model, optimizer, x, 1)
    edit.undo()
    changed = (model[0].weight, model[0].bias, model[3].weight)
    assert not any(bool(value.any()) for p in changed for value in optimizer.state.get(p, {}).values())
    train(model, optimizer, x, 1)
    shapes = [(p.shape, v.shape) for p, s in optimizer.state.items() for v in s.values() if v.dim()]
    assert len(shapes) >= 4 and all(parameter == state for parameter, state in shapes)


def test_undo_after_training_restores_the_state_that_was() -> None:
    model, sites, x = fresh("mlp")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 2)
    changed = (model[0].weight, model[0].bias, model[3].weight)
    before = [copy.deepcopy(optimizer.state[p]) for p in changed]
    edit = grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    train(model, optimizer, x, 3)
    edit.undo()
    assert same([optimizer.state[p] for p in changed], before)
    assert int(optimizer.state[model[0].weight]["step"]) == 2


def interrupt_at(monkeypatch: pytest.MonkeyPatch, target: str, call: int) -> None:
    """Raise KeyboardInterrupt in place of the given call of a function of the transaction, once."""
    home = transaction if hasattr(transaction, target) else undo
    original, calls = getattr(home, target), [0]

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(home, target, interrupted)


@pytest.mark.parametrize("target", ["replace_data", "grow_state", "set_attributes"])
@pytest.mark.parametrize("call", [1, 2])
def test_an_interrupt_half_way_rolls_everything_back(target: str, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, x = fresh("vgg-like")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 1)
    before = snapshot(model, optimizer)
    interrupt_at(monkeypatch, target, call)
    with pytest.raises(KeyboardInterrupt):
        widen_all(model, sites, optimizer=optimizer)
    assert same(snapshot(model, optimizer), before) and [site.width for site in sites] == [3, 4]


@pytest.mark.parametrize("call", [1, 2, 3])
def test_an_interrupted_undo_comes_to_its_end(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, _ = fresh("vgg-like")
    before = snapshot(model)
    edit = widen_all(model, sites)
    interrupt_at(monkeypatch, "replace_data", call)
    with pytest.raises(KeyboardInterrupt):
        edit.undo()
    assert same(snapshot(model), before) and [site.width for site in sites] == [3, 4]
    edit.undo()
    assert edit.undone and same(snapshot(model), before)


def test_an_interrupted_replay_leaves_the_seed_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    model, sites, _ = fresh("vgg-like")
    seed, records = copy.deepcopy(model), widen_all(model, sites).records
    before = snapshot(seed)
    interrupt_at(monkeypatch, "replace_data", 3)
    with pytest.raises(KeyboardInterrupt):
        replay(seed, records)
    assert same(snapshot(seed), before)


def test_undo_at_once_leaves_no_trace() -> None:
    model, sites, x = fresh("vgg-like")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 2)
    before = snapshot(model, optimizer)
    widen_all(model, sites, optimizer=optimizer).undo()
    assert same(snapshot(model, optimizer), before)
    train(model, optimizer, x, 1)


def test_an_edit_is_undone_once() -> None:
    model, sites, _ = fresh("mlp")
    edit = grow(model, [Growth(sites[0], 2)])
    edit.undo()
    with pytest.raises(SurgeryError, match="undone once"):
        edit.undo()


def test_edits_are_undone_last_first() -> None:
    model, sites, _ = fresh("vgg-like")
    first, second = grow(model, [Growth(sites[0], 2)]), grow(model, [Growth(sites[1], 2)])
    with pytest.raises(SurgeryError, match="last first"):
        first.undo()
    second.undo()
    first.undo()
    assert [site.width for site in sites] == [3, 4]


def test_a_failure_half_way_rolls_everything_back() -> None:
    model, sites, x = fresh("vgg-like")
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x, 1)
    before = snapshot(model, optimizer)
    wrong = Extension({("4.weight", 1): torch.ones(2, 9, 1, 1)})
    with pytest.raises(SurgeryError, match=r"4.weight along dimension 1 must have shape \(2, 2, 1, 1\), got"):
        grow(model, [Growth(sites[0], 2), Growth(sites[1], 2, wrong)], optimizer=optimizer)
    assert same(snapshot(model, optimizer), before) and [site.width for site in sites] == [3, 4]


class Stubborn(nn.Linear):
    """A layer whose size cannot be set."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "in_features" and value > 6:
            raise RuntimeError("read only")
        super().__setattr__(name, value)


def test_a_failure_of_user_code_is_named_and_rolled_back() -> None:
    model, sites, _ = fresh("mlp")
    model[3].__class__ = Stubborn
    before = snapshot(model)
    with pytest.raises(SurgeryError, match="rolled back: RuntimeError: read only"):
        grow(model, [Growth(sites[0], 2)])
    assert same(snapshot(model), before) and sites[0].width == 6


def test_slices_for_tensors_that_do_not_change_are_refused() -> None:
    model, sites, _ = fresh("mlp")
    with pytest.raises(SurgeryError, match=r"got \[\('3.weight', 0\)\]; it changes"):
        grow(model, [Growth(sites[0], 2, Extension({("3.weight", 0): torch.ones(2, 6)}))])


def test_growing_by_nothing_is_refused() -> None:
    model, sites, _ = fresh("mlp")
    with pytest.raises(GrowthRefused, match="at least 1 unit, got 0"):
        grow(model, [Growth(sites[0], 0)])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models_are_refused(wrap: Any) -> None:
    model, sites, _ = fresh("mlp")
    wrapped = wrap(model)
    with pytest.raises(GrowthRefused, match=f"unwrapped before it grows, got {type(wrapped).__name__}"):
        grow(wrapped, [Growth(sites[0], 2)])
    with pytest.raises(GrowthRefused, match=f"got {type(wrapped).__name__} at 0"):
        grow(nn.Sequential(wrapped), [Growth(sites[0], 2)])


def test_record_is_for_one_site() -> None:
    model, sites, _ = fresh("vgg-like")
    with pytest.raises(ValueError, match="this one has 2; use records"):
        _ = widen_all(model, sites).record


# records


def test_index_maps_are_written_as_runs() -> None:
    assert runs_of([0, 1, -1, 2, 3, -1, -1]) == [[0, 2], [-1, 1], [2, 2], [-1, 2]]


@pytest.mark.parametrize("name", CASES)
def test_a_record_survives_json_and_rebuilds_the_grown_model(name: str) -> None:
    model, sites, x = fresh(name)
    seed = copy.deepcopy(model)
    records = [*widen_all(model, sites, 1).records, *widen_all(model, sites, 2).records]
    written = [record.to_json() for record in records]
    read = [EditRecord.from_json(record) for record in json.loads(json.dumps(written))]
    assert [record.to_json() for record in read] == written
    assert [c.new_shape for r in read for c in r.tensors] == [c.new_shape for r in records for c in r.tensors]

    replay(seed, read)
    shapes = {key: value.shape for key, value in seed.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    seed.load_state_dict(model.state_dict())
    assert torch.equal(seed.eval()(x), model.eval()(x))
    assert snapshot(seed)["attributes"] == snapshot(model)["attributes"]


def test_a_record_of_another_version_is_refused() -> None:
    model, sites, _ = fresh("mlp")
    record = grow(model, [Growth(sites[0], 1)]).record.to_json() | {"version": 99}
    with pytest.raises(UserInputError, match=f"must have version {EDIT_VERSION}, got 99"):
        EditRecord.from_json(record)


def test_replaying_on_a_wrong_seed_is_refused_and_leaves_it_as_it_was() -> None:
    model, sites, _ = fresh("mlp")
    records = grow(model, [Growth(sites[0], 1)]).records
    wrong = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Identity(), nn.Linear(6, 4))
    before = snapshot(wrong)
    with pytest.raises(UserInputError, match=r"3.weight must have shape \(3, 6\), got \(4, 6\); is it the seed"):
        replay(wrong, records)
    assert same(snapshot(wrong), before)
    with pytest.raises(UserInputError, match=r"must have the parameter 0.weight, got none"):
        replay(nn.ReLU(), records)


@pytest.mark.parametrize("wrapped", [True, False], ids=["AveragedModel", "own copy"])
def test_an_average_of_the_weights_grows_along(wrapped: bool) -> None:
    model, sites, x = fresh("conv and batch norm")
    average = AveragedModel(model) if wrapped else copy.deepcopy(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, x, 2)
    inside = average.module if wrapped else average
    before, values = observe(inside, Inputs((x,))), copy.deepcopy(average.state_dict())
    edit = grow(model, [Growth(sites[0], 2, random_fan_in(model, sites[0], 2))], optimizer=optimizer, copies=[average])
    assert function_change(before, observe(inside, Inputs((x,)))).worst < 1e-5
    new = new_entries(model, edit)[sites[0].name]
    twins = dict(inside.named_parameters())
    for name, parameter in model.named_parameters():
        mask = next((mask for one, mask in new if one is parameter), None)
        assert mask is None or torch.equal(parameter[mask], twins[name][mask])
    if wrapped:
        average.update_parameters(model)
    edit.undo()
    assert all(tensor.shape == average.state_dict()[name].shape for name, tensor in values.items())
    assert wrapped or all(torch.equal(tensor, average.state_dict()[name]) for name, tensor in values.items())


def test_copies_that_share_parameters_and_optimizers_without_a_state_per_parameter_are_refused() -> None:
    model, sites, x = fresh("mlp")
    with pytest.raises(GrowthRefused, match="parameters of their own"):
        grow(model, [Growth(sites[0], 2)], copies=[model])
    with pytest.raises(GrowthRefused, match="copies must be modules, got str"):
        grow(model, [Growth(sites[0], 2)], copies=["ema"])  # type: ignore[list-item]
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(GrowthRefused, match="LBFGS"):
        grow(model, [Growth(sites[0], 2)], optimizer=optimizer)


def test_an_attribute_that_cannot_be_written_is_rolled_back_without_harm() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sizes:
        count: int = 4

    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.sizes = nn.Linear(5, 4), nn.Linear(4, 3), Sizes()

        def forward(self, x: Tensor) -> Tensor:
            return self.b(torch.tanh(self.a(x)).view(len(x), self.sizes.count, -1).flatten(1))

    model, x = Fixed(), torch.randn(4, 5)
    sites = find_sites(model, x)
    verdict = verify_sites(model, list(sites), Inputs((x,)))
    assert [refusal.name for refusal in verdict.refusals] == ["a"]
    assert sites["a"].width == model.a.out_features == 4
