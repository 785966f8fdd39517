from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest
import torch

from growkit.rng import STREAMS, Streams, isolated


def draws(streams: Streams, name: str, count: int = 4) -> list[float]:
    return torch.rand(count, generator=streams.generator(name)).tolist()


def test_streams_differ_from_each_other_and_between_seeds():
    seeds = {Streams(seed).seed_of(name) for seed in range(20) for name in STREAMS}
    assert len(seeds) == 20 * len(STREAMS)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_seed_is_the_documented_digest():
    digest = hashlib.sha256(b"7/order").digest()
    assert Streams(7).seed_of("order") == int.from_bytes(digest[:8], "little") // 2


def test_a_stream_does_not_depend_on_the_order_in_which_streams_are_asked():
    forwards, backwards = Streams(3), Streams(3)
    ahead = {name: draws(forwards, name) for name in STREAMS}
    assert ahead == {name: draws(backwards, name) for name in reversed(STREAMS)}


def test_a_stream_does_not_depend_on_how_much_others_draw():
    quiet, busy = Streams(3), Streams(3)
    draws(busy, "growth", 1000)
    assert draws(busy, "order") == draws(quiet, "order")


def test_a_stream_advances():
    streams = Streams(0)
    assert draws(streams, "order") + draws(streams, "order") == draws(Streams(0), "order", 8)


def test_a_stream_is_the_same_in_another_process():
    code = "from growkit.rng import Streams; print(Streams(5).seed_of('init'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert int(printed) == Streams(5).seed_of("init")


def test_an_unknown_stream_is_named():
    with pytest.raises(ValueError, match="must be one of init, order, augmentation, growth, dropout, got 'ordre'"):
        Streams(0).generator("ordre")


def test_isolated_puts_the_global_state_back():
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with isolated(9):
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(inside, torch.rand(3, generator=torch.Generator().manual_seed(9)))


def test_isolated_puts_the_global_state_back_after_an_error():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with pytest.raises(KeyError), isolated():
        torch.rand(3)
        raise KeyError
    assert torch.equal(torch.get_rng_state(), before)


def test_isolated_without_a_seed_goes_on_from_the_present_state():
    torch.manual_seed(1)
    with isolated():
        inside = torch.rand(3)
    assert torch.equal(torch.rand(3), inside)


def test_a_lent_stream_goes_on_where_it_ended_whatever_is_drawn_between():
    whole, parts = Streams(4), Streams(4)
    with whole.lent("dropout"):
        expected = torch.rand(6)
    with parts.lent("dropout"):
        first = torch.rand(2)
    torch.rand(100)
    with parts.lent("dropout"):
        rest = torch.rand(4)
    assert torch.equal(torch.cat([first, rest]), expected)


def test_lending_leaves_the_global_state_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    with Streams(4).lent("dropout"):
        torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_lent_stream_keeps_its_place_after_an_error():
    whole, broken = Streams(4), Streams(4)
    with whole.lent("dropout"):
        expected = torch.rand(3)
    with pytest.raises(KeyError), broken.lent("dropout"):
        torch.rand(2)
        raise KeyError
    with broken.lent("dropout"):
        assert torch.equal(torch.rand(1), expected[2:])
