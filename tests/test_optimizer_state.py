"""What an optimizer remembers grows with its parameters, entry beside entry in memory."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from surgery_cases import OPTIMIZERS, fresh, random_fan_in, same, snapshot, train
from torch import Tensor, nn

from growkit.errors import GrowthRefused
from growkit.surgery import Growth, align_state, grow
from growkit.surgery.optimizer_state import grow_state
from growkit.surgery.records import IndexMap
from growkit.surgery.tensors import grow_values, replace_data


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
    with pytest.raises(GrowthRefused, match=r"got factors \(7,\) for a parameter \(3, 6\) in SGD; .* resize_state"):
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


def test_an_optimizer_without_a_state_per_parameter_is_refused() -> None:
    model, sites, x = fresh("mlp")
    optimizer = torch.optim.LBFGS(model.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(GrowthRefused, match="LBFGS"):
        grow(model, [Growth(sites[0], 2)], optimizer=optimizer)


class Lookahead(torch.optim.Optimizer):
    """Wraps another optimizer and shares its groups, as is done by hand."""

    def __init__(self, inner: torch.optim.Optimizer):
        super().__init__(inner.param_groups, {})
        self.inner, self.param_groups = inner, inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class InLists(torch.optim.SGD):
    """Keeps factors of each weight in a list."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["factors"] = [torch.zeros(n, n) for n in p.shape]
        return super().step(closure)


class InOneList(torch.optim.SGD):
    """Keeps what it remembers of each weight in a list, and a count of all under a name."""

    def step(self, closure: Any = None) -> Any:
        self.state["count"] = 1  # pyright: ignore[reportArgumentType]
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = [torch.zeros_like(p)]  # pyright: ignore[reportArgumentType]


class Averaging(torch.optim.SGD):
    """Keeps an average of the weights beside its momentum."""

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p].setdefault("z", p.detach().clone()).lerp_(p.detach(), 0.1)
        return loss


def test_memory_in_anything_but_a_dict_is_refused() -> None:
    model, sites, x = fresh("mlp")
    optimizer = InOneList(model.parameters(), lr=0.1)
    train(model, optimizer, x, 2)
    with pytest.raises(GrowthRefused, match="must be a dict to grow along.*got a list in InOneList"):
        grow(model, [Growth(sites[0], 2)], optimizer=optimizer)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda params: Lookahead(torch.optim.Adam(params)), "Lookahead wraps Adam, of which nothing is known here"),
        (lambda params: InLists(params, lr=0.1), r"got factors a list of tensors for a parameter \(6, .*resize_state"),
        (lambda params: Averaging(params, lr=0.1, momentum=0.9), "'z' of Averaging follows the weights themselves"),
    ],
    ids=["wrapped", "in lists", "average of weights"],
)
def test_memory_that_could_not_follow_is_refused_and_everything_rolled_back(make: Any, message: str) -> None:
    model, sites, x = fresh("mlp")
    optimizer = make(model.parameters())
    train(model, optimizer, x, 2)
    before = snapshot(model, optimizer)
    with pytest.raises(GrowthRefused, match=message):
        grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    assert same(snapshot(model, optimizer), before) and sites[0].width == 6


def test_new_weights_of_rprop_start_with_the_step_of_the_learning_rate() -> None:
    model, sites, x = fresh("mlp")
    optimizer = torch.optim.Rprop(model.parameters(), lr=0.03)
    train(model, optimizer, x, 3)
    grow(model, [Growth(sites[0], 2)], optimizer=optimizer)
    steps = optimizer.state[model[0].weight]["step_size"]
    assert torch.equal(steps[6:], torch.full_like(steps[6:], 0.03)) and not torch.equal(steps[:6], steps[:6] * 0 + 0.03)


def test_each_of_several_optimizers_follows_its_own_parameters() -> None:
    model, sites, x = fresh("mlp")
    matrices = torch.optim.SGD([p for p in model.parameters() if p.dim() > 1], lr=0.1, momentum=0.9)
    vectors = torch.optim.Adam([p for p in model.parameters() if p.dim() < 2])
    train(model, matrices, x, 1)
    train(model, vectors, x, 1)
    edit = grow(model, [Growth(sites[0], 2)], optimizer=[matrices, vectors])
    assert matrices.state[model[0].weight]["momentum_buffer"].shape == model[0].weight.shape == (8, 5)
    assert vectors.state[model[0].bias]["exp_avg"].shape == model[0].bias.shape == (8,)
    edit.undo()
    assert matrices.state[model[0].weight]["momentum_buffer"].shape == (6, 5)
    assert vectors.state[model[0].bias]["exp_avg"].shape == (6,)
