"""What sizes cost, in parameters and FLOPs."""

from __future__ import annotations

import pytest
from graph_cases import GROWABLE, LoopMLP, SmallVGG, flops_of, image, traced, vector, widened

from growkit.errors import ModelError
from growkit.graph import find_sites


@pytest.mark.parametrize("name", [name for name in GROWABLE if name != "recurrent"])
def test_flops_are_those_of_the_flop_counter(name):
    model, example, sites = traced(name)
    assert sites.graph.flops() == flops_of(model, example)


@pytest.mark.parametrize("name", [name for name in GROWABLE if name != "recurrent"])
def test_the_cost_of_a_unit_is_that_of_the_wider_net(name):
    model, example, sites = traced(name)
    for site in sites:
        wider = widened(model, site, 1)
        params = sum(parameter.numel() for parameter in wider.parameters())
        assert site.params_per_unit == params - sum(parameter.numel() for parameter in model.parameters()), site
        assert site.flops_per_unit == flops_of(wider, example) - flops_of(model, example), site


@pytest.mark.parametrize(
    ("seed", "wider", "sizes"),
    [
        (LoopMLP(), LoopMLP((6, 12, 9, 3)), {"layers.0": 12, "layers.1": 9}),
        (SmallVGG(), SmallVGG((7, 9, 13)), {"features.0": 7, "features.4": 9, "features.7": 9, "classifier.0": 13}),
    ],
    ids=["mlp", "vgg"],
)
def test_hypothetical_sizes_cost_what_a_net_built_that_way_costs(seed, wider, sizes):
    example = vector() if isinstance(seed, LoopMLP) else image()
    graph = find_sites(seed, example).graph
    assert graph.params(sizes) == sum(parameter.numel() for parameter in wider.parameters())
    assert graph.flops(sizes) == flops_of(wider, example)


def test_hypothetical_sizes_must_name_sites():
    with pytest.raises(ModelError, match=r"must name sites.*'nowhere'"):
        traced("mlp")[2].graph.params({"nowhere": 3})
