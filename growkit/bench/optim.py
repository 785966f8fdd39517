"""What an optimizer's step costs beside torch's own and beside pytorch_optimizer's, interleaved, in CPU time."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import nn
from torch._inductor.utils import fresh_cache
from torch.autograd.graph import increment_version

from growkit.config.models import WrnSettings
from growkit.environment import describe_environment
from growkit.errors import UserInputError
from growkit.models import build_model
from growkit.optim import ASAM, SAM, AdaBound
from growkit.optim.compiled import compiled_kernel

__all__ = ["GOALS", "SETS", "need_peer", "render_optim", "run_optim"]

RESULT_VERSION = 1
ENTRIES = 1.5e7  # parameters that all rounds of one set together step over, at most, for each optimizer
WHOLE_BATCH = 64
WHOLE_GOAL = 2.10  # SAM's step beside that of its base, with the passes through the model
SGD: dict[str, Any] = {"lr": 0.1, "momentum": 0.9}

Build = Callable[[nn.Module], torch.optim.Optimizer]


def _resnet() -> nn.Module:
    import torchvision

    return torchvision.models.resnet18(num_classes=10)


def _vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    return VisionTransformer(image_size=32, patch_size=4, num_layers=8, num_heads=6, hidden_dim=384, mlp_dim=1536)


SETS: dict[str, Callable[[], nn.Module]] = {
    "tiny: 20-32-2": lambda: nn.Sequential(nn.Linear(20, 32), nn.Linear(32, 2)),
    "deep: 20 x 64": lambda: nn.Sequential(*(nn.Linear(64, 64) for _ in range(20))),
    "wrn-28-4": lambda: build_model(WrnSettings(depth=28, width=4, norm="batchnorm"), (3, 32, 32), 10),
    "resnet18": _resnet,
    "vit 8x384": _vit,
}

OURS: dict[str, Build] = {
    "SGD, foreach": lambda model: torch.optim.SGD(model.parameters(), foreach=True, **SGD),
    "SGD, fused": lambda model: torch.optim.SGD(model.parameters(), fused=True, **SGD),
    "Adam, foreach": lambda model: torch.optim.Adam(model.parameters(), foreach=True),
    "Adam, fused": lambda model: torch.optim.Adam(model.parameters(), fused=True),
    "AdaBound": lambda model: AdaBound(model.parameters()),
    "AdaBound, compiled": lambda model: AdaBound(model.parameters(), compile=True),
    "SAM + SGD": lambda model: SAM(model.parameters(), torch.optim.SGD, model=model, **SGD),
    "ASAM + SGD": lambda model: ASAM(model.parameters(), torch.optim.SGD, model=model, **SGD),
}


def _peers() -> dict[str, Build]:
    import pytorch_optimizer

    sam, bound = pytorch_optimizer.SAM, pytorch_optimizer.AdaBound
    return {
        "pytorch_optimizer AdaBound": lambda model: bound(model.parameters()),
        "pytorch_optimizer AdaBound, loop": lambda model: bound(model.parameters(), foreach=False),
        "pytorch_optimizer SAM + SGD": lambda model: sam(model.parameters(), torch.optim.SGD, **SGD),
        "pytorch_optimizer SAM + fused SGD": lambda model: sam(model.parameters(), torch.optim.SGD, fused=True, **SGD),
        "pytorch_optimizer ASAM + SGD": lambda model: sam(model.parameters(), torch.optim.SGD, adaptive=True, **SGD),
    }


# ours, beside which one, the goal by set (None: no goal)
GOALS: list[tuple[str, tuple[str, ...], Mapping[str, float]]] = [
    ("SAM + SGD", ("pytorch_optimizer SAM + SGD",), {"tiny: 20-32-2": 0.5, "deep: 20 x 64": 0.5, "resnet18": 0.75}),
    (
        "SAM + SGD",
        ("pytorch_optimizer SAM + fused SGD",),
        {"tiny: 20-32-2": 0.65, "deep: 20 x 64": 0.65, "resnet18": 0.75},
    ),
    ("ASAM + SGD", ("pytorch_optimizer ASAM + SGD",), {}),
    ("AdaBound", ("pytorch_optimizer AdaBound", "pytorch_optimizer AdaBound, loop"), dict.fromkeys(SETS, 0.8)),
    ("AdaBound", ("Adam, foreach",), dict.fromkeys(SETS, 1.1)),
    ("AdaBound", ("Adam, fused",), {}),
    (
        "AdaBound, compiled",
        ("pytorch_optimizer AdaBound", "pytorch_optimizer AdaBound, loop"),
        {"wrn-28-4": 0.5, "resnet18": 0.5, "vit 8x384": 0.5},
    ),
]


def need_peer() -> None:
    """Raise UserInputError where what is measured beside is not installed."""
    if find_spec("pytorch_optimizer") is None:
        raise UserInputError(
            "this benchmark needs pytorch_optimizer, which is not installed; pip install pytorch-optimizer"
        )


def run_optim(
    rounds: int, sets: Mapping[str, Callable[[], nn.Module]] = SETS, batch: int = WHOLE_BATCH
) -> dict[str, Any]:
    """Step every optimizer on every set once a round, with fixed gradients.

    A step of SAM is perturbing, restoring, and the base's step; the two passes through a model are none of its.

    Args:
        rounds: at least so many; small sets get more.
        sets: parameters by name of the set.
        batch: images of a whole training step.

    Returns:
        For every set its parameters and tensors, and per optimizer the quartiles of the CPU seconds; environment; the
        seconds that compiling takes.

    Raises:
        UserInputError: nothing can be compiled.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        compiled = _seconds_to_compile()
        measured = {name: _measure(build(), rounds) for name, build in sets.items()}
        whole = _measure_whole_steps(rounds, batch)
    finally:
        torch.set_num_threads(threads)
    environment = describe_environment()
    environment["packages"]["pytorch_optimizer"] = metadata.version("pytorch-optimizer")
    return {
        "version": RESULT_VERSION,
        "rounds": rounds,
        "environment": environment,
        "compile_seconds": compiled,
        "sets": measured,
        "whole_steps": {"batch": batch, "cpu_seconds": whole},
    }


def _seconds_to_compile() -> float:
    """On the clock, from making AdaBound to the end of its first step, with nothing compiled before."""
    with fresh_cache():
        compiled_kernel.cache_clear()
        start = time.perf_counter()
        _step_of(nn.Linear(256, 256), OURS["AdaBound, compiled"])()
        return time.perf_counter() - start


def _measure(model: nn.Module, rounds: int) -> dict[str, Any]:
    steps = {name: _step_of(copy.deepcopy(model), build) for name, build in {**OURS, **_peers()}.items()}
    params = sum(parameter.numel() for parameter in model.parameters())
    return {
        "params": params,
        "tensors": len(list(model.parameters())),
        "cpu_seconds": _interleaved(steps, max(rounds, min(200, int(ENTRIES / params)))),
    }


def _measure_whole_steps(rounds: int, batch: int) -> dict[str, dict[str, float]]:
    """Training steps of WRN-28-1 on one batch, with the passes through the model."""
    model = build_model(WrnSettings(depth=28, width=1, norm="batchnorm"), (3, 32, 32), 10)
    images, labels = torch.randn(batch, 3, 32, 32), torch.arange(batch) % 10
    names = ("SGD, fused", "SAM + SGD")
    return _interleaved({name: _whole_step(copy.deepcopy(model), OURS[name], images, labels) for name in names}, rounds)


def _whole_step(model: nn.Module, build: Build, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], Any]:
    optimizer = build(model)

    def closure() -> Any:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)


def _interleaved(steps: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    """The quartiles of the CPU seconds of each, all of them once a round.

    In an order drawn for each round: what comes after its like would find the code and the memory warm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order, chance = list(steps.items()), random.Random(0)
    for number in range(-2, rounds):
        chance.shuffle(order)
        for name, step in order:
            start = time.process_time()
            step()
            if number >= 0:  # the first ones make state
                seconds[name].append(time.process_time() - start)
    return {
        name: dict(zip(("p25", "median", "p75"), np.quantile(times, [0.25, 0.5, 0.75]).tolist(), strict=True))
        for name, times in seconds.items()
    }


def _step_of(model: nn.Module, build: Build) -> Callable[[], Any]:
    optimizer: Any = build(model)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    if not hasattr(optimizer, "first_step"):
        return optimizer.step

    def both() -> None:
        optimizer.first_step(zero_grad=False)
        increment_version(gradients)  # as a second backward would
        optimizer.second_step(zero_grad=False)

    return both


def render_optim(result: dict[str, Any]) -> str:
    """Markdown tables: microseconds of every optimizer, then the ratios with their goals."""
    sets = result["sets"]
    lines = [f"| median CPU µs (quartiles) | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    lines.append(f"| parameters, tensors | {' | '.join(_size(one) for one in sets.values())} |")
    for name in next(iter(sets.values()))["cpu_seconds"]:
        lines.append(f"| {name} | {' | '.join(_spread(one['cpu_seconds'][name]) for one in sets.values())} |")
    lines += ["", f"| ratio of medians | {' | '.join(sets)} |", "|---" * (len(sets) + 1) + "|"]
    for ours, beside, goals in GOALS:
        cells = [_ratio(one["cpu_seconds"], ours, beside, goals.get(name)) for name, one in sets.items()]
        title = f"{ours} / {beside[0]}" + (", the faster form" if len(beside) > 1 else "")
        lines.append(f"| {title} | {' | '.join(cells)} |")
    whole = result["whole_steps"]["cpu_seconds"]
    batch, ratio = result["whole_steps"]["batch"], _ratio(whole, "SAM + SGD", ("SGD, fused",), WHOLE_GOAL)
    lines += [
        "",
        f"A whole training step of WRN-28-1, batch {batch}: SGD {_spread(whole['SGD, fused'])} µs, "
        f"SAM + SGD {_spread(whole['SAM + SGD'])} µs, ratio {ratio}.",
    ]
    environment = result["environment"]
    packages = ", ".join(f"{name} {environment['packages'][name]}" for name in ("torch", "pytorch_optimizer"))
    note = (
        f"One thread, fp32, at least {result['rounds']} interleaved rounds; {environment['processor']}, {packages}. "
        f"Compiling took {result['compile_seconds']:.1f} s."
    )
    return "\n".join([*lines, "", note])


def _size(one: dict[str, Any]) -> str:
    return f"{one['params']:,}, {one['tensors']}"


def _spread(seconds: dict[str, float]) -> str:
    low, middle, high = (1e6 * seconds[key] for key in ("p25", "median", "p75"))
    return f"{middle:,.0f} ({low:,.0f}-{high:,.0f})"


def _ratio(seconds: dict[str, dict[str, float]], ours: str, beside: tuple[str, ...], goal: float | None) -> str:
    ratio = seconds[ours]["median"] / min(seconds[name]["median"] for name in beside)
    return f"{ratio:.2f}" + (f" (goal {goal:g})" if goal else "")
