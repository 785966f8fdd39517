"""The benchmark of optimizer steps: every optimizer on every set, every ratio from its own medians."""

from __future__ import annotations

import pytest
from torch import nn
from typer.testing import CliRunner

from growkit.bench import optim as bench
from growkit.cli import app


def test_every_optimizer_is_measured_and_every_ratio_is_of_its_medians():
    result = bench.run_optim(3, {"one": lambda: nn.Linear(300, 200)}, batch=2)
    found = result["sets"]["one"]
    seconds = found["cpu_seconds"]
    assert (found["params"], found["tensors"]) == (60_200, 2)
    assert {"AdaBound", "SAM + SGD", "ASAM + SGD", "pytorch_optimizer SAM + SGD"} <= seconds.keys()
    assert all(0.0 < one["p25"] <= one["median"] <= one["p75"] for one in seconds.values())
    text = bench.render_optim(result)
    ratio = seconds["SAM + SGD"]["median"] / seconds["pytorch_optimizer SAM + SGD"]["median"]
    assert f"| SAM + SGD / pytorch_optimizer SAM + SGD | {ratio:.2f} |" in text
    assert f"Compiling took {result['compile_seconds']:.1f} s." in text
    whole = result["whole_steps"]["cpu_seconds"]
    ratio = whole["SAM + SGD"]["median"] / whole["SGD, fused"]["median"]
    assert f"ratio {ratio:.2f} (goal 2.1)" in text
    fastest = min(seconds[name]["median"] for name in seconds if name.startswith("pytorch_optimizer AdaBound"))
    assert f"the faster form | {seconds['AdaBound']['median'] / fastest:.2f} |" in text


def test_the_peer_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "find_spec", lambda name: None)
    result = CliRunner().invoke(app, ["bench", "optim"])
    assert result.exit_code == 2 and "pip install pytorch-optimizer" in result.stderr
