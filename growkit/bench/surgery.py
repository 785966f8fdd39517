"""What surgery costs in forward passes: analysis, edits, undo, replay and verification, interleaved, in CPU time."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from growkit.api import widen
from growkit.bench.measure import SHARE, extension, verify
from growkit.config.models import WrnSettings
from growkit.environment import describe_environment
from growkit.errors import UserInputError
from growkit.graph import GrowthSite, ModelGraph, Sites
from growkit.graph.tracing import trace_both_modes
from growkit.models import build_model
from growkit.surgery import Edit, Growth, Inputs, Verdict, grow, replay

__all__ = ["GOALS", "SUBJECTS", "render", "reserve", "run_surgery", "write"]

BATCH = 8
RESULT_VERSION = 1
T = TypeVar("T")

# quantity -> (what it is divided by, the goal)
GOALS: dict[str, tuple[str, float | None]] = {
    "analysis": ("1000 nodes", 1.0),
    "edit_one": ("forward", 3.0),
    "edit_all": ("forward", 3.0),
    "undo_one": ("forward", None),
    "undo_all": ("forward", None),
    "replay": ("forward", None),
    "widen_one": ("forward", 15.0),
    "verify": ("forward", 15.0),
}


def _wrn() -> tuple[nn.Module, Tensor]:
    return build_model(WrnSettings(norm="batchnorm"), (3, 32, 32), 10), torch.randn(BATCH, 3, 32, 32)


def _torchvision(name: str, size: int) -> Callable[[], tuple[nn.Module, Tensor]]:
    def build() -> tuple[nn.Module, Tensor]:
        import torchvision

        return torchvision.models.get_model(name, weights=None), torch.randn(BATCH, 3, size, size)

    return build


def _vit() -> tuple[nn.Module, Tensor]:
    from torchvision.models import VisionTransformer

    model = VisionTransformer(image_size=64, patch_size=8, num_layers=4, num_heads=4, hidden_dim=128, mlp_dim=512)
    return model, torch.randn(BATCH, 3, 64, 64)


SUBJECTS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "wrn-16-1, 32x32": _wrn,
    "resnet18, 64x64": _torchvision("resnet18", 64),
    "mobilenet_v3_small, 96x96": _torchvision("mobilenet_v3_small", 96),
    "vit 4x128, 64x64": _vit,
}


def run_surgery(rounds: int, subjects: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = SUBJECTS) -> dict[str, Any]:
    """Measure every quantity of every model once a round, so that a slow minute of the machine hits all alike.

    Returns:
        For every model its nodes, sites, the forwards that verification took, and for every quantity median and
        quartiles of the CPU seconds and the ratio of medians (GOALS).
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        prepared = {name: _Subject(*build()) for name, build in subjects.items()}
        for _ in range(rounds):
            for subject in prepared.values():
                subject.measure()
    finally:
        torch.set_num_threads(threads)
    return {
        "version": RESULT_VERSION,
        "batch": BATCH,
        "rounds": rounds,
        "environment": {**describe_environment(), "threads": 1},
        "models": {name: subject.result() for name, subject in prepared.items()},
    }


class _Subject:
    """One model with its traces, and the CPU seconds of each quantity so far."""

    def __init__(self, model: nn.Module, example: Tensor):
        self.model, self.example, self.inputs = model.eval(), example, Inputs((example,))
        self.traces = trace_both_modes(model, example)
        self.nodes = len(self.traces[0].graph.nodes)
        found = list(Sites(self._graph()))
        self.found = len(found)
        self.sites = verify(model, found, self.inputs).sites  # and everything is warm
        self.forwards: dict[str, int] = {}
        self.seconds: dict[str, list[float]] = {}

    def measure(self) -> None:
        self._time("forward", self._forward)
        self._time("analysis", self._graph)
        self._edit("one", self.sites[len(self.sites) // 2 :][:1])
        self._edit("all", self.sites)
        self._widen(self.sites[len(self.sites) // 2])
        fresh = list(Sites(self._graph()))  # a trial settles the sites that it is given
        self._time("verify", lambda: self._verify(fresh))

    def _time(self, name: str, act: Callable[[], T]) -> T:
        start = time.process_time()
        made = act()
        self.seconds.setdefault(name, []).append(time.process_time() - start)
        return made

    @torch.no_grad()
    def _forward(self) -> None:
        self.model(self.example)

    def _graph(self) -> ModelGraph:
        return ModelGraph(self.model, *self.traces, inputs=((self.example,), {}))

    def _edit(self, which: str, sites: tuple[GrowthSite, ...]) -> None:
        seed = copy.deepcopy(self.model)
        growths = [self._growth(site) for site in sites]
        edit: Edit = self._time(f"edit_{which}", lambda: grow(self.model, growths))
        self._time(f"undo_{which}", edit.undo)
        if which == "all":
            self._time("replay", lambda: replay(seed, edit.records))

    def _growth(self, site: GrowthSite) -> Growth:
        num = _a_quarter(site)
        return Growth(site, num, extension(self.model, site, num, torch.Generator().manual_seed(0), fan_out=False))

    def _widen(self, site: GrowthSite) -> None:
        """An edit with its verification, of a site that was tried before."""
        num = _a_quarter(site)
        with self._counted("widen"):
            edit = self._time("widen_one", lambda: widen(self.model, site, num, example=self.example))
        edit.undo()

    def _verify(self, sites: list[GrowthSite]) -> Verdict:
        with self._counted("verify"):
            return verify(self.model, sites, self.inputs)

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        """Count the forwards of a block."""
        self.forwards[name] = 0

        def count(module: nn.Module, args: Any) -> None:
            self.forwards[name] += 1

        hook = self.model.register_forward_pre_hook(count)  # a copy of the model keeps it
        try:
            yield
        finally:
            hook.remove()

    def result(self) -> dict[str, Any]:
        middle = {name: float(np.median(seconds)) for name, seconds in self.seconds.items()}
        units = {"1000 nodes": self.nodes / 1000, "forward": middle["forward"]}
        return {
            "params": sum(parameter.numel() for parameter in self.model.parameters()),
            "nodes": self.nodes,
            "found": self.found,
            "verified": len(self.sites),
            "verify_forwards": self.forwards["verify"],
            "widen_forwards": self.forwards["widen"],
            "cpu_seconds": {
                name: dict(zip(("p25", "median", "p75"), np.quantile(times, [0.25, 0.5, 0.75]).tolist(), strict=True))
                for name, times in self.seconds.items()
            },
            "ratios": {name: middle[name] / units[unit] for name, (unit, _) in GOALS.items()},
        }


def _a_quarter(site: GrowthSite) -> int:
    """Of the units, or one copy of all where only that is exact."""
    return site.grows_by if site.by_copies else max(1, int(SHARE * site.width))


def render(result: dict[str, Any]) -> str:
    """A markdown table: a row for every ratio, a column for every model."""
    models = result["models"]
    lines = [f"| | {' | '.join(models)} | goal |", "|---" * (len(models) + 2) + "|"]

    def line(name: str, cells: list[str], goal: str = "") -> None:
        lines.append(f"| {name} | {' | '.join(cells)} | {goal} |")

    line("graph nodes", [str(one["nodes"]) for one in models.values()])
    line("sites verified / found", [f"{one['verified']} / {one['found']}" for one in models.values()])
    line("forward, ms", [f"{1000 * one['cpu_seconds']['forward']['median']:.1f}" for one in models.values()])
    for name, (unit, goal) in GOALS.items():
        title = f"{name.replace('_', ' ')}, {'s per 1000 nodes' if unit == '1000 nodes' else 'forwards'}"
        line(title, [f"{one['ratios'][name]:.2f}" for one in models.values()], f"< {goal:g}" if goal else "")
    for name in ("widen", "verify"):
        line(f"forwards run by {name}", [str(one[f"{name}_forwards"]) for one in models.values()], "<= 15")
    environment = result["environment"]
    note = (
        f"Ratios of medians of CPU time over {result['rounds']} interleaved rounds; one thread, "
        f"batch {result['batch']}, fp32; {environment['processor']}, torch {environment['packages']['torch']}."
    )
    return "\n".join([*lines, "", note])


def reserve(path: Path) -> None:
    """Make sure that a file can be written before minutes are spent on what it will hold.

    Raises:
        UserInputError: it cannot.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as error:
        raise UserInputError(
            f"--out must name a file that can be written, got {str(path)!r}: {error.strerror}"
        ) from error


def write(result: dict[str, Any], path: Path) -> None:
    """Write the numbers as JSON."""
    path.write_text(json.dumps(result, indent=1) + "\n")
