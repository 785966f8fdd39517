"""The names of a run stay, however often blocks are inserted."""

from __future__ import annotations

import random

import pytest
from depth_cases import CASES, fresh

from growkit.graph import find_places
from growkit.growth.names import Names
from growkit.surgery import Record, insert


@pytest.mark.parametrize("name", CASES)
def test_modules_of_the_seed_keep_their_names_and_all_others_get_one_of_their_own(name: str):
    model, x = fresh(name)
    seed = {id(module): path for path, module in model.named_modules()}
    records: list[Record] = []
    chance = random.Random(name)
    for _ in range(5):
        place = chance.choice(list(find_places(model, x)))
        records.append(insert(model, place).record)
        names = Names(records)
        called = {id(module): names.of(path) for path, module in model.named_modules()}
        assert {one: called[one] for one in seed} == seed
        assert len(set(called.values())) == len(called)


def test_blocks_are_numbered_as_they_come_whichever_of_them_they_follow():
    model, x = fresh("transformer")
    records = [insert(model, find_places(model, x)[name]).record for name in ("blocks.0", "blocks.1", "blocks.0")]
    names = Names(records)
    assert [names.of(f"blocks.{number}") for number in range(5)] == [
        "blocks.0",
        "blocks.0+3",
        "blocks.0+1",
        "blocks.0+2",
        "blocks.1",
    ]
    assert names.root("blocks.0+2") == "blocks.0" and names.like("blocks.0+2.mlp.0") == "blocks.0.mlp.0"
    assert names.of("blocks.1.qkv#2") == "blocks.0+3.qkv#2"
