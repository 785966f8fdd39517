"""What a growth event costs in training steps: GradMax beside its plain form, interleaved, in CPU time; and memory."""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from growkit.config.models import Norm, WrnSettings
from growkit.environment import describe_environment
from growkit.graph import GrowthSite, find_sites
from growkit.growth.base import Extended
from growkit.growth.initializers import GradMax
from growkit.growth.statistics import Measurement
from growkit.models import build_model
from growkit.models.activation import ReLU
from growkit.surgery import Edit, Extension, Growth, Inputs, function_change, grow, observe

__all__ = ["GOALS", "NetworkSize", "PairSize", "render_growth", "run_growth"]

RESULT_VERSION = 1
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9, "fused": True}
T = TypeVar("T")


@dataclass(frozen=True)
class NetworkSize:
    """A wide residual network that grows from a quarter to its full width, and its batch."""

    depth: int = 28
    width: int = 1
    norm: Norm = "none"
    pixels: int = 32
    batch: int = 128


@dataclass(frozen=True)
class PairSize:
    """Two 3x3 convolutions in a row, the units that the first one gains, and their batch."""

    channels: int = 512
    new: int = 128
    pixels: int = 4
    batch: int = 128


NETWORKS = {"wrn-28-1": NetworkSize(), "wrn-28-1, batchnorm": NetworkSize(norm="batchnorm")}
PAIRS = {"512 channels, 4x4": PairSize(), "512 channels, 8x8": PairSize(pixels=8, batch=32)}

# subject -> (what, divided by what, the goal)
GOALS: dict[str, list[tuple[str, str, str]]] = {
    "networks": [
        ("event", "step", "<= 1.5"),
        ("verification", "step", ""),
        ("seed step", "step", ""),
        ("plain event", "step", ""),
        ("plain event", "event", ">= 5"),
    ],
    "pairs": [("solve", "pass", "<= 2"), ("event", "pass", "")],
}
MEMORY_GOAL = 1000  # MB


def run_growth(
    rounds: int, networks: Mapping[str, NetworkSize] = NETWORKS, pairs: Mapping[str, PairSize] = PAIRS
) -> dict[str, Any]:
    """Measure every quantity of every subject once a round, so that a slow minute of the machine hits all alike.

    Returns:
        For every subject the quartiles of the CPU seconds, the share of the best possible energy that the new units
        capture, and the peak memory of an event and of a training step, each in a process of its own.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prepared = {
            "networks": {name: _Network(size) for name, size in networks.items()},
            "pairs": {name: _Pair(size) for name, size in pairs.items()},
        }
        subjects = [subject for kind in prepared.values() for subject in kind.values()]
        for number in range(-1, rounds):
            for subject in subjects:
                subject.measure(keep=number >= 0)  # the first one warms up
        found = {
            kind: {name: subject.result() for name, subject in subjects.items()} for kind, subjects in prepared.items()
        }
    finally:
        torch.set_num_threads(threads)
    environment = {**describe_environment(), "threads": 1}
    return {"version": RESULT_VERSION, "rounds": rounds, "environment": environment, **found}


class _Subject(ABC):
    def __init__(self, size: NetworkSize | PairSize):
        self.size = size
        self.seconds: dict[str, list[float]] = {}
        self._keep = True

    def measure(self, keep: bool) -> None:
        self._keep = keep
        self._measure()

    @abstractmethod
    def _measure(self) -> None: ...

    def _time(self, name: str, act: Callable[[], T]) -> T:
        start = time.process_time()
        made = act()
        if self._keep:
            self.seconds.setdefault(name, []).append(time.process_time() - start)
        return made

    def result(self) -> dict[str, Any]:
        quartiles = {
            name: dict(zip(("p25", "median", "p75"), np.quantile(times, [0.25, 0.5, 0.75]).tolist(), strict=True))
            for name, times in self.seconds.items()
        }
        peaks = {what: _in_fresh_process(_peak_mb, self.size, what) for what in ("step", "event")}
        return {"size": vars(self.size), "cpu_seconds": quartiles, "peak_mb": peaks, **self._quality()}

    @abstractmethod
    def _quality(self) -> dict[str, Any]: ...

    @abstractmethod
    def step(self) -> object:
        """A training step at full width."""

    @abstractmethod
    def event(self) -> object:
        """A growth event without verification."""


class _Network(_Subject):
    """The seed with its sites, the full network, and one batch."""

    size: NetworkSize

    def __init__(self, size: NetworkSize):
        super().__init__(size)
        settings, shape = WrnSettings(depth=size.depth, width=size.width, norm=size.norm), (3, size.pixels, size.pixels)
        torch.manual_seed(0)
        self.images, self.labels = torch.randn(size.batch, *shape), torch.arange(size.batch) % 10
        self.full = build_model(settings, shape, 10)
        self.seed = build_model(settings.model_copy(update={"block_width": 0.25}), shape, 10)
        self.sites = [site for site in find_sites(self.seed, self.images[:2]) if site.name.endswith("conv1")]
        self.wanted = {site.name: 3 * site.width for site in self.sites}
        self.training = torch.optim.SGD(self.full.parameters(), **SGD)
        self.optimizer = torch.optim.SGD(self.seed.parameters(), **SGD)
        self.spare = copy.deepcopy(self.seed)
        self.seed_training = torch.optim.SGD(self.spare.parameters(), **SGD)
        self.extended: dict[str, Extended] = {}
        self.plain: dict[str, tuple[Tensor, Tensor]] = {}
        self._train(self.seed, self.optimizer)  # so that there is state to grow

    def _measure(self) -> None:
        self._time("step", self.step)
        self._time("seed step", lambda: self._train(self.spare, self.seed_training))
        before = self._time("verification before", lambda: observe(self.seed, self._inputs))
        edit = self._time("event", self.event)
        after = self._time("verification after", lambda: observe(self.seed, self._inputs))
        edit.undo()
        self.change = function_change(before, after).worst
        if self.size.norm == "none":  # with one, the formula is another
            self._time("plain event", self._plain)

    @property
    def _inputs(self) -> Inputs:
        return Inputs((self.images,))

    def step(self) -> None:
        self._train(self.full, self.training)

    def event(self) -> Edit:
        measurement = Measurement(self.seed, F.cross_entropy, self._inputs, self.labels, tuple(self.sites))
        generator, gradmax = torch.Generator().manual_seed(0), GradMax()
        self.extended = {
            site.name: gradmax.extend(site, self.wanted[site.name], measurement, generator) for site in self.sites
        }
        growths = [
            Growth(site, self.wanted[site.name], Extension(self.extended[site.name].values)) for site in self.sites
        ]
        return grow(self.seed, growths, optimizer=self.optimizer)

    def _train(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(self.images), self.labels).backward()
        optimizer.step()

    def _plain(self) -> None:
        self.plain = {
            site.name: plain_gradmax(self.seed, self.images, self.labels, site, self.wanted[site.name])
            for site in self.sites
        }

    def _quality(self) -> dict[str, Any]:
        found: dict[str, Any] = {"form": sorted({one.form for one in self.extended.values()}), "change": self.change}
        if found["form"] != ["zero_fan_in"]:
            return found  # of the fan-in there is no closed form to compare with
        captured, largest = [], []
        for site in self.sites:
            assert site.chain is not None
            matrix, _ = self.plain[site.name]
            one = self.extended[site.name]
            slices = one.values[site.chain.consumer, 1]
            directions = F.normalize(slices.transpose(0, 1).flatten(1).double(), dim=1).T
            sigma = torch.linalg.svdvals(matrix.double())
            best = sigma[: directions.shape[1]].square().sum()
            captured.append(float((directions.T @ matrix.double()).square().sum() / best))
            largest.append(abs(one.facts["sigma"][0] / float(sigma[0]) - 1))
        return found | {"captured": min(captured), "sigma_error": max(largest)}


def plain_gradmax(
    model: nn.Module, images: Tensor, labels: Tensor, site: GrowthSite, count: int
) -> tuple[Tensor, Tensor]:
    """GradMax as its formula reads: a pass of the whole model, the full matrix, and all of its singular vectors.

    Returns:
        The matrix [O*9, C*9] and the directions of the new fan-outs [O*9, count].
    """
    assert site.chain is not None
    first = model.get_submodule(site.chain.producer.rpartition(".")[0])
    second = model.get_submodule(site.chain.consumer.rpartition(".")[0])
    assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
    seen: dict[str, Tensor] = {}
    hooks = [
        first.register_forward_hook(lambda module, inputs, output: seen.update(inputs=inputs[0].detach())),
        second.register_full_backward_hook(lambda module, inwards, outwards: seen.update(gradient=outwards[0])),
    ]
    model.zero_grad()
    F.cross_entropy(model(images), labels).backward()
    for hook in hooks:
        hook.remove()
    read = F.unfold(seen["inputs"], 3, padding=1, stride=first.stride)  # [B, C*9, hidden positions]
    # the second convolution has stride 1, so that it reads a hidden position from the outputs around it, turned round
    spread = F.unfold(seen["gradient"], 3, padding=1).unflatten(1, (-1, 9)).flip(2).flatten(1, 2)
    matrix = spread.transpose(0, 1).flatten(1) @ read.transpose(0, 1).flatten(1).T
    left, _, _ = torch.linalg.svd(matrix)
    return matrix, left[:, :count]


class _Pair(_Subject):
    """Two wide convolutions on noise, whose gradient matrix has the flattest of spectra."""

    size: PairSize

    def __init__(self, size: PairSize):
        super().__init__(size)
        torch.manual_seed(0)
        channels, shape = size.channels, (size.batch, size.channels, size.pixels, size.pixels)
        self.model = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        self.inputs, self.targets = torch.randn(shape), torch.randn(shape)
        (self.site,) = (site for site in find_sites(self.model, self.inputs[:2]) if site.chain)
        self.extended: Extended | None = None

    def _measure(self) -> None:
        self._time("pass", self.step)
        measurement = self._measurement()
        self._time("event", lambda: self._extend(measurement))
        self._time("solve", lambda: self._extend(measurement))  # all is measured, what is left is to solve

    def step(self) -> None:
        self.model.zero_grad()
        F.mse_loss(self.model(self.inputs), self.targets).backward()

    def event(self) -> None:
        self._extend(self._measurement())

    def _measurement(self) -> Measurement:
        return Measurement(self.model, F.mse_loss, Inputs((self.inputs,)), self.targets, (self.site,))

    def _extend(self, measurement: Measurement) -> None:
        self.extended = GradMax().extend(self.site, self.size.new, measurement, torch.Generator().manual_seed(0))

    def _quality(self) -> dict[str, Any]:
        assert self.extended is not None and self.site.chain is not None
        matrix = self._measurement().gradient_matrix(self.site).matrix.double()
        slices = self.extended.values[self.site.chain.consumer, 1]
        directions = F.normalize(slices.transpose(0, 1).flatten(1).double(), dim=1).T
        energies = torch.linalg.eigvalsh(matrix @ matrix.T).flip(0)[: self.size.new]
        captured = float((matrix.T @ directions).square().sum() / energies.sum())
        error = abs(self.extended.facts["sigma"][0] / float(energies[0].sqrt()) - 1)
        return {"form": [self.extended.form], "captured": captured, "sigma_error": error}


def _in_fresh_process(ask: Callable[..., T], *args: object) -> T:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(ask, *args).result()


def _peak_mb(size: NetworkSize | PairSize, what: str) -> float | None:
    """Memory that a step or an event needs beyond what the process had before it; None where Linux is not at hand."""
    if not sys.platform.startswith("linux"):
        return None
    torch.set_num_threads(1)
    subject = _Network(size) if isinstance(size, NetworkSize) else _Pair(size)
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)  # what preparing it left free would be used again, and not show
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = _status_mb("VmRSS")
    getattr(subject, what)()
    return _status_mb("VmHWM") - before


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))


def render_growth(result: dict[str, Any]) -> str:
    """Markdown tables: ratios of medians, memory and quality, for the networks and for the pairs."""
    lines: list[str] = []
    for kind, goals in GOALS.items():
        subjects = result[kind]
        lines += [f"| {kind} | {' | '.join(subjects)} | goal |", "|---" * (len(subjects) + 2) + "|"]
        for name in next(iter(subjects.values()))["cpu_seconds"]:
            cells = [_spread(one["cpu_seconds"].get(name)) for one in subjects.values()]
            lines.append(_row(f"{name}, ms", cells))
        for name, unit, goal in goals:
            ratios = [_total(one, name) / _total(one, unit) for one in subjects.values()]
            cells = [_or_none(ratio or None, ".2f") for ratio in ratios]
            lines.append(_row(f"{name} / {unit}", cells, goal))
        for what in ("step", "event"):
            cells = [_or_none(one["peak_mb"][what], ",.0f") for one in subjects.values()]
            goal = f"< {MEMORY_GOAL:,}" if what == "event" else ""
            lines.append(_row(f"peak memory of {'a step' if what == 'step' else 'an event'}, MB", cells, goal))
        for key, title, goal in (
            ("captured", "energy captured, of the best", ">= 0.999"),
            ("sigma_error", "error of the largest singular value", ""),
        ):
            lines.append(
                _row(
                    title,
                    [_or_none(one.get(key), ".3g" if "error" in key else ".5f") for one in subjects.values()],
                    goal,
                )
            )
        lines += [_row("form", [", ".join(one["form"]) for one in subjects.values()]), ""]
    environment = result["environment"]
    lines.append(
        f"Ratios of medians of CPU time over {result['rounds']} interleaved rounds; one thread, fp32; "
        f"{environment['processor']}, torch {environment['packages']['torch']}."
    )
    return "\n".join(lines)


def _total(one: dict[str, Any], name: str) -> float:
    """The median of a quantity, or the sum of those that it consists of."""
    return sum(
        times["median"] for key, times in one["cpu_seconds"].items() if key in (name, f"{name} before", f"{name} after")
    )


def _row(title: str, cells: list[str], goal: str = "") -> str:
    return f"| {title} | {' | '.join(cells)} | {goal} |"


def _spread(seconds: dict[str, float] | None) -> str:
    if seconds is None:
        return ""
    low, middle, high = (1e3 * seconds[key] for key in ("p25", "median", "p75"))
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"


def _or_none(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
