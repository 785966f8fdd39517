"""SAM in several processes: perturbed together or each by its own gradient."""

from __future__ import annotations

import math
import os
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from naive_optimizers import NaiveSAM
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from growkit.errors import UserInputError
from growkit.optim import SAM

STEPS, SETTINGS = 3, {"rho": 0.3, "lr": 0.1, "momentum": 0.9}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2)).double()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(1)).double(), torch.arange(8) % 2


def skip_one(rank: int, sync: bool, model: nn.Module, optimizer: SAM, closure: Any, folder: str) -> None:
    """A step whose first gradient is not finite, in one process alone unless both share it."""
    before, calls = [one.detach().clone() for one in model.parameters()], []

    def spoilt() -> Tensor:
        loss = closure()
        calls.append(None)
        if len(calls) == 1 and (rank == 1 or sync):
            next(model.parameters()).grad.fill_(math.inf)
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimizer.step(spoilt)
    kept = all(map(torch.equal, before, model.parameters()))
    Path(folder, f"{sync}.{rank}").write_text(f"skipped {optimizer.skipped}, kept {kept}")


def half(rank: int, folder: str, port: int) -> None:
    """One of two processes: it sees a half of the batch."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"  # a host whose own name leads nowhere has it, too
    store = dist.TCPStore("127.0.0.1", port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    x, y = (one.chunk(2)[rank] for one in batch())
    for sync in (True, False):
        model = DistributedDataParallel(net())
        optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, sync=sync, **SETTINGS)

        def closure(model: nn.Module = model) -> Tensor:
            loss = cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(STEPS):
            optimizer.step(closure)
        if rank == 0:
            torch.save([one.detach() for one in model.module.parameters()], f"{folder}/{sync}.pt")
        skip_one(rank, sync, model, optimizer, closure, folder)
    naively(x, y, folder if rank == 0 else None)
    store.set(f"done {rank}", "")
    store.wait(["done 0", "done 1"])
    os._exit(0)  # at once: gloo's threads may abort a process whose interpreter is torn down, or whose peer has left


def naively(x: Tensor, y: Tensor, folder: str | None) -> None:
    """As some recipes have it: no_sync() round the first backward alone, which DistributedDataParallel does not see."""
    model = DistributedDataParallel(net())
    optimizer = NaiveSAM(model.parameters(), torch.optim.SGD, **SETTINGS)
    for _ in range(STEPS):
        loss = cross_entropy(model(x), y)
        with model.no_sync():
            loss.backward()
        optimizer.first_step()
        cross_entropy(model(x), y).backward()
        optimizer.second_step()
    if folder is not None:
        torch.save([one.detach() for one in model.module.parameters()], f"{folder}/naive.pt")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("processes")
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    mp.spawn(half, (str(folder), store.port), nprocs=2)
    return folder


@pytest.mark.parametrize("sync", [True, False])
def test_a_gradient_that_is_not_finite_in_one_process_skips_the_step_in_all(trained: Path, sync: bool) -> None:
    assert [(trained / f"{sync}.{rank}").read_text() for rank in (0, 1)] == ["skipped 1, kept True"] * 2


class Wrapped(nn.Linear):
    """As what distributes a module."""

    def no_sync(self) -> None: ...


def test_second_order_refuses_what_averages_gradients_in_a_backward() -> None:
    model = Wrapped(2, 2)
    with pytest.raises(UserInputError, match="second_order must see the module itself, got Wrapped"):
        SAM(model.parameters(), torch.optim.SGD, model=model, second_order=True, lr=0.1)


@pytest.mark.parametrize(
    ("name", "m"),
    [
        pytest.param("True", 8, id="together"),
        pytest.param("False", 4, id="each its own"),
        pytest.param("naive", 4, id="naive", marks=pytest.mark.xfail(strict=True, raises=AssertionError)),
    ],
)
def test_two_processes_are_one_on_the_joined_batch(trained: Path, name: str, m: int) -> None:
    model, (x, y) = net(), batch()
    optimizer = SAM(model.parameters(), torch.optim.SGD, model=model, m=m, **SETTINGS)

    def closure(part: slice) -> Tensor:
        loss = cross_entropy(model(x[part]), y[part])
        loss.backward()
        return loss

    for _ in range(STEPS):
        optimizer.step(closure, samples=8)
    theirs = torch.load(trained / f"{name}.pt", weights_only=True)
    for mine, other in zip(model.parameters(), theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-12)
