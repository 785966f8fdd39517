from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import growkit
from growkit.checkpoint import Architecture, load_model, save_model
from growkit.config.models import WrnSettings
from growkit.errors import GrowthRefused, ModelError, SurgeryError, UserInputError
from growkit.graph import Places, find_places
from growkit.models import ReLU, build_model
from growkit.surgery import (
    DepthEdit,
    DepthRecord,
    Edit,
    deepen,
    depth,
    edited_buffers,
    insert,
    record_from_json,
    replay,
)


class Loop(nn.Module):
    """Layers in a list; the forward puts the activation in."""

    def __init__(self, activation: Callable[[Tensor], Tensor] = torch.relu) -> None:
        super().__init__()
        self.activation = activation
        self.layers = nn.ModuleList([nn.Linear(5, 6), nn.Linear(6, 4)])
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.head(x)


class Shared(Loop):
    """One activation module for all layers, and in the forward a dropout for each."""

    def __init__(self, rate: float) -> None:
        super().__init__(nn.ReLU())
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = F.dropout(self.activation(layer(x)), self.rate, self.training)
        return self.head(x)


class PostActivation(nn.Module):
    """relu(x + branch(x)), as in a ResNet; the branch ends in a norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Attention(nn.Module):
    """A pre-norm transformer block, two branches, dropout at the end of each."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width), nn.Dropout(0.3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + F.dropout(self.out(mixed), 0.2, self.training)
        return x + self.mlp(self.norm2(x))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class LayerScale(nn.Module):
    """A ConvNeXt block: depthwise, norm, MLP in channels-last, layer scale, stochastic depth by sample."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.spread = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 1e-6))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spread(x).permute(0, 2, 3, 1))
        y = (self.down(F.gelu(self.up(y))) * self.gamma).permute(0, 3, 1, 2)
        if self.training:
            y = y * torch.empty(len(x), 1, 1, 1).bernoulli_(0.5).div_(0.5)
        return x + y


def images(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 4, 3), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))


def wrn() -> nn.Module:
    return build_model(WrnSettings(depth=16, width=1, block_width=0.25), (2, 6, 6), 3)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], list[str]]] = {
    "mlp": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Dropout(0.2), nn.Linear(6, 4), ReLU(), nn.Linear(4, 3)),
        (5,),
        ["0", "3"],
    ),
    "list": (Loop, (5,), ["layers.0", "layers.1"]),
    "shared activation": (lambda: Shared(0.0), (5,), ["layers.0", "layers.1"]),
    "named": (
        lambda: nn.Sequential(OrderedDict(stem=nn.Linear(5, 4), act=nn.ReLU(), block=residual(), head=nn.Linear(4, 3))),
        (5,),
        ["stem", "block"],
    ),
    "deep linear": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Linear(6, 3)), (5,), ["0"]),
    "vgg-like": (
        lambda: images(
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 4, 3, bias=False, padding=1),
            nn.BatchNorm2d(4),
            nn.Hardtanh(),
            nn.Conv2d(4, 4, (1, 3), stride=2, groups=2),
            nn.ReLU6(),
        ),
        (2, 6, 6),
        ["0", "2", "5"],
    ),
    "wrn": (wrn, (2, 6, 6), ["blocks.0", "blocks.1", "blocks.3", "blocks.5"]),
    "post-activation": (
        lambda: images(nn.ReLU(), PostActivation(4), PostActivation(4)),
        (2, 6, 6),
        ["0", "2", "3"],
    ),
    "transformer": (Transformer, (5, 8), ["blocks.0", "blocks.1"]),
    "layer scale": (lambda: images(LayerScale(), LayerScale()), (2, 6, 6), ["1", "2"]),
}

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9),
    "SGD fused": lambda groups: torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True),
    "Adam fused": lambda groups: torch.optim.Adam(groups, lr=0.01, fused=True),
    "AdamW": lambda groups: torch.optim.AdamW(groups, lr=0.01),
}


def fresh(name: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A model of the table with weights and statistics as after some training, and a batch."""
    torch.manual_seed(seed)
    make, shape, _ = CASES[name]
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer_name, buffer in model.named_buffers():
            if "running" in buffer_name:
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model, torch.randn(4, *shape)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, steps: int = 2) -> None:
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def outputs(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return model.eval()(x)


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> dict[str, Any]:
    """All that an undone edit must have left alone: names, objects, values, modes, gradients, optimizer."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "tensors": [
            (name, id(tensor), tensor.requires_grad, tensor.detach().clone())
            for name, tensor in (*model.named_parameters(), *model.named_buffers())
        ],
        "state": list(model.state_dict()),
        "hooks": [
            len(hooks) for module in model.modules() for name, hooks in vars(module).items() if name.endswith("hooks")
        ],
        "optimizer": None if optimizer is None else copy.deepcopy(optimizer.state_dict()),
        "groups": None if optimizer is None else [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "random": torch.get_rng_state(),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor):
        return isinstance(b, Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices decay, vectors do not."""
    parameters = list(model.parameters())
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.01},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]


# --- where


@pytest.mark.parametrize("name", CASES)
def test_the_places_of_a_model(name: str) -> None:
    model, x = fresh(name)
    before = snapshot(model)
    assert [place.name for place in find_places(model, x)] == CASES[name][2]
    assert same(snapshot(model), before)


def test_a_place_says_what_it_costs() -> None:
    model, x = fresh("post-activation")
    layer, block, _ = find_places(model, x)
    assert (layer.kind, layer.container, layer.position) == ("layer", "", 2)
    assert (block.kind, block.container, block.position) == ("residual block", "", 3)
    assert layer.params_added == 4 * 4 * 9 + 4
    assert block.params_added == sum(p.numel() for p in model.get_submodule("2").parameters())
    # 16 positions; multiply and add; two convolutions in a block
    assert layer.flops_added == 2 * 16 * 4 * 4 * 9 and block.flops_added == 2 * layer.flops_added
    assert block.location is not None and block.location.rpartition(":")[0] == __file__


def test_the_end_of_a_branch_is_found_by_what_is_computed() -> None:
    def ends(name: str, place: str) -> Any:
        return find_places(*fresh(name))[place].branches

    assert ends("wrn", "blocks.1") == (("conv2.weight",),)
    assert ends("post-activation", "2") == (("bn2.weight", "bn2.bias"),)
    assert ends("transformer", "blocks.0") == (("out.weight", "out.bias"), ("mlp.2.weight", "mlp.2.bias"))
    assert ends("layer scale", "1") == (("gamma",),)


def refusals(model: nn.Module, x: Tensor) -> dict[str, str]:
    places = find_places(model, x)
    assert not list(places)
    return {refusal.name: refusal.reason for refusal in places.refusals}


class Block(nn.Module):
    """A residual block of which one thing is changed."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.outer, self.norm = nn.Linear(4, 6), nn.Linear(6, 4), nn.LayerNorm(4)
        self.gain = nn.Parameter(torch.ones(4))
        self._forward = forward

    def branch(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self, x)


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: self.branch(x), "its output comes from linear"),
        (lambda self, x: self.norm(x + self.branch(x)), "its output comes from layer_norm"),
        (lambda self, x: torch.tanh(x + self.branch(x)), "its output comes from tanh"),
        (lambda self, x: torch.relu(x) + self.branch(x), "applies relu to its stream but does not end in it"),
        (lambda self, x: 0.5 * x + self.branch(x), "has a shortcut that is not the identity"),
        (lambda self, x: torch.add(self.branch(x), x, alpha=2), "has a shortcut that is not the identity"),
        (lambda self, x: x + x, "adds its input more than once"),
        (lambda self, x: x + (x + self.branch(x)), "adds its input more than once"),
        (lambda self, x: F.dropout(x + self.branch(x), 0.5, self.training), "its output comes from dropout"),
        (lambda self, x: x + torch.relu(self.branch(x)), "ends in relu, which weights at zero do not silence or"),
        (lambda self, x: x + torch.sigmoid(self.branch(x)), "ends in sigmoid"),
        (lambda self, x: x + self.branch(x) + torch.exp(self.gain.sum()) * x, "nothing in it can silence"),
        (lambda self, x: x + F.layer_norm(self.branch(x), (4,)), "ends in layer_norm without weights of its own"),
        (lambda self, x: x.relu_() + self.branch(x), "applies relu to its stream"),
        (lambda self, x: x + self.branch(x.view(-1, 4).relu_()), "changes its input in place with relu_"),
    ],
)
def test_a_block_that_its_copy_would_not_leave_alone_is_refused(forward: Any, reason: str) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), Block(forward), nn.Linear(4, 3))
    assert reason in refusals(model, torch.randn(3, 5))["2"]


@pytest.mark.parametrize(
    ("forward", "ends"),
    [
        (lambda self, x: torch.relu(torch.relu(x + self.branch(x))), ("outer.weight", "outer.bias")),
        (lambda self, x: torch.tanh(self.branch(x)) + x, ("outer.weight", "outer.bias")),
        (lambda self, x: x - 0.1 * self.branch(x), ("outer.weight", "outer.bias")),
        (lambda self, x: x + self.branch(x) * torch.sigmoid(x), ("outer.weight", "outer.bias")),
        (lambda self, x: x + torch.tanh(x @ self.inner.weight.T) @ self.outer.weight.T, ("outer.weight",)),
        (lambda self, x: x + self.gain * self.branch(x), ("gain",)),
        (lambda self, x: x + self.norm(self.branch(x)), ("norm.weight", "norm.bias")),
    ],
)
def test_forms_of_a_block_that_can_be_silenced(forward: Any, ends: tuple[str, ...]) -> None:
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), Block(forward), nn.Linear(4, 3))
    x = torch.randn(3, 5)
    place = find_places(model, x)["2"]
    assert place.branches == (ends,)
    before = outputs(model, x)
    deepen(model, place)
    assert torch.equal(outputs(model, x), before)


def residual() -> Block:
    return Block(lambda self, x: x + self.branch(x))


def test_frozen_branches_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4), residual())
    model.get_submodule("1").requires_grad_(False)
    assert "ends in frozen weights (1.outer.weight)" in refusals(model, torch.randn(3, 5))["1"]


def test_a_block_used_twice_is_refused() -> None:
    shared = residual()
    model = nn.Sequential(nn.Linear(5, 4), shared, nn.Tanh(), shared)
    assert "registered under several names (1, 3)" in refusals(model, torch.randn(3, 5))["1"]


class Auxiliary(nn.Module):
    """A block that only training sees, one that is called twice, and one whose weights another has too."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([residual(), residual(), residual(), residual()])
        self.blocks[3].outer.weight = self.blocks[2].outer.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks[1](self.blocks[1](x))
        x = self.blocks[3](self.blocks[2](x))
        return self.blocks[0](x) if self.training else x


def test_blocks_must_run_once_in_both_modes_and_share_nothing() -> None:
    found = refusals(Auxiliary(), torch.randn(3, 4))
    assert "is called 1 and 0" in found["blocks.0"] and "is called 2 and 2" in found["blocks.1"]
    assert "shares a parameter with blocks.3.outer.weight" in found["blocks.2"]


def test_blocks_that_number_themselves_are_refused() -> None:
    model = nn.Sequential(residual(), residual())
    for number, block in enumerate(model):
        block.layer_index = number
    assert "keeps its own number in the attribute layer_index" in refusals(model, torch.randn(3, 4))["0"]


def test_layers_that_have_no_identity_are_refused() -> None:
    even = images(nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.LeakyReLU())
    places = find_places(even, torch.randn(3, 2, 6, 6))
    assert [place.name for place in places] == ["0"]
    reasons = {refusal.name: refusal.reason for refusal in places.refusals}
    assert "a kernel without a centre, (2, 2)" in reasons["2"]
    assert "no idempotent activation" in reasons["4"]  # leaky: 0.01 twice is not 0.01 once
    with pytest.raises(GrowthRefused, match="nothing may be inserted after '2': it has a kernel without a centre"):
        places["2"]
    with pytest.raises(ModelError, match="no place after a module '00'; did you mean '0'"):
        places["00"]


# --- the edit


@pytest.mark.parametrize("name", CASES)
def test_a_deeper_model_computes_the_same_and_learns_at_every_place(name: str) -> None:
    model, x = fresh(name)
    for place in CASES[name][2]:
        before, known = outputs(model, x), dict(model.named_parameters())
        edit = growkit.deepen(model, growkit.find_places(model, x)[place])
        torch.testing.assert_close(outputs(model, x), before, rtol=1e-6, atol=1e-6)
        new = {id(tensor) for child in edit.children for tensor in child.parameters()}
        assert {id(p) for p in model.parameters()} == new | {id(p) for p in known.values()}
        assert {edit.record.renamed(n): id(p) for n, p in known.items()}.items() <= {
            n: id(p) for n, p in model.named_parameters()
        }.items()
        ends = [edit.children[0].get_parameter(n) for n in edit.record.zeroed or ("weight",)]
        torch.stack([(model.train()(x) * torch.randn(4, 3)).sum() for _ in range(4)]).sum().backward()
        assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in ends)
        assert any(bool(p.grad.any()) for p in ends if p.grad is not None)
        edit.undo()


def test_every_weight_of_a_copied_block_learns_from_the_second_step_on() -> None:
    model, x = fresh("transformer")
    edit = deepen(model, find_places(model, x)["blocks.0"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    train(model, optimizer, x, 2)
    assert all(bool(p.grad.any()) for p in edit.children[0].parameters() if p.grad is not None)


def test_new_weights_come_from_the_seed_alone() -> None:
    def new(seed: int) -> Tensor:
        model, x = fresh("wrn")
        torch.manual_seed(torch.seed() % 1000)
        chance = torch.get_rng_state()
        edit = deepen(model, find_places(model, x)["blocks.1"], seed=seed)
        assert torch.equal(torch.get_rng_state(), chance)
        block = edit.children[0]
        assert not bool(block.get_parameter("conv2.weight").any())
        assert not torch.equal(block.get_parameter("conv1.weight"), model.get_parameter("blocks.1.conv1.weight"))
        return block.get_parameter("conv1.weight")

    assert torch.equal(new(1), new(1)) and not torch.equal(new(1), new(2))


def test_a_norm_between_layer_and_activation_is_not_repeated() -> None:
    model, x = fresh("vgg-like")
    edit = deepen(model, find_places(model, x)["2"])
    kinds = [type(child) for child in edit.children]
    assert kinds == [nn.Conv2d, nn.Hardtanh] and edit.children[0].bias is not None
    assert torch.equal(edit.children[0].get_parameter("weight"), nn.init.dirac_(torch.empty(4, 4, 3, 3)))


def test_hooks_are_not_copied() -> None:
    model, x = fresh("transformer")
    calls: list[int] = []
    model.get_submodule("blocks.0.out").register_forward_hook(lambda module, args, output: calls.append(1))
    deepen(model, find_places(model, x)["blocks.0"])
    calls.clear()
    model(x)
    assert calls == [1]


def test_layout_and_type_are_those_of_the_source() -> None:
    model, x = fresh("vgg-like")
    model = model.double().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    edit = deepen(model, find_places(model, x.double())["2"])
    weight = edit.children[0].get_parameter("weight")
    assert weight.dtype == torch.float64 and weight.is_contiguous(memory_format=torch.channels_last)


# --- what cannot be


class Literal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([residual(), residual(), residual()])


class ByNumber(Literal):
    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[2](self.blocks[1](self.blocks[0](x)))


class ByCount(Literal):
    def forward(self, x: Tensor) -> Tensor:
        for number in range(3):
            x = self.blocks[number](x)
        return x


class Rates(Literal):
    def forward(self, x: Tensor) -> Tensor:
        for rate, block in zip((0.1, 0.2, 0.3), self.blocks, strict=False):
            x = block(x) * (1 + rate)
        return x


class Strict(Literal):
    def forward(self, x: Tensor) -> Tensor:
        for rate, block in zip((1, 2, 3), self.blocks, strict=True):
            x = block(x) * rate
        return x


class Skips(Literal):
    """As in a U-Net: what went in last comes out first."""

    def forward(self, x: Tensor) -> Tensor:
        seen = []
        for block in self.blocks:
            seen.append(x := block(x))
        return seen[2] + 0.5 * seen[1] - seen[0]


class Count(Literal):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x / len(self.blocks)


class Scaled(Literal):
    """Between its blocks the stream is changed."""

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = 1.1 * block(x)
        return x


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        (ByNumber, "the forward (no longer calls|does not call)"),
        (ByCount, "the forward (no longer calls|does not call)"),
        (Rates, "the forward (no longer calls|does not call)"),
        (Strict, "the model fails: ValueError: zip"),
        (Skips, "(it changes the outputs by|no gradient reaches its new weights)"),
        (Count, "it changes the outputs by"),
        (Scaled, "it changes the outputs by"),
    ],
)
@pytest.mark.parametrize("silent", [False, True], ids=["trained", "zero branches"])
def test_code_that_knows_its_blocks_by_number_is_refused(kind: type[nn.Module], cause: str, silent: bool) -> None:
    model = kind()
    if silent:  # every branch is zero, so that the order of blocks does not show in the outputs
        for name, parameter in model.named_parameters():
            parameter.data.mul_(0.0 if "outer" in name else 1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    x = torch.randn(3, 4)
    places = find_places(model, x)
    assert len(places) == 3
    for place in places:
        before = snapshot(model, optimizer)
        with pytest.raises(
            SurgeryError, match=rf"after '{place.name}' \(.*:\d+\) was taken back: {cause}.*go with 'blocks'"
        ):
            deepen(model, place, optimizer=optimizer)
        assert same(snapshot(model, optimizer), before)


def test_a_forward_that_would_drop_out_once_more_is_refused() -> None:
    torch.manual_seed(0)
    model, x = Shared(0.5), torch.randn(4, 5)
    for place in find_places(model, x):
        with pytest.raises(SurgeryError, match="it changes the outputs by"):
            deepen(model, place)


def test_children_with_names_keep_them() -> None:
    model, x = fresh("named")
    first = deepen(model, find_places(model, x)["stem"])
    second = deepen(model, find_places(model, x)["block"])
    assert list(model._modules) == ["stem", "act", "stem_2", "act_2", "block", "block_2", "head"]
    assert edited_buffers(first.records + second.records) == [] and first.record.renamed("block.inner") == "block.inner"
    deepen(model, find_places(model, x)["stem"])
    assert list(model._modules)[2:4] == ["stem_3", "act_3"]


def test_a_place_of_another_structure_is_refused() -> None:
    model, x = fresh("transformer")
    places = find_places(model, x)
    edit = deepen(model, places["blocks.0"])
    with pytest.raises(ModelError, match="after 'blocks.1' must be of the model as it is.*call find_places again"):
        deepen(model, places["blocks.1"])
    edit.undo()
    deepen(model, places["blocks.1"])


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_wrapped_models_are_refused(wrap: Any) -> None:
    model, x = fresh("mlp")
    place = find_places(model, x)["0"]
    with pytest.raises(GrowthRefused, match="must be unwrapped"):
        deepen(wrap(model), place)


def test_the_example_must_run_and_be_finite() -> None:
    model, x = fresh("mlp")
    place = find_places(model, x)["0"]
    with pytest.raises(ModelError, match="must run on the example, got RuntimeError"):
        deepen(model, place, example=torch.randn(4, 9))
    with pytest.raises(ModelError, match="must be finite"):
        deepen(model, place, example=torch.full((4, 5), float("nan")))


def test_blocks_that_hold_more_than_themselves_are_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4), residual())
    model.get_submodule("1").outside = [model.get_submodule("0")]  # type: ignore[assignment]
    place = find_places(model, torch.randn(3, 5))["1"]
    with pytest.raises(GrowthRefused, match="refers to '0'"):
        deepen(model, place)


def test_a_weight_computed_in_a_hook_is_refused() -> None:
    model = nn.Sequential(nn.Linear(5, 4), residual())
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(model.get_submodule("1.inner"))
    place = find_places(model, torch.randn(3, 5))["1"]
    before = snapshot(model)
    with pytest.raises(GrowthRefused, match="compute no weight in a hook, got WeightNorm|must allow a deep copy"):
        deepen(model, place)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("target", ["insert", "_compare"])
def test_an_interrupt_leaves_the_model_as_it_was(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = fresh("transformer")
    optimizer = torch.optim.Adam(model.parameters())
    place = find_places(model, x)["blocks.0"]
    before = snapshot(model, optimizer)
    from growkit.surgery import deepening

    original = getattr(deepening, target)

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if args[0] is model and target == "_compare":
            raise KeyboardInterrupt
        return result

    monkeypatch.setattr(deepening, target, interrupted)
    if target == "insert":
        monkeypatch.setattr(depth, "_start_state", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        deepen(model, place, optimizer=optimizer)
    assert same(snapshot(model, optimizer), before)


# --- the optimizer, and undo


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ["mlp", "vgg-like", "transformer", "post-activation"])
def test_the_optimizer_takes_the_new_weights_and_training_goes_on(name: str, kind: str) -> None:
    model, x = fresh(name)
    optimizer = OPTIMIZERS[kind](groups_of(model))
    train(model, optimizer, x)
    known = {id(p): copy.deepcopy(optimizer.state[p]) for p in model.parameters()}
    place = list(find_places(model, x))[-1]
    edit = deepen(model, place, optimizer=optimizer)
    assert all(same(optimizer.state[p], known[id(p)]) for p in model.parameters() if id(p) in known)
    for tensor in (tensor for child in edit.children for tensor in child.parameters()):
        (group,) = [g for g in optimizer.param_groups if any(p is tensor for p in g["params"])]
        assert group["weight_decay"] == (0.01 if tensor.dim() > 1 else 0.0)
        assert not any(bool(value.any()) for value in optimizer.state.get(tensor, {}).values())
    before = [p.detach().clone() for p in model.parameters()]
    train(model, optimizer, x)
    assert all(not torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True) if p.grad.any())
    edit.undo()
    train(model, optimizer, x)


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", CASES)
def test_undo_restores_every_bit(name: str, kind: str) -> None:
    model, x = fresh(name)
    optimizer = OPTIMIZERS[kind](groups_of(model))
    train(model, optimizer, x)
    model.eval().get_submodule("head" if hasattr(model, "head") else "0").train()
    before = snapshot(model, optimizer)
    for place in find_places(model, x):
        edit = deepen(model, place, optimizer=optimizer)
        assert not edit.undone and not same(snapshot(model, optimizer), before)
        edit.undo()
        assert edit.undone and same(snapshot(model, optimizer), before)


def test_undo_after_training_drops_the_new_state_only() -> None:
    model, x = fresh("transformer")
    optimizer = torch.optim.Adam(model.parameters())
    edit = deepen(model, find_places(model, x)["blocks.1"], optimizer=optimizer)
    train(model, optimizer, x)
    after = {id(p): p.detach().clone() for p in model.parameters()}
    edit.undo()
    assert all(torch.equal(p, after[id(p)]) for p in model.parameters())
    assert set(optimizer.state) == set(model.parameters())


def test_edits_are_undone_once_and_last_first() -> None:
    model, x = fresh("transformer")
    before = snapshot(model)
    first = deepen(model, find_places(model, x)["blocks.0"])
    second = deepen(model, find_places(model, x)["blocks.1"])
    with pytest.raises(SurgeryError, match="undone last first"):
        first.undo()
    second.undo()
    wider = growkit.widen(model, growkit.find_sites(model, x)["blocks.1.mlp.0"], 2)
    with pytest.raises(SurgeryError, match="undone last first"):
        first.undo()
    wider.undo()
    first.undo()
    assert same(snapshot(model), before)
    with pytest.raises(SurgeryError, match="undone once"):
        first.undo()


def test_an_optimizer_that_cannot_take_them_is_refused() -> None:
    model, x = fresh("mlp")
    place = find_places(model, x)["0"]
    other = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    before = snapshot(model, other)
    with pytest.raises(GrowthRefused, match="must hold the weights that the new ones are built after"):
        deepen(model, place, optimizer=other)
    assert same(snapshot(model, other), before)
    flat = torch.optim.LBFGS(model.parameters(), lr=0.001)
    flat.step(lambda: model(x).square().mean().backward() or model(x).square().mean())
    with pytest.raises(GrowthRefused, match="state per parameter.*LBFGS"):
        deepen(model, place, optimizer=flat)


# --- records


def widen(model: nn.Module, x: Tensor, number: int, num_new: int, **given: Any) -> Edit:
    """Widen the site of that number, or the next one that can grow by itself."""
    sites = list(growkit.find_sites(model, x))
    for site in sites[number % len(sites) :] + sites[: number % len(sites)]:
        try:
            return growkit.widen(model, site, num_new, initializer="random", **given)
        except (SurgeryError, GrowthRefused):
            continue
    raise AssertionError("no site can grow")


def grow_all(model: nn.Module, x: Tensor) -> list[Any]:
    """Wider, deeper, wider again, deeper again at another place: the records."""
    records: list[Any] = []
    for _ in range(2):
        records += widen(model, x, 0, 2).records
        places: Places = find_places(model, x)
        records += deepen(model, places[len(places) // 2], seed=3).records
    return records + widen(model, x, -1, 1).records


MIXED = ["mlp", "named", "vgg-like", "wrn", "post-activation", "transformer", "layer scale"]


def through_json(records: list[Any]) -> list[Any]:
    written = [record.to_json() for record in records]
    read = [record_from_json(record) for record in json.loads(json.dumps(written))]
    assert [record.to_json() for record in read] == written
    return read


@pytest.mark.parametrize("name", MIXED)
def test_mixed_records_rebuild_the_structure(name: str) -> None:
    model, x = fresh(name)
    seed = copy.deepcopy(model)
    records = grow_all(model, x)
    replay(seed, through_json(records))
    assert [(n, str(m)) for n, m in seed.named_modules()] == [(n, str(m)) for n, m in model.named_modules()]
    seed.load_state_dict(model.state_dict())
    assert torch.equal(outputs(seed, x), outputs(model, x))


@pytest.mark.parametrize("name", MIXED)
def test_a_model_widened_deepened_and_widened_again_comes_back_to_the_last_bit(name: str, tmp_path: Path) -> None:
    model, x = fresh(name)
    seed = copy.deepcopy(model)
    records = grow_all(model, x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    train(model, optimizer, x)
    save_model(tmp_path, model, Architecture(None, "Seed", tuple(x.shape[1:]), 3, False, records))
    loaded = load_model(tmp_path, seed_model=seed)
    assert torch.equal(outputs(loaded, x), outputs(model, x))
    assert same(loaded.state_dict(), model.state_dict()) and list(loaded.state_dict()) == list(model.state_dict())


class Table(nn.Module):
    """A block with a buffer that the state dict leaves out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 6), nn.Linear(6, 4)
        self.register_buffer("table", torch.randn(4), persistent=False)
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.norm(self.inner(x * self.table))))


def test_buffers_outside_the_state_dict_come_back_under_their_new_names(tmp_path: Path) -> None:
    def make() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(5, 4), Table(), Table(), nn.Linear(4, 3))

    model, x = make(), torch.randn(4, 5)
    wide = growkit.widen(model, growkit.find_sites(model, x)["2.inner"], 2).records
    deep = deepen(model, find_places(model, x)["1"]).records
    assert edited_buffers([*wide, *deep]) == [
        "3.norm.running_mean",
        "3.norm.running_var",
        "2.table",
        "2.norm.running_mean",
        "2.norm.running_var",
        "2.norm.num_batches_tracked",
    ]
    model.get_buffer("2.table").add_(1.0)
    save_model(tmp_path, model, Architecture(None, "Seed", (5,), 3, False, [*wide, *deep]))
    loaded = load_model(tmp_path, seed_model=make())
    assert torch.equal(outputs(loaded, x), outputs(model, x))


def test_a_record_of_another_kind_or_version_is_refused() -> None:
    model, x = fresh("mlp")
    record = deepen(model, find_places(model, x)["0"]).record.to_json()
    assert record["kind"] == "depth" and isinstance(record_from_json(record), DepthRecord)
    with pytest.raises(UserInputError, match="must have version 1, got 99"):
        record_from_json(record | {"version": 99})
    with pytest.raises(UserInputError, match="of kind 'depth' or have no kind, got 'prune'"):
        record_from_json(record | {"kind": "prune"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: nn.Sequential(nn.Linear(5, 4), residual()), "replaying the residual block after body.1: .*body"),
        (
            lambda: nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 4), residual().double().outer)}),
            "after body.1: .*outer",
        ),
        (lambda: nn.ModuleDict({"body": nn.Sequential(nn.Linear(5, 4))}), "after body.1: "),
        (
            lambda: nn.ModuleDict({"body": nn.ModuleDict({"0": nn.Linear(5, 4), "1": residual(), "x": nn.ReLU()})}),
            "body must have room for 2 at 2 of its children, got",
        ),
    ],
)
def test_replaying_on_a_wrong_seed_is_refused_and_leaves_it_as_it_was(wrong: Any, message: str) -> None:
    class Body(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 4), residual())

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    model, x = Body(), torch.randn(3, 5)
    wide = growkit.widen(model, growkit.find_sites(model, x)["body.1.inner"], 2).records
    records = deepen(model, find_places(model, x)["body.1"]).records
    seed = wrong()
    before = snapshot(seed)
    with pytest.raises(UserInputError, match=message):
        replay(seed, records)
    assert same(snapshot(seed), before)
    narrow = Body()
    before = snapshot(narrow)
    with pytest.raises(UserInputError, match=r"body.2.inner.weight must have shape \(8, 4\), got \(6, 4\)"):
        replay(narrow, records)
    with pytest.raises(UserInputError, match="must have shape"):
        replay(narrow, [*wide, *records, *wide, *wide])
    assert same(snapshot(narrow), before)


# --- any order


def check_any_order(name: str, kind: str, steps: Sequence[tuple[str, int]]) -> None:
    """Edit, compare, replay the records on the seed, and undo in reverse: each undo restores what was, to the bit."""
    model, x = fresh(name)
    seed = copy.deepcopy(model)
    optimizer = OPTIMIZERS[kind](groups_of(model))
    train(model, optimizer, x)
    snapshots, edits, function = [], [], outputs(model, x)
    for step, number in steps:
        snapshots.append(snapshot(model, optimizer))
        if step == "widen":
            edits.append(widen(model, x, number, 1 + number % 3, optimizer=optimizer))
        else:
            places = list(find_places(model, x))
            edits.append(deepen(model, places[number % len(places)], optimizer=optimizer, seed=number))
    torch.testing.assert_close(outputs(model, x), function, rtol=1e-5, atol=1e-5)
    model.train(bool(snapshots[0]["modules"][0][2]))
    replay(seed, through_json([record for edit in edits for record in edit.records]))
    assert [(n, p.shape) for n, p in seed.named_parameters()] == [(n, p.shape) for n, p in model.named_parameters()]
    for edit, before in zip(reversed(edits), reversed(snapshots), strict=True):
        edit.undo()
        assert same(snapshot(model, optimizer), before)


@pytest.mark.parametrize(
    ("name", "kind", "steps"),
    [
        ("mlp", "SGD fused", [("deepen", 0), ("widen", 2), ("deepen", 3), ("widen", 1)]),
        ("post-activation", "Adam fused", [("widen", 1), ("deepen", 2), ("deepen", 1)]),
        ("transformer", "AdamW", [("deepen", 0), ("widen", 1), ("deepen", 2)]),
    ],
)
def test_edits_undone_in_reverse_leave_no_trace(name: str, kind: str, steps: list[tuple[str, int]]) -> None:
    check_any_order(name, kind, steps)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    name=st.sampled_from(["mlp", "list", "named", "vgg-like", "post-activation", "transformer", "layer scale"]),
    kind=st.sampled_from(list(OPTIMIZERS)),
    steps=st.lists(st.tuples(st.sampled_from(["widen", "deepen"]), st.integers(0, 99)), min_size=2, max_size=5),
)
def test_any_edits_undone_in_reverse_leave_no_trace(name: str, kind: str, steps: list[tuple[str, int]]) -> None:
    check_any_order(name, kind, steps)


def test_a_raw_insertion_is_exact_too() -> None:
    model, x = fresh("wrn")
    before = outputs(model, x)
    edit = insert(model, find_places(model, x)["blocks.3"])
    assert isinstance(edit, DepthEdit) and torch.equal(outputs(model, x), before)
