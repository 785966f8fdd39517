"""`growkit inspect`: what it prints, what it writes, and what it says to targets it cannot take."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import networkx as nx
import pytest
import torch
from conftest import EXPERIMENTS
from rich.console import Console
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from growkit.cli import app
from growkit.graph import find_sites
from growkit.graph.network import network_of
from growkit.inspection.facts import Facts, RefusalGroup, SiteFacts, facts_of
from growkit.inspection.frames import drawing_of, pattern
from growkit.inspection.layout import Layout, layout_of
from growkit.inspection.steps import steps_of
from growkit.inspection.svg import svg_of
from growkit.inspection.table import print_facts, short_location

ME = "test_inspection"


class Block(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.norm, self.up, self.down = nn.BatchNorm1d(width), nn.Linear(width, 12), nn.Linear(12, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Residual(nn.Module):
    """A stem, three equal residual blocks and a head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 6)
        self.blocks = nn.Sequential(Block(6), Block(6), Block(6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(x)))


class Branches(nn.Module):
    """Two equal branches beside each other, and a third that is longer."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(4, 6)
        self.c = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6))
        self.head = nn.Linear(18, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.a(x), self.b(x), self.c(x)], 1))


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(7, 5), nn.Linear(5, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.table(tokens).mean(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right, self.head = nn.Linear(3, 6), nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(torch.relu(self.left(x) + self.right(y)))


class Frozen(nn.Module):
    """New units would stay silent, for their reader cannot learn."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 2).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(x)))


instance = Residual()


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.Linear(8, 2))


def no_module() -> str:
    return "a string"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["inspect", *arguments])


def output(*arguments: str) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refused(*arguments: str) -> str:
    """The message of a command that must end with code 2, without a traceback."""
    result = run(*arguments)
    assert result.exit_code == 2, (result.output, result.exception)
    assert "Traceback" not in result.output and result.stdout == ""
    return result.stderr


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def drawn(model: nn.Module, *example: Tensor) -> tuple[Layout, str, Facts]:
    sites = find_sites(model, example)
    facts = facts_of("net", model, sites)
    steps, wires = steps_of(network_of(sites.graph), model)
    drawing = drawing_of(steps, wires, model)
    return layout_of(drawing), svg_of(drawing, facts), facts


# what is printed


def test_the_table_has_a_line_for_each_site_with_width_members_and_cost():
    lines = output("mlp", "model.hidden=[32, 16]").splitlines()
    row = next(line.split() for line in lines if line.startswith("hidden.0"))
    assert row[:7] == [
        "hidden.0.linear",
        "32",
        "hidden.0.linear",
        "hidden.1.linear",
        "-",
        "81",
        "160",
    ]  # 64 + 1 + 16 parameters
    assert "model     mlp: MLP on 2x1x8x8" in lines
    assert any("2,778 parameters" in line for line in lines)
    assert any("1 × is the model's output" in line for line in lines)


def test_a_terminal_gets_the_same_content():
    sites = find_sites(model := Residual(), torch.randn(2, 4))
    screen = io.StringIO()
    print_facts(facts_of("residual", model, sites), Console(file=screen, force_terminal=True, width=160, no_color=True))
    for name in ("blocks.0.up", "blocks.2.up", "stem", "is the model's output"):
        assert name in screen.getvalue()


def test_json_holds_what_the_graph_knows():
    facts = json.loads(output(f"{ME}:Residual", "--example", "4", "--json"))
    assert facts.keys() == Facts.__dataclass_fields__.keys()
    sites = find_sites(Residual(), torch.randn(2, 4))
    assert [(s["name"], s["width"], s["params_per_unit"], s["flops_per_unit"]) for s in facts["sites"]] == [
        (s.name, s.width, s.params_per_unit, s.flops_per_unit) for s in sites
    ]
    assert all(site.keys() == SiteFacts.__dataclass_fields__.keys() for site in facts["sites"])
    assert all(group.keys() == RefusalGroup.__dataclass_fields__.keys() for group in facts["refusals"])
    assert facts["params"] == sum(p.numel() for p in Residual().parameters())
    assert {(s["producers"][0], s["consumers"][0]) for s in facts["sites"]} >= {
        ("blocks.1.up.weight", "blocks.1.down.weight")
    }


def test_reach_is_the_share_of_parameters_in_tensors_that_can_grow():
    facts = json.loads(output(f"{ME}:Tokens", "--example", "9:int64", "--json"))
    assert facts["reach"] == (7 * 5 + 3 * 5) / (7 * 5 + 3 * 5 + 3)  # all but the bias of the head


def test_verify_says_which_sites_keep_the_function():
    facts = json.loads(output(f"{ME}:Residual", "--example", "4", "--verify", "--json"))
    assert [site["verified"] for site in facts["sites"]] == [True] * len(facts["sites"])
    assert 0.0 <= facts["worst_change"] < 1e-5
    assert "verified  1 of 1, " in output(f"{ME}:TwoInputs", "--example", "3", "--example", "4", "--verify")


def test_what_fails_when_tried_is_not_said_to_grow():
    table = output(f"{ME}:Frozen", "--example", "4", "--verify")
    assert "0 may grow and reach 0.0% of the parameters\nverified  none of 1: " in table
    assert "params/unit" not in table and "changed by" not in table
    assert "failed    1 when tried\n     1 × no gradient reaches its new units, for 'second.weight' is frozen" in table
    facts = json.loads(output(f"{ME}:Frozen", "--example", "4", "--verify", "--json"))
    assert facts["worst_change"] is None and [one["verified"] for one in facts["sites"]] == [False]
    assert [one["tried"] for one in facts["refusals"]] == [True, False, False]


def test_a_module_instance_is_inspected_as_it_is():
    assert f"{ME}:instance: Residual on 2x4" in output(f"{ME}:instance", "--example", "4")
    assert "leave them out" in refused(f"{ME}:instance", "model.args.width=3", "--example", "4")


@pytest.mark.parametrize(
    ("target", "hint"), [("nets.py:make", ": nets:make"), ("./nets.py", ": nets:NAME, NAME being")]
)
def test_a_python_file_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, hint: str):
    (tmp_path / "nets.py").touch()
    monkeypatch.chdir(tmp_path)
    assert f"{target!r} is a Python file, and a model in one is named by its module{hint}" in refused(target)
    assert "did you mean other:make?" in refused("other.py:make")


def test_without_verify_nothing_is_claimed():
    facts = json.loads(output("mlp", "--json"))
    assert {site["verified"] for site in facts["sites"]} == {None} and facts["worst_change"] is None


def test_an_experiment_is_inspected_on_its_own_data_with_overrides():
    facts = json.loads(output(str(EXPERIMENTS / "wrn_quarter.yaml"), "model.depth=10", "--json"))
    assert facts["model"] == "WideResNet" and facts["input_shapes"] == [[2, 1, 8, 8]]
    assert facts["params"] == 22_042


def test_arguments_of_a_callable_are_settings():
    facts = json.loads(
        output("torch.nn:Linear", "model.args={in_features: 3, out_features: 4}", "--example=3", "--json")
    )
    assert facts["params"] == 16


def test_a_model_of_torchvision_has_its_own_input_size():
    pytest.importorskip("torchvision")
    facts = json.loads(output("torchvision:squeezenet1_1", "--json", "--example", "3x64x64"))
    assert facts["model"] == "SqueezeNet" and facts["params"] == 1_235_496


@pytest.mark.parametrize(
    ("location", "shown"),
    [
        ("{here}/net.py:3", "net.py:3"),
        ("/a/lib/site-packages/torchvision/models/vgg.py:9", "torchvision/models/vgg.py:9"),
        ("/elsewhere/net.py:3", "/elsewhere/net.py:3"),
        (None, ""),
    ],
)
def test_locations_are_shortened(location: str | None, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert short_location(location and location.format(here=tmp_path)) == shown


# what is written


def test_svg_is_well_formed_names_all_sites_and_runs_nothing(tmp_path: Path):
    output("wrn", "--svg", str(tmp_path / "wrn.svg"))
    text = (tmp_path / "wrn.svg").read_text()
    root = ET.fromstring(text)
    assert root.tag.endswith("svg")
    words = " ".join(root.itertext())
    facts = json.loads(output("wrn", "--json"))
    assert [site["name"] for site in facts["sites"] if site["name"] not in words] == []
    assert "<script" not in text and "href" not in text


def test_the_legend_says_which_widths_grow_by_whole_copies():
    layer = nn.TransformerEncoderLayer(8, 2, 12, batch_first=True)
    _, text, facts = drawn(nn.Sequential(nn.Linear(3, 8), layer, nn.Linear(8, 2)), torch.randn(2, 5, 3))
    entries = [line for line in ET.fromstring(text).itertext() if "FLOPs per unit" in line]
    assert [entry.startswith("by whole copies; ") for entry in entries] == [site.by_copies for site in facts.sites]
    assert {site.by_copies for site in facts.sites} == {True, False}


def test_no_text_is_smaller_than_11_pixels():
    _, text, _ = drawn(Residual(), torch.randn(2, 4))
    sizes = [float(node.get("font-size", "0")) for node in ET.fromstring(text).iter() if node.tag.endswith("}text")]
    assert sizes and min(sizes) >= 11


def test_equal_blocks_in_a_row_are_drawn_once_with_their_number():
    layout, text, _ = drawn(Residual(), torch.randn(2, 4))
    (ring,) = layout.rings
    assert ring.frame.paths == ["blocks.0", "blocks.1", "blocks.2"] and "× 3" in text
    names = [box.step.name for box in layout.boxes.values()]
    assert names == ["x", "stem", "blocks.0.norm", "blocks.0.up", "blocks.0.down", "", "head", ""]


def test_equal_branches_beside_each_other_are_all_drawn():
    layout, _, _ = drawn(Branches(), torch.randn(2, 4))
    assert [box.step.name for box in layout.boxes.values() if box.step.kind == "module"] == [
        "a", "b", "c.0", "c.2", "head",
    ]  # fmt: skip


def test_blocks_of_different_width_are_drawn_apart():
    model = Residual()
    model.blocks[1].up, model.blocks[1].down = nn.Linear(6, 9), nn.Linear(9, 6)
    layout, _, _ = drawn(model, torch.randn(2, 4))
    assert [ring.frame.count for ring in layout.rings if ring.depth == 2] == [1, 1, 1]


@pytest.mark.parametrize(
    ("model", "shapes"), [(Residual, [(2, 4)]), (Branches, [(2, 4)]), (TwoInputs, [(2, 3), (2, 4)])]
)
def test_no_box_overlaps_another_and_everything_lies_on_the_page(model: type[nn.Module], shapes: list[tuple[int, ...]]):
    layout, text, _ = drawn(model(), *[torch.randn(shape) for shape in shapes])
    boxes = list(layout.boxes.values())
    for one, other in itertools.combinations(boxes, 2):
        beside = one.x + one.width <= other.x or other.x + other.width <= one.x
        below = one.y + one.height <= other.y or other.y + other.height <= one.y
        assert beside or below, (one.step.name, other.step.name)
    root = ET.fromstring(text)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for x, y in [point for route in layout.routes for point in route.points]:
        assert 0 <= x <= width and 0 <= y <= height


def test_wires_pass_no_box_they_do_not_touch():
    layout, _, _ = drawn(Branches(), torch.randn(2, 4))
    for route in layout.routes:
        ends = {route.wire.source, route.wire.target}
        for (x0, y0), (x1, y1) in itertools.pairwise(route.points):
            for number, box in layout.boxes.items():
                across = min(x0, x1) < box.x + box.width and max(x0, x1) > box.x
                along = min(y0, y1) < box.y + box.height and max(y0, y1) > box.y
                assert number in ends or not (across and along), (route.wire, box.step.name)


def test_a_wire_knows_its_width_and_the_site_that_moves_it():
    layout, _, _ = drawn(Residual(), torch.randn(2, 4))
    boxes = layout.boxes
    wires = {(boxes[r.wire.source].step.name, boxes[r.wire.target].step.name): r.wire for r in layout.routes}
    assert wires["blocks.0.up", "blocks.0.down"].width == 12
    assert wires["blocks.0.up", "blocks.0.down"].movers == ("blocks.0.up",)
    assert wires["x", "stem"].reason == "is the model's input"


@pytest.mark.parametrize(
    ("names", "shown"),
    [(["a.0.b"], "a.0.b"), (["a.0.b", "a.1.b"], "a.*.b"), (["layer_1", "layer_12"], "layer_1*"), (["x", "y"], "*")],
)
def test_one_pattern_for_several_names(names: list[str], shown: str):
    assert pattern(names) == shown


def test_names_that_xml_forbids_are_drawn(tmp_path: Path):
    model = nn.Sequential()
    model.add_module("a<b>&\x01", nn.Linear(4, 6))
    model.add_module("out", nn.Linear(6, 2))
    _, text, _ = drawn(model, torch.randn(2, 4))
    assert "a<b>&\ufffd" in " ".join(ET.fromstring(text).itertext())


def test_graphml_is_read_back(tmp_path: Path):
    path = tmp_path / "mlp.graphml"
    output("mlp", "--graphml", str(path))
    names = {data["name"] for _, data in nx.read_graphml(path).nodes(data=True) if data["kind"] == "parameter"}
    assert names == {
        f"{layer}.{kind}" for layer in ("hidden.0.linear", "hidden.1.linear", "head") for kind in ("weight", "bias")
    }


# what is refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["wnr"], r"did you mean 'wrn'\? It must be a YAML file, a model \("),
        (["missing.yaml"], "missing.yaml: no such file"),
        (["mlp", "model.hiden=3"], "did you mean 'model.hidden'|did you mean 'hidden'"),
        (["mlp", "model"], "write key.path=value"),
        (["nowhere:Net"], "importing 'nowhere' failed"),
        ([f"{ME}:Residul"], "has no 'Residul'; did you mean 'Residual'?"),
        ([f"{ME}:no_module", "--example=4"], "must return a torch.nn.Module, got str"),
        ([f"{ME}:lazy", "--example=4"], "'0.weight' is lazy, .* run the model once"),
        ([f"{ME}:Residual"], "needs an example input: pass --example"),
        ([f"{ME}:Residual", "--example=5"], r"does not run on \[2, 5\] float32 .*pass the shape of one sample"),
        ([f"{ME}:Tokens", "--example=5"], r"does not run on \[2, 5\] float32 .*128:int64"),
        ([f"{ME}:Residual", "--example=4xb"], "--example must be sizes of 1 or more joined by x.*got '4xb'"),
        ([f"{ME}:Residual", "--example=0"], "sizes of 1 or more"),
        ([f"{ME}:Residual", "--example=4:int7"], "int64.*got '4:int7'"),
        (["mlp", "--svg=no/such/folder/x.svg"], "no/such/folder/x.svg cannot be written"),
    ],
)
def test_bad_input_ends_with_code_2_and_says_what_to_do(arguments: list[str], message: str):
    import re

    assert re.search(message, refused(*arguments)), refused(*arguments)


@pytest.mark.parametrize(("model", "shape"), [("lstm", [2, 128]), ("gpt", [2, 128]), ("seq2seq", [2, 2, 64])])
def test_a_model_of_tokens_is_shown_on_tokens(model: str, shape: list[int]):
    done = run(model, "model.width=0.25", "--json")
    assert done.exit_code == 0 and json.loads(done.stdout)["input_shapes"] == [shape]


def test_an_unknown_model_of_torchvision_is_named_with_its_neighbours():
    pytest.importorskip("torchvision")
    assert "did you mean torchvision:resnet18" in refused("torchvision:resnt18")


def test_an_absent_library_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "timm:vit_tiny_patch16_224 needs timm: pip install timm" in refused("timm:vit_tiny_patch16_224")


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "--help"], ["inspect", "wnr"], ["inspect", "mlp", "x"]])
def test_torch_is_not_imported_for_help_or_bad_targets(arguments: list[str]):
    run_it = f"from growkit.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    code = f"import sys\n{run_it}\nprint('torch' in sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip().endswith("False")
