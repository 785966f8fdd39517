"""torch-pruning on the same models with no hints: does it build its graph, does the model run once it is pruned?"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from growkit.bench.catalogue import Entry, build, example_of
from growkit.bench.progress import Progress
from growkit.graph import arguments_of

__all__ = ["measure_peer"]

RATIO = 0.25


def measure_peer(entry: Entry, progress: Progress) -> None:
    """Fill `progress` with `built` (its graph), `changed` (parameters went), `usable`, `usable_train` (the forward)."""
    import torch_pruning

    with progress.stage("build"):
        model, example = build(entry)
        model.eval()
        progress.add(params=_numel(model), input=example_of(example), built=False, changed=False, usable=False)
    with progress.stage("graph"):
        torch_pruning.DependencyGraph().build_dependency(model, example_inputs=_as_it_wants(example))
    progress.add(built=True)
    with progress.stage("prune"):
        importance = torch_pruning.importance.MagnitudeImportance(p=2)
        torch_pruning.pruner.MagnitudePruner(
            model, _as_it_wants(example), importance=importance, pruning_ratio=RATIO
        ).step()
    progress.add(params_after=_numel(model), changed=_numel(model) < progress.row["params"])
    args, kwargs = arguments_of(example)
    with progress.stage("forward"), torch.no_grad():
        model.eval()(*args, **kwargs)
    progress.add(usable=progress.row["changed"], usable_train=False)
    with progress.stage("forward in train mode"), torch.no_grad():
        model.train()(*args, **kwargs)
    progress.add(usable_train=progress.row["changed"])


def _as_it_wants(example: Any) -> Any:
    return list(example) if isinstance(example, tuple) else example


def _numel(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
