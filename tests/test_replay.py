"""What an edit leaves on paper, and the architecture rebuilt from it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from surgery_cases import CASES, fresh, same, snapshot, widen_all
from torch import nn

from growkit.errors import UserInputError
from growkit.surgery import EDIT_VERSION, EditRecord, Growth, grow, replay
from growkit.surgery.records import runs_of


def test_record_is_for_one_site() -> None:
    model, sites, _ = fresh("vgg-like")
    with pytest.raises(ValueError, match="this one has 2; use records"):
        _ = widen_all(model, sites).record


def test_index_maps_are_written_as_runs() -> None:
    assert runs_of([0, 1, -1, 2, 3, -1, -1]) == [[0, 2], [-1, 1], [2, 2], [-1, 2]]


@pytest.mark.parametrize("name", CASES)
def test_a_record_survives_json_and_rebuilds_the_grown_model(name: str) -> None:
    model, sites, x = fresh(name)
    seed = copy.deepcopy(model)
    records = [*widen_all(model, sites, 1).records, *widen_all(model, sites, 2).records]
    written = [record.to_json() for record in records]
    read = [EditRecord.from_json(record) for record in json.loads(json.dumps(written))]
    assert [record.to_json() for record in read] == written
    assert [c.new_shape for r in read for c in r.tensors] == [c.new_shape for r in records for c in r.tensors]

    replay(seed, read)
    shapes = {key: value.shape for key, value in seed.state_dict().items()}
    assert shapes == {key: value.shape for key, value in model.state_dict().items()}
    seed.load_state_dict(model.state_dict())
    assert torch.equal(seed.eval()(x), model.eval()(x))
    assert snapshot(seed)["attributes"] == snapshot(model)["attributes"]


def test_a_record_of_another_version_is_refused() -> None:
    model, sites, _ = fresh("mlp")
    record = grow(model, [Growth(sites[0], 1)]).record.to_json() | {"version": 99}
    with pytest.raises(UserInputError, match=f"must have version {EDIT_VERSION}, got 99"):
        EditRecord.from_json(record)


def test_replaying_on_a_wrong_seed_is_refused_and_leaves_it_as_it_was() -> None:
    model, sites, _ = fresh("mlp")
    records = grow(model, [Growth(sites[0], 1)]).records
    wrong = nn.Sequential(nn.Linear(5, 6), nn.GELU(), nn.Identity(), nn.Linear(6, 4))
    before = snapshot(wrong)
    with pytest.raises(UserInputError, match=r"3.weight must have shape \(3, 6\), got \(4, 6\); is it the seed"):
        replay(wrong, records)
    assert same(snapshot(wrong), before)
    with pytest.raises(UserInputError, match=r"must have the parameter 0.weight, got none"):
        replay(nn.ReLU(), records)
