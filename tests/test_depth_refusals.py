"""Models that cannot take one more layer are refused and left as they were."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from depth_cases import Shared, fresh, residual, same, snapshot
from torch import Tensor, nn

from growkit.errors import GrowthRefused, ModelError, SurgeryError
from growkit.graph import find_places
from growkit.surgery import (
    deepen,
    depth,
    edited_buffers,
)


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


class Exits(Literal):
    """Each block gives an output of its own."""

    def forward(self, x: Tensor) -> list[Tensor]:
        outputs = [x]
        for block in self.blocks:
            outputs.append(block(outputs[-1]))
        return outputs[1:]


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
        (Exits, "the number of outputs changes from 3 to 4"),
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
    with pytest.raises(ModelError, match="must be numbers, got NaN"):
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
