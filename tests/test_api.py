"""The Python door: a user's own module, in a few lines."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.errors import DataError, GrowthRefused, ModelError, SurgeryError, UserInputError
from growkit.growth.initializers import any_graph
from growkit.surgery import function_change


class Residual(nn.Module):
    """A user's module: convolution, BatchNorm, torch's own ReLU, a residual sum, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 4, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.hidden = nn.Linear(6 * 16, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm1(self.stem(x)))
        x = x + self.conv2(torch.relu(self.norm2(self.conv1(x))))
        x = nn.functional.max_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    images = torch.randn(300, 1, 8, 8, generator=generator) + labels.view(-1, 1, 1, 1)
    return images, labels


SETTINGS = {
    "train.epochs": 4,
    "train.batch_size": 32,
    "train.optimizer.lr": 0.02,
    "growth.when.start": 1,
    "growth.when.every": 1,
}


def test_an_arbitrary_module_grows(data: tuple[Tensor, Tensor]):
    torch.manual_seed(0)
    seed = Residual()
    grown = growkit.grow(seed, data, config={**SETTINGS, "growth.fallback": "zero"}, observers=())
    assert grown.model is seed
    assert type(seed) is Residual
    assert seed.conv1.out_channels == seed.norm2.num_features == seed.conv2.in_channels > 4  # inside the block
    assert seed.stem.out_channels == seed.conv2.out_channels == seed.norm1.num_features > 6  # the residual stream
    assert seed.hidden.in_features == 16 * seed.stem.out_channels  # through flatten
    assert seed.hidden.out_features > 8
    assert max(grown.result["largest_change"].values()) <= 1e-5
    assert grown.result["smallest_new_gradient"] > 0.0
    assert grown.result["test"]["accuracy"] > 0.6


def test_without_a_fallback_widths_that_gradmax_cannot_serve_stay_and_say_so(
    data: tuple[Tensor, Tensor], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(any_graph, "LARGEST_FAN_OUT", 10)
    grown = growkit.grow(Residual(), data, config=SETTINGS, observers=())
    assert grown.model.get_submodule("stem").out_channels == 6
    assert any(line.startswith("stem: gradmax measures units that at most 10 entries read") for line in grown.refusals)
    assert any(line.startswith("head: is the model's output") for line in grown.refusals)


def test_torch_relu_takes_the_mirrored_form_and_the_event_says_why(data: tuple[Tensor, Tensor]):
    grown = growkit.grow(Residual(), data, config=SETTINGS, observers=())
    hidden = next(g for g in grown.events[0].grown if g.site == "hidden")
    assert hidden.form == "zero_fan_out"
    assert "slope 0 at 0" in hidden.reason


def test_a_budget_is_kept(data: tuple[Tensor, Tensor]):
    seed = Residual()
    limit = sum(p.numel() for p in seed.parameters()) + 400
    grown = growkit.grow(seed, data, budget={"params": limit}, config=SETTINGS, observers=())
    assert grown.result["params"] <= limit
    assert grown.events


def test_a_budget_is_all_that_policy_auto_needs(data: tuple[Tensor, Tensor]):
    seed = Residual()
    limit = sum(p.numel() for p in seed.parameters()) + 400
    settings = {"train.epochs": 4, "growth.policy": "auto"}
    grown = growkit.grow(seed, data, budget={"params": limit}, config=settings, observers=())
    assert grown.events and grown.result["params"] <= limit


def test_a_run_folder_on_request_and_its_model_comes_back(data: tuple[Tensor, Tensor], tmp_path: Path):
    grown = growkit.grow(Residual(), data, config={**SETTINGS, "run.tensorboard": False}, root=tmp_path, observers=())
    assert grown.folder is not None
    with pytest.raises(UserInputError, match="grew a live module \\(Residual\\).*seed_model"):
        growkit.load(grown.folder)
    loaded = growkit.load(grown.folder, seed_model=Residual())
    assert torch.equal(loaded(data[0][:16]), grown.model(data[0][:16]))


def test_regression_on_floats():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(200, 5, generator=generator)
    seed = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))
    grown = growkit.grow(seed, (x, x[:, :1] * x[:, 1:2]), config=SETTINGS, observers=())
    assert grown.result["test"]["accuracy"] is None
    assert grown.model.get_submodule("0").out_features > 4


def test_wrong_settings_name_the_key(data: tuple[Tensor, Tensor]):
    with pytest.raises(growkit.ConfigError, match=r"train\.epoch.*did you mean"):
        growkit.grow(Residual(), data, config={"train.epoch": 3})


def test_a_budget_is_all_that_policy_auto_of_a_file_needs(data: tuple[Tensor, Tensor], tmp_path: Path):
    file = tmp_path / "auto.yaml"
    file.write_text("growth: {policy: auto}\ntrain: {epochs: 2}\n")
    seed = Residual()
    limit = sum(p.numel() for p in seed.parameters()) + 400
    grown = growkit.grow(seed, data, budget={"params": limit}, config=file, observers=())
    assert grown.events and grown.result["params"] <= limit


def test_a_wrong_budget_is_a_config_error(data: tuple[Tensor, Tensor]):
    with pytest.raises(growkit.ConfigError, match="growth.budget.parms"):
        growkit.grow(Residual(), data, budget={"parms": 3})


def test_splits_and_augmentation_are_settings(data: tuple[Tensor, Tensor]):
    settings = {
        **SETTINGS,
        "train.epochs": 1,
        "data.split": {"test": 0.0, "validate": 0.0, "diagnose": 0.0, "accept": 0.0},
    }
    grown = growkit.grow(
        Residual(),
        data,
        config={k: v for k, v in settings.items() if not k.startswith("growth")} | {"growth.when": "never"},
        observers=(),
    )
    assert grown.result["test"] is None and grown.result["validate"] is None
    with pytest.raises(growkit.ConfigError, match="data.split.vald.*did you mean"):
        growkit.grow(Residual(), data, config={"data.split.vald": 0.1})


def test_the_record_says_that_data_and_model_were_handed_over(data: tuple[Tensor, Tensor], tmp_path: Path):
    settings = {**SETTINGS, "train.epochs": 2, "run.tensorboard": False}
    grown = growkit.grow(Residual(), data, config=settings, root=tmp_path, observers=())
    assert grown.folder is not None
    recorded = growkit.load_config(grown.folder / "config.yaml")
    assert recorded.data.name == "memory"
    assert recorded.model.name == "live" and recorded.model.type == "Residual"
    with pytest.raises(DataError, match="handed over in Python"):
        growkit.run(recorded)


def test_a_model_that_does_not_take_the_inputs(data: tuple[Tensor, Tensor]):
    with pytest.raises(ModelError, match="does not take inputs"):
        growkit.grow(nn.Linear(3, 3), data)


def test_what_is_handed_over_is_no_setting(data: tuple[Tensor, Tensor]):
    for config in ({"model": "vgg"}, {"model.name": "vgg"}, {"data.name": "cifar10"}, {"data": "digits"}):
        with pytest.raises(UserInputError, match="takes the model and the data as arguments; leave"):
            growkit.grow(Residual(), data, config=config)


def test_what_is_no_module_or_has_no_shape_yet(data: tuple[Tensor, Tensor]):
    with pytest.raises(UserInputError, match="must be a torch.nn.Module, got str"):
        growkit.grow("net", data)
    with pytest.raises(UserInputError, match="lazy module must be run once"):
        growkit.grow(nn.Sequential(nn.Flatten(), nn.LazyLinear(3)), data)
    with pytest.raises(UserInputError, match="config must be a mapping, a Config or a file's path, got int"):
        growkit.grow(Residual(), data, config=5)


def test_lengths_that_differ(data: tuple[Tensor, Tensor]):
    with pytest.raises(DataError, match="300.*299|299.*300"):
        growkit.grow(Residual(), (data[0], data[1][:-1]))


def test_widen_by_hand_and_undo(data: tuple[Tensor, Tensor]):
    model = Residual().eval()
    sites = growkit.find_sites(model, data[0][:2])
    before = model(data[0][:8])
    edit = growkit.widen(model, sites["hidden"], 3)
    assert model.hidden.out_features == 11
    torch.testing.assert_close(model(data[0][:8]), before, rtol=0, atol=1e-5)
    edit.undo()
    assert torch.equal(model(data[0][:8]), before)


def test_widen_names_the_initializers_that_work_without_data(data: tuple[Tensor, Tensor]):
    model = Residual()
    sites = growkit.find_sites(model, data[0][:2])
    with pytest.raises(UserInputError, match="'zero' or 'random', got 'gradmax'"):
        growkit.widen(model, sites["hidden"], 3, initializer="gradmax")


class Scaled(nn.Module):
    """Its outputs depend on a width by name."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(5, 4), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x))))) * self.b.out_features


class Viewed(Scaled):
    """A width is written into the forward."""

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))).view(-1, 6))


@pytest.mark.parametrize("mine", [False, True], ids=["traced example", "own example"])
@pytest.mark.parametrize(
    ("kind", "cause"),
    [(Scaled, r"changes the outputs by \d"), (Viewed, "the model fails at another width: RuntimeError: ")],
)
def test_widening_that_would_not_keep_the_function_is_refused(
    kind: type[nn.Module], cause: str, mine: bool, monkeypatch: pytest.MonkeyPatch
):
    model, x = kind(), torch.randn(6, 5)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    sites = growkit.find_sites(model, {"x": x})
    model(x).sum().backward()
    optimizer.step()
    before, steps = {n: p.detach().clone() for n, p in model.named_parameters()}, copy.deepcopy(optimizer.state_dict())
    with pytest.raises(SurgeryError, match=rf"'b' \(.*test_api.py:\d+\) cannot be widened: .*{cause}.*width 6"):
        growkit.widen(model, sites["b"], 2, optimizer=optimizer, example=(x[:3],) if mine else None)
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    assert sites["b"].width == model.get_submodule("b").out_features == 6
    assert str(optimizer.state_dict()) == str(steps)
    growkit.widen(model, sites["a"], 2, optimizer=optimizer)  # an honest width of the same model
    assert model.get_submodule("a").out_features == 6


def test_an_interrupted_widening_is_taken_back(monkeypatch: pytest.MonkeyPatch):
    model = Scaled()
    sites = growkit.find_sites(model, torch.randn(4, 5))

    def interrupted(before: Any, after: Any) -> Any:
        if sites["a"].width > 4:
            raise KeyboardInterrupt
        return function_change(before, after)

    monkeypatch.setattr("growkit.surgery.guard.function_change", interrupted)
    with pytest.raises(KeyboardInterrupt):
        growkit.widen(model, sites["a"], 2)
    assert model.a.weight.shape == (4, 5) and sites["a"].width == 4


def test_widening_needs_an_example_that_the_model_takes():
    model = Scaled()
    sites = growkit.find_sites(model, torch.randn(4, 5))
    with pytest.raises(ModelError, match="must run on the example, got RuntimeError.*example="):
        growkit.widen(model, sites["a"], 2, example=torch.randn(4, 7))
    with pytest.raises(ModelError, match="must be numbers, got NaN"):
        growkit.widen(model, sites["a"], 2, example=torch.full((4, 5), float("nan")))
    with pytest.raises(ModelError, match="must be a tensor, a tuple .* got list"):
        growkit.widen(model, sites["a"], 2, example=[1.0])  # type: ignore[arg-type]
    assert sites["a"].width == 4


@pytest.mark.parametrize("num_new", [0, -1, True, 2.0, "2", None])
def test_widening_by_something_else_than_a_whole_number_is_refused(num_new: Any):
    model = Scaled()
    sites = growkit.find_sites(model, torch.randn(4, 5))
    with pytest.raises(GrowthRefused, match=f"a must grow by a whole number of units >= 1, got {num_new!r}"):
        growkit.widen(model, sites["a"], num_new)


def test_the_graph_keeps_the_example():
    x = torch.randn(4, 5)
    for example, inputs in ((x, ((x,), {})), ((x,), ((x,), {})), ({"x": x}, ((), {"x": x}))):
        assert growkit.find_sites(Scaled(), example)["a"].graph.inputs == inputs


def test_the_example_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["grown"].result["test"]["accuracy"] > 0.9
    assert names["model"].get_submodule("1").out_features == names["grown"].model.get_submodule("1").out_features > 16


def test_the_example_by_hand_in_the_readme_runs():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    names: dict[str, Any] = {}
    exec(compile(readme.split("```python\n")[2].split("```")[0], "README.md", "exec"), names)
    assert names["model"].get_submodule("1.self_attn").num_heads == 5
    assert names["model"](torch.randn(2, 5, 8)).shape == (2, 5, 3)


def test_the_example_of_sam_in_the_readme_runs():
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    example = readme.split("```python\n")[3].split("```")[0]
    names: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), names)
    assert names["optimizer"].steps == 3 and names["loss"].isfinite()


def test_a_width_that_memory_cannot_hold_is_refused_and_nothing_changes():
    model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 5)
    (site,) = growkit.verify_sites(model, growkit.find_sites(model, x)).sites
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(SurgeryError, match="no memory was left for it"):
        growkit.widen(model, site, 10**15)
    with pytest.raises(GrowthRefused, match="units that memory can address, at most"):
        growkit.widen(model, site, 10**18)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_nothing_that_is_imported_on_the_way_moves_the_random_numbers_of_python():
    code = """
import random, torch, growkit
from torch import nn
model, x = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)), torch.randn(4, 5)
before = random.getstate()
site = growkit.verify_sites(model, growkit.find_sites(model, x)).sites[0]
growkit.widen(model, site, 2)
assert random.getstate() == before
"""
    subprocess.run([sys.executable, "-c", code], check=True)
