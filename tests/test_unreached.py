"""Parts that the example does not reach: what they may read is refused, the rest still grows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from growkit import find_sites, widen


class Tasks(nn.Module):
    """A trunk of two layers and a head for each task; the example takes task a."""

    def __init__(self, **heads: nn.Module):
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU())
        self.heads = nn.ModuleDict(heads)

    def forward(self, x: Tensor, task: str = "a") -> Tensor:
        return self.heads[task](self.trunk(x))


class AllTasks(nn.Module):
    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x, "a"), self.net(x, "b")


def reason_of(model: nn.Module, example: Tensor, name: str) -> str:
    return next(refusal.reason for refusal in find_sites(model, example).refusals if refusal.name == name)


def test_a_width_that_an_unreached_head_may_read_is_refused() -> None:
    model, x = Tasks(a=nn.Linear(12, 3), b=nn.Linear(12, 5)), torch.randn(2, 6)
    assert [site.name for site in find_sites(model, x)] == ["trunk.0"]
    reason = reason_of(model, x, "trunk.2")
    assert (
        "'heads.b', which the example does not reach" in reason and "'heads.b.weight' has a dimension of 12" in reason
    )


def test_a_wrapper_that_reaches_all_heads_lets_the_width_grow_with_all_of_them() -> None:
    torch.manual_seed(0)
    model, x = Tasks(a=nn.Linear(12, 3), b=nn.Linear(12, 5)), torch.randn(2, 6)
    before = model(x, "b")
    wrapped = AllTasks(model)
    widen(wrapped, find_sites(wrapped, x)["net.trunk.2"], 4)
    torch.testing.assert_close(model(x, "b"), before)


def test_a_head_of_another_size_refuses_nothing() -> None:
    model = Tasks(a=nn.Linear(12, 3), b=nn.Linear(11, 5))
    assert [site.name for site in find_sites(model, torch.randn(2, 6))] == ["trunk.0", "trunk.2"]


def test_the_largest_part_that_nothing_reaches_is_named() -> None:
    model = Tasks(a=nn.Linear(12, 3), b=nn.Sequential(nn.Linear(12, 7), nn.Linear(7, 5)))
    assert "'heads.b'," in reason_of(model, torch.randn(2, 6), "trunk.2")
    model = Tasks(a=nn.Linear(12, 3))
    model.scale = nn.Parameter(torch.ones(12))
    assert "'scale'," in reason_of(model, torch.randn(2, 6), "trunk.2")


@pytest.mark.parametrize(
    "head",
    [
        nn.Linear(12, 5),
        nn.Conv2d(12, 5, 3),
        nn.Conv2d(12, 6, 3, groups=6),
        nn.BatchNorm2d(12, affine=False),
        nn.Sequential(nn.Flatten(), nn.Linear(12 * 4 * 4, 5)),
    ],
    ids=["linear", "convolution", "grouped", "statistics", "flattened"],
)
def test_whatever_may_read_the_channels_of_an_image_is_seen(head: nn.Module) -> None:
    class Images(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.other, self.out = nn.Conv2d(3, 12, 3, padding=1), head, nn.Linear(12, 2)

        def forward(self, x: Tensor, use_other: bool = False) -> Tensor:
            x = self.conv(x).relu()
            return self.other(x) if use_other else self.out(x.mean(dim=(2, 3)))

    model, x = Images(), torch.randn(2, 3, 4, 4)
    assert "'other'" in reason_of(model, x, "conv")


def test_sizes_of_kernels_are_no_widths() -> None:
    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out, self.other = nn.Linear(4, 5), nn.Linear(5, 2), nn.Conv2d(7, 8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.hidden(x).relu())

    assert [site.name for site in find_sites(Small(), torch.randn(2, 4))] == ["hidden"]


def test_the_branch_that_the_example_does_not_take_is_unreached() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right, self.out = (
                nn.Linear(4, 9),
                nn.Linear(9, 7),
                nn.Linear(9, 7),
                nn.Linear(7, 2),
            )

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.stem(x).relu()
            return self.out(self.left(hidden) if x.sum().item() > 0.0 else self.right(hidden))

    sites = find_sites(Branching(), torch.ones(2, 4))
    assert sites.graph.path_specialised and not list(sites)
    assert {r.name for r in sites.refusals if "'right', which the example" in r.reason} == {"stem", "left"}


def test_what_runs_in_train_mode_only_is_reached() -> None:
    class Auxiliary(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out, self.aux = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 2)

        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            hidden = self.hidden(x).relu()
            return (self.out(hidden), self.aux(hidden)) if self.training else (self.out(hidden),)

    assert [site.name for site in find_sites(Auxiliary(), torch.randn(2, 4))] == ["hidden"]
