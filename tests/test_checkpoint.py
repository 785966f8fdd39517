from __future__ import annotations

import ast
import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import growkit
from growkit.checkpoint import Architecture, load, load_model, save_model
from growkit.config.models import CallableModelSettings, MlpSettings, ModelSettings, VggSettings, WrnSettings
from growkit.errors import UserInputError
from growkit.models import build_model
from growkit.surgery import EditRecord, TensorChange

MLP = MlpSettings(hidden=(6, 5), norm="batchnorm")


def randomise(model: nn.Module, seed: int = 1) -> nn.Module:
    """Every parameter and floating-point buffer as after some training."""
    source = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=source) + 0.1)
    return model


def grown(model: nn.Module, example: Tensor, num_new: int = 3) -> tuple[nn.Module, list[EditRecord]]:
    """`model` with every site widened, in place."""
    edits = [growkit.widen(model, site, num_new) for site in growkit.find_sites(model, example)]
    assert edits
    return randomise(model), [record for edit in edits for record in edit.records]


def architecture(
    edits: list[EditRecord],
    seed: ModelSettings | None = None,
    shape: tuple[int, ...] = (4,),
    channels_last: bool = False,
) -> Architecture:
    return Architecture(seed, "Seed", shape, 3, channels_last, edits)


def logits(model: nn.Module, inputs: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(inputs)


@pytest.fixture(scope="module")
def mlp() -> tuple[nn.Module, list[EditRecord]]:
    return grown(build_model(MLP, (4,), 3), torch.randn(2, 4))


@pytest.fixture
def run(mlp, tmp_path: Path) -> Path:
    """A run folder with stages 0 and 1 and a final model, each with weights of its own."""
    model, edits = mlp
    save_model(tmp_path / "stages" / "000", randomise(build_model(MLP, (4,), 3), 10), architecture([], MLP))
    save_model(tmp_path / "stages" / "001", randomise(copy.deepcopy(model), 11), architecture(edits, MLP))
    save_model(tmp_path / "model", model, architecture(edits, MLP))
    return tmp_path


class Tied(nn.Module):
    """Two layers share a weight and their width, not their bias."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3)
        self.right.weight = self.left.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.left(x).tanh() + self.right(x).sin())


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


# --- what is saved comes back


def test_a_grown_model_comes_back_to_the_last_bit(run: Path, mlp):
    model, _ = mlp
    inputs, chance = torch.randn(5, 4), torch.get_rng_state()
    loaded = load(run)
    assert not any(module.training for module in loaded.modules())
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), chance)


def test_every_stage_comes_back(run: Path):
    first, second, last = load(run, 0), load(run, stage="1"), load(run)
    assert [sum(p.numel() for p in model.parameters()) for model in (second, last)] == [
        sum(p.numel() for p in load(run).parameters())
    ] * 2
    assert sum(p.numel() for p in first.parameters()) < sum(p.numel() for p in last.parameters())
    for model, seed in ((first, 10), (second, 11)):
        expected = randomise(copy.deepcopy(model), seed).state_dict()
        assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("channels_last", [False, True])
def test_a_live_module_comes_back_into_its_seed(tmp_path: Path, channels_last: bool):
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model, edits = grown(convolutions(), torch.randn(2, 1, 6, 6))
    model.to(memory_format=layout)  # type: ignore[call-overload]
    save_model(tmp_path, model, architecture(edits, shape=(1, 6, 6), channels_last=channels_last))

    seed = convolutions()
    loaded = load_model(tmp_path, seed_model=seed)
    inputs = torch.randn(4, 1, 6, 6).to(memory_format=layout)
    assert loaded is seed
    assert loaded[3].weight.is_contiguous(memory_format=layout)
    assert loaded[1].num_features == model[1].num_features > 4
    assert torch.equal(logits(loaded, inputs), logits(model, inputs))


def test_tied_weights_come_back_tied(tmp_path: Path):
    model, edits = grown(Tied(), torch.randn(2, 4))
    save_model(tmp_path, model, architecture(edits))
    seed = Tied()
    inputs = torch.randn(3, 4)
    assert torch.equal(logits(load_model(tmp_path, seed_model=seed), inputs), logits(model, inputs))
    assert seed.left.weight is seed.right.weight
    assert seed.left.weight.shape == (8, 4)


def test_a_widened_buffer_comes_back_also_where_the_state_dict_leaves_it_out(tmp_path: Path):
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(3), persistent=False)

    change = TensorChange(("scale",), "buffer", (3,), (np.array([0, 1, 2, -1]),), "one")
    model = Scaled()
    model.scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
    save_model(tmp_path, model, architecture([EditRecord("scale", 3, 4, (change,), ())]))
    assert load_model(tmp_path, seed_model=Scaled()).scale.tolist() == [1.0, 2.0, 3.0, 4.0]


def make_model(width: int) -> nn.Module:
    return nn.Linear(4, width)


def test_a_users_callable_is_imported_on_trust_only(tmp_path: Path):
    settings = CallableModelSettings(name=f"{__name__}:make_model", args={"width": 3})
    model = make_model(3)
    save_model(tmp_path / "model", model, architecture([], settings))
    with pytest.raises(UserInputError, match=r"imports your code '.*:make_model'; allow it with load\(.*trust=True\)"):
        load(tmp_path)
    assert torch.equal(load(tmp_path, trust=True).weight, model.weight)


@pytest.mark.parametrize(
    "seed",
    [
        None,
        MLP,
        VggSettings(width=0.25),
        WrnSettings(depth=10, block_width=0.25),
        CallableModelSettings(name="a.b:c", args={"x": [1, {"y": None}]}),
    ],
    ids=lambda seed: "live" if seed is None else seed.name,
)
def test_an_architecture_survives_json(seed: ModelSettings | None, mlp):
    before = Architecture(seed, "Seed", (3, 32, 32), 10, True, mlp[1])
    text = json.dumps(before.to_json())
    after = Architecture.from_json(json.loads(text), Path("a.json"))
    assert after.seed == seed and type(after.seed) is type(seed)
    assert (after.seed_class, after.input_shape, after.num_outputs, after.channels_last) == (
        "Seed",
        (3, 32, 32),
        10,
        True,
    )
    assert json.dumps(after.to_json()) == text


def test_saving_leaves_nothing_but_the_two_files(run: Path):
    assert sorted(path.name for path in (run / "model").iterdir()) == ["architecture.json", "weights.safetensors"]


def test_the_record_holds_the_hash_of_the_weights(run: Path):
    record = json.loads((run / "model" / "architecture.json").read_text())
    weights = (run / "model" / "weights.safetensors").read_bytes()
    assert record["weights_sha256"] == hashlib.sha256(weights).hexdigest()


# --- what does not come back says why


def test_a_folder_that_is_no_run(tmp_path: Path):
    with pytest.raises(UserInputError, match="none for stage 'final'; is it a run folder"):
        load(tmp_path / "nowhere")


def test_a_stage_that_is_not_there(run: Path):
    (run / "stages" / "notes.txt").touch()
    with pytest.raises(UserInputError, match="none for stage 7; there are stages 0, 1$"):
        load(run, 7)


@pytest.mark.parametrize("stage", ["last", -1, 1.5, ""])
def test_a_stage_that_is_no_number(run: Path, stage):
    with pytest.raises(UserInputError, match=r"stage must be 'final' or the number of a train stage, from 0, got"):
        load(run, stage)


def rewrite(run: Path, change: Callable[[dict], object]) -> None:
    file = run / "model" / "architecture.json"
    record = json.loads(file.read_text())
    change(record)
    file.write_text(json.dumps(record))


def flip(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        (
            "architecture.json",
            lambda content: content[:-20],
            "must hold architecture.json and weights.safetensors, got",
        ),
        ("architecture.json", lambda content: b"\xff\xfe", "must hold architecture.json and weights.safetensors, got"),
        ("architecture.json", lambda content: b"[1]", "must be an architecture record, got a list"),
        ("weights.safetensors", flip, "weights.safetensors must have the SHA-256 that architecture.json records, "),
        ("weights.safetensors", lambda content: content[:-20], "damaged or from another model, so copy both again"),
    ],
    ids=["truncated JSON", "no text", "other JSON", "flipped bit", "truncated weights"],
)
def test_a_damaged_file_is_refused(run: Path, name: str, damage: Callable[[bytes], bytes], message: str):
    file = run / "model" / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserInputError, match=message):
        load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda record: record.update(version=2), "version must be 1, got 2; another version of growkit wrote it"),
        (lambda record: record.pop("version"), "version must be 1, got None"),
        (lambda record: record.pop("edits"), "one that is damaged: KeyError: 'edits'"),
        (lambda record: record.update(seed={"name": "mlpp"}), "one that is damaged: ValidationError"),
        (lambda record: record.update(edits=[7]), "one that is damaged: AttributeError"),
        (lambda record: record["edits"][0].update(version=9), "an edit record must have version 1, got 9"),
        (lambda record: record["edits"][0].pop("tensors"), "one that is damaged: KeyError: 'tensors'"),
        (lambda record: record.pop("weights_sha256"), "architecture.json records, None, got"),
        (lambda record: record["edits"].pop(), r"weights.safetensors must fit the model, but .* in the file"),
        (lambda record: record["edits"].append(record["edits"][0]), "weight must have shape .* is it the seed the run"),
        (
            lambda record: record["edits"][0]["tensors"][0].update(names=["x.y"]),
            "must have the parameter x.y, got none",
        ),
        (
            lambda record: record["edits"][0]["tensors"][0].update(index_maps=[[[0, 99]], None]),
            "must be an architecture record, got edits that are damaged: index",
        ),
    ],
)
def test_a_wrong_record_is_refused(run: Path, change: Callable[[dict], object], message: str):
    rewrite(run, change)
    with pytest.raises(UserInputError, match=message):
        load(run)


def test_weights_that_are_no_safetensors_are_refused(run: Path):
    (run / "model" / "weights.safetensors").write_bytes(b"junk")
    rewrite(run, lambda record: record.update(weights_sha256=hashlib.sha256(b"junk").hexdigest()))
    with pytest.raises(UserInputError, match="must be a safetensors file, got"):
        load(run)


def test_missing_weights_are_refused(run: Path):
    (run / "model" / "weights.safetensors").unlink()
    with pytest.raises(
        UserInputError, match="must hold architecture.json and weights.safetensors, got: .*No such file"
    ):
        load(run)


def test_a_live_module_needs_its_seed(tmp_path: Path):
    save_model(tmp_path / "model", nn.Linear(4, 3), architecture([]))
    message = r"grew a live module \(Seed\), which no file can rebuild; give the seed again: load\(run_dir, seed_model"
    with pytest.raises(UserInputError, match=message):
        load(tmp_path)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (nn.Linear(4, 2), r"must fit the model, but .*weight is float32 \[2, 4\] in the model and float32 \[3, 4\]"),
        (nn.Linear(4, 3, bias=False), "bias is in the file only"),
        (nn.Sequential(nn.Linear(4, 3)), "0.bias is missing from the file"),
        (nn.Linear(4, 3).half(), r"bias is float16 \[3\] in the model and float32 \[3\] in the file"),
    ],
    ids=["shape", "too little", "other names", "type"],
)
def test_a_seed_that_does_not_fit_is_refused_and_left_as_it_was(tmp_path: Path, seed: nn.Module, message: str):
    save_model(tmp_path / "model", nn.Linear(4, 3), architecture([]))
    before = {name: tensor.clone() for name, tensor in seed.state_dict().items()}
    with pytest.raises(UserInputError, match=message):
        load(tmp_path, seed_model=seed)
    assert all(torch.equal(tensor, before[name]) for name, tensor in seed.state_dict().items())


def test_a_seed_is_not_left_half_grown(run: Path):
    rewrite(run, lambda record: record["edits"].pop())
    seed = build_model(MLP, (4,), 3)
    shapes = [parameter.shape for parameter in seed.parameters()]
    with pytest.raises(UserInputError, match="weights.safetensors must fit the model"):
        load(run, seed_model=seed)
    assert [parameter.shape for parameter in seed.parameters()] == shapes


# --- nothing is ever unpickled


def test_growkit_never_unpickles():
    """torchvision's CIFAR reader unpickles by itself, after checking the published MD5; growkit has no such call.

    A user's weights are read by torch.load with weights_only=True, which builds tensors and runs nothing.
    """
    found = []
    for path in Path(growkit.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            if {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & {n.split(".")[0] for n in names}:
                found.append(f"{path.name}: import")
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                safe = {one.arg: ast.unparse(one.value) for one in node.keywords}.get("weights_only") == "True"
                found += [] if safe and path.name == "weights.py" else [f"{path.name}: torch.load"]
            if isinstance(node, ast.Attribute) and ast.unparse(node) in (
                "torch.jit.load",
                "pd.read_pickle",
            ):
                found.append(f"{path.name}: {ast.unparse(node)}")
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle" and ast.unparse(node.value) != "False":
                found.append(f"{path.name}: allow_pickle")
    assert found == []
