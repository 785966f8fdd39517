"""Benchmarks: the numbers are those of the rows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from growkit.bench.measure import kind_of
from growkit.bench.progress import to_json, without_folders
from growkit.bench.summary import models_table, quantiles, render, summarise

ROWS: list[dict[str, Any]] = [
    {
        "model": "a",
        "stage": "done",
        "seconds": {"analyse": 0.1, "verify": 2.0},
        "wall_seconds": 4.0,
        "params": 100,
        "nodes": 200,
        "found": 4,
        "verified": 4,
        "reach_found": 1.0,
        "reach_verified": 1.0,
        "graph_refusals": {"is the model's output": 2},
        "trial_refusals": {},
        "error_eval": 1e-7,
        "error_train": 3e-7,
        "control": 0.5,
    },
    {
        "model": "b",
        "stage": "done",
        "seconds": {"analyse": 0.3, "verify": 4.0},
        "wall_seconds": 6.0,
        "params": 300,
        "nodes": 300,
        "found": 6,
        "verified": 1,
        "path_specialised": True,
        "reach_found": 0.8,
        "reach_verified": 0.4,
        "graph_refusals": {"is the model's output": 1, "softmax runs over it": 1},
        "trial_refusals": {"odd": 5},
        "error_eval": "inf",
        "error_train": 1e-7,
        "control": 0.1,
    },
    {
        "model": "c",
        "stage": "verify",
        "seconds": {"analyse": 0.2},
        "wall_seconds": 120.0,
        "params": 50,
        "nodes": 100,
        "found": 10,
        "reach_found": 0.9,
        "graph_refusals": {},
        "failure": {"kind": "TimeLimit", "message": "killed after 120 s"},
    },
    {
        "model": "d",
        "stage": "trace",
        "seconds": {},
        "wall_seconds": 3.0,
        "failure": {"kind": "ModelError", "message": "cannot | be traced"},
    },
]
PEERS: list[dict[str, Any]] = [
    {"model": "a", "stage": "done", "seconds": {}, "wall_seconds": 2.0, "built": True, "usable": True}
    | {"usable_train": True},
    {"model": "b", "stage": "forward", "seconds": {}, "wall_seconds": 2.0, "built": True, "usable": False}
    | {"failure": {"kind": "RuntimeError", "message": "shape"}},
]


def test_the_summary_counts_what_the_rows_say():
    summary = summarise(ROWS, PEERS)
    assert (summary["models"], summary["traced"], summary["with_verified_site"]) == (4, 3, 2)
    assert (summary["found"], summary["verified"], summary["all_found_verified"]) == (20, 5, 1)
    assert summary["path_specialised"] == 1
    assert summary["graph_refusals"] == {"is the model's output": 3, "softmax runs over it": 1}
    assert summary["trial_refusals"] == {"odd": 5}
    assert summary["failures"] == {"TimeLimit in verify": ["c"], "ModelError in trace": ["d"]}
    assert (summary["torch_pruning"]["built"], summary["torch_pruning"]["usable"]) == (2, 1)


def test_every_model_lies_in_one_range_of_reach():
    counts = summarise(ROWS)["reach_counts"]
    assert counts == {"0 to 0.5": 3, "0.5 to 0.75": 0, "0.75 to 0.9": 0, "0.9 to 0.99": 0, "0.99 to 1": 1}


def test_models_that_failed_count_as_reach_0():
    reach = summarise(ROWS)["reach_verified"]
    assert reach["median"] == pytest.approx(0.2)  # of 0, 0, 0.4, 1
    assert (reach["min"], reach["max"]) == (0.0, 1.0)


def test_an_infinite_error_is_the_worst_and_names_its_model():
    summary = summarise(ROWS)
    assert summary["error_eval"]["max"] == "inf" and summary["grown_wrong"] == ["b"]
    assert summary["error_train"] == {"min": 1e-7, "median": 2e-7, "max": 3e-7}
    assert "Grown wrongly: b." in render({**summary, "in_set": 4})
    json.loads(json.dumps(summary, allow_nan=False))


def test_analysis_is_counted_per_1000_nodes():
    assert summarise(ROWS)["analysis_seconds_per_1000_nodes"]["median"] == pytest.approx(1.0)  # of 0.5, 1, 2


def test_no_rows_make_a_summary_without_numbers():
    summary = summarise([], [])
    assert summary["reach_verified"] is None and quantiles([]) is None
    assert "| models | 0 of 0 | 0 |" in render(summary)


def test_the_table_of_models_has_one_line_each_also_for_failures():
    lines = models_table("set", ROWS, PEERS).splitlines()[4:]
    assert [line.split(" | ")[0] for line in lines] == ["| a", "| b", "| c", "| d"]
    assert "usable" in lines[0] and "built; RuntimeError in forward" in lines[1]
    assert "cannot \\| be traced" in lines[3]
    assert {line.replace("\\|", "").count("|") for line in lines} == {14}


def test_reasons_are_counted_by_kind():
    one = "widening it changes the outputs by 1.2e-02 of their size"
    assert (
        kind_of(one)
        == kind_of(one.replace("1.2e-02", "3.4e+00"))
        == "widening it changes the outputs by # of their size"
    )
    failing = "the model fails at another width: RuntimeError: shape '[1, 960, 49]' is invalid for input of size 7"
    assert kind_of(failing).endswith("shape '…' is invalid for input of size #")
    slices = "surgery cannot widen it: new slices of {} along dimension {} must have shape (8, 2), got (4, 2)"
    assert kind_of(slices.format("layer3.0.conv1.weight", 0)) == kind_of(slices.format("layer1.2.conv2.weight", 1))
    joint = "it cannot grow at the same events as {}: widening it changes the outputs' shape"
    assert kind_of(joint.format("a.b, c")) == kind_of(joint.format("d"))
    assert kind_of("meets an operation without a rule: aten.conv2d.default").endswith("aten.conv2d.default")


def test_rows_hold_no_folders_and_only_json_numbers():
    text = "fails at /opt/env/lib/python3.11/site-packages/timm/models/vit.py:10 and '/home/me/own/net.py' line 3"
    assert without_folders(text) == "fails at timm/models/vit.py:10 and 'net.py' line 3"
    assert json.loads(to_json({"a": float("inf"), "b": [1.5]})) == {"a": "inf", "b": [1.5]}
