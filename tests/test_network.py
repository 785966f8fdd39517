"""The public graph: every attribute as documented, true to the module, and back from GraphML."""

from __future__ import annotations

import json
import re
from pathlib import Path

import networkx as nx
import pytest
import torch
from torch import Tensor, nn

import growkit.graph.network as network
from growkit.errors import ModelError
from growkit.graph import Sites, find_sites
from growkit.graph.network import EDGE_ATTRIBUTES, NODE_ATTRIBUTES, network_of, to_networkx, write_graphml

DOCS = Path(__file__).parent.parent / "docs" / "inspect.md"
TYPES = {
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": lambda value: isinstance(value, tuple) and all(type(one) is int for one in value),
    "tuple[str, ...]": lambda value: isinstance(value, tuple) and all(type(one) is str for one in value),
    "tuple[tuple[str, ...], ...]": lambda value: (
        isinstance(value, tuple) and all(TYPES["tuple[str, ...]"](one) for one in value)
    ),
}


class Net(nn.Module):
    """Two branches of convolutions that are concatenated, a buffer, a constant and a dense head."""

    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Conv2d(1, 3, 3, padding=1), nn.Conv2d(1, 5, 1)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8 * 4 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        joined = torch.cat([self.left(x), self.right(x)], 1) * torch.tensor([2.0])
        return self.head(torch.relu(self.norm(joined)).flatten(1))


@pytest.fixture(scope="module")
def sites() -> Sites:
    return find_sites(Net(), torch.randn(2, 1, 4, 4))


@pytest.fixture(scope="module")
def graph(sites: Sites) -> nx.DiGraph:
    return network_of(sites.graph)


def test_every_node_and_edge_has_the_documented_attributes_and_types(graph: nx.DiGraph):
    assert {data["kind"] for _, data in graph.nodes(data=True)} >= {"op", "parameter", "buffer", "input", "output"}
    for found, documented in (
        ([data for _, data in graph.nodes(data=True)], NODE_ATTRIBUTES),
        ([data for *_, data in graph.edges(data=True)], EDGE_ATTRIBUTES),
    ):
        for data in found:
            assert list(data) and data.keys() == documented.keys()
            wrong = {name: data[name] for name, kind in documented.items() if not TYPES[kind](data[name])}
            assert wrong == {}


def test_docstring_and_documentation_describe_every_attribute_with_its_type():
    page = DOCS.read_text()
    for name, kind in NODE_ATTRIBUTES.items():
        assert f"{name} ({kind}): " in (to_networkx.__doc__ or ""), name
        assert f"| `{name}` | `{kind}` |" in page, name


def test_attributes_per_dimension_are_equally_long(graph: nx.DiGraph):
    for _, data in graph.nodes(data=True):
        assert len(data["shape"]) == len(data["dims"]) == len(data["sites"]) == len(data["refused"])
        assert len(data["roles"]) in (0, len(data["shape"]))


def test_parameters_have_the_shapes_of_the_module(graph: nx.DiGraph):
    shapes = {data["name"]: data["shape"] for _, data in graph.nodes(data=True) if data["kind"] == "parameter"}
    assert shapes == {name: tuple(parameter.shape) for name, parameter in Net().named_parameters()}


def test_tensors_name_the_sites_that_move_them_and_their_roles(sites: Sites, graph: nx.DiGraph):
    tensors = {data["name"]: data for _, data in graph.nodes(data=True) if data["kind"] in ("parameter", "buffer")}
    for site in sites:
        for member in site.members:
            data = tensors[member.names[0]]
            assert site.name in data["sites"][member.dim]
            assert data["roles"][member.dim] == member.role


def test_dimensions_are_expressions_over_sites_and_numbers(graph: nx.DiGraph):
    head = next(data for _, data in graph.nodes(data=True) if data["name"] == "head.weight")
    flattened = head["dims"][1]
    assert "left" in flattened and "right" in flattened
    widths = {"left": 3, "right": 5}
    value = eval(re.sub(r"[a-z]+", lambda name: str(widths[name[0]]), flattened), {})
    assert value == head["shape"][1] == 128


def test_a_dimension_is_moved_by_a_site_or_refused_for_a_reason_or_one(graph: nx.DiGraph):
    for _, data in graph.nodes(data=True):
        for extent, names, reason in zip(data["shape"], data["sites"], data["refused"], strict=True):
            assert bool(names) + bool(reason) == 1 or extent == 1, data


def test_operations_say_where_they_stand(graph: nx.DiGraph):
    cat = next(data for _, data in graph.nodes(data=True) if data["op"].startswith("aten.cat"))
    path, line = cat["location"].rsplit(":", 1)
    assert path == __file__ and "torch.cat" in Path(__file__).read_text().splitlines()[int(line) - 1]
    assert cat["module"] == ""
    assert next(data for _, data in graph.nodes(data=True) if data["op"].startswith("aten.linear"))["module"] == "head"


def test_graphml_round_trip(graph: nx.DiGraph, tmp_path: Path):
    path = tmp_path / "net.graphml"
    write_graphml(graph, path)
    back = nx.read_graphml(path)
    assert set(back.nodes) == set(graph.nodes) and set(back.edges) == set(graph.edges)

    def same(written: dict, read: dict) -> bool:
        as_json = {name: json.loads(json.dumps(value)) for name, value in written.items()}
        return as_json == {
            name: json.loads(value) if not isinstance(written[name], str) else value for name, value in read.items()
        }

    assert all(same(data, back.nodes[node]) for node, data in graph.nodes(data=True))
    assert all(same(data, back.edges[a, b]) for a, b, data in graph.edges(data=True))


def test_graphml_keeps_numbers_and_truth_values_and_replaces_what_xml_forbids(tmp_path: Path):
    graph = nx.DiGraph()
    graph.add_node("a", number=3, share=0.5, known=True, name="bell\x07 & <tag>")
    write_graphml(graph, tmp_path / "one.graphml")
    read = nx.read_graphml(tmp_path / "one.graphml").nodes["a"]
    assert read == {"number": 3, "share": 0.5, "known": True, "name": "bell\ufffd & <tag>"}


def test_graphml_refuses_what_it_cannot_hold(tmp_path: Path):
    graph = nx.DiGraph()
    graph.add_node("a", tensor=torch.zeros(2))
    with pytest.raises(ModelError, match="GraphML holds text, numbers.*got Tensor for 'tensor'"):
        write_graphml(graph, tmp_path / "one.graphml")


def test_the_graph_of_sites_has_shapes_on_its_edges(sites: Sites):
    graph = sites.to_networkx()
    assert all(len(graph.edges[edge]["shape"]) == len(graph.edges[edge]["dims"]) for edge in graph.edges)
    assert network.NODE_ATTRIBUTES.keys() == next(iter(graph.nodes.values())).keys()
