"""The benchmark of growth events: what it compares is the same answer, and every ratio is of its own medians."""

from __future__ import annotations

import sys

import pytest

from growkit.bench import growth as bench


@pytest.fixture(scope="module")
def result() -> dict:
    networks = {"small": bench.NetworkSize(depth=10, pixels=8, batch=8)}
    return bench.run_growth(3, networks, {"pair": bench.PairSize(channels=72, new=9, pixels=3, batch=8)})


def test_the_fast_event_is_as_good_as_the_plain_one(result: dict) -> None:
    found = result["networks"]["small"]
    assert found["form"] == ["zero_fan_in"] and found["change"] <= 1e-5
    assert found["captured"] == pytest.approx(1.0, abs=1e-6)  # all of it, by decomposition
    assert found["sigma_error"] < 1e-6
    assert 0.999 <= result["pairs"]["pair"]["captured"] <= 1.0 + 1e-9  # nearly all of it, by iteration


def test_every_ratio_is_of_its_medians(result: dict) -> None:
    seconds = result["networks"]["small"]["cpu_seconds"]
    assert all(0.0 < one["p25"] <= one["median"] <= one["p75"] for one in seconds.values())
    text = bench.render_growth(result)
    ratio = seconds["event"]["median"] / seconds["step"]["median"]
    assert f"| event / step | {ratio:.2f} | <= 1.5 |" in text
    both = seconds["verification before"]["median"] + seconds["verification after"]["median"]
    assert f"| verification / step | {both / seconds['step']['median']:.2f} |" in text


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured on Linux alone")
def test_memory_is_that_of_the_event(result: dict) -> None:
    peaks = result["pairs"]["pair"]["peak_mb"]
    assert 0.0 < peaks["event"] < 1000 and 0.0 <= peaks["step"] < 1000
