"""Models that cannot be grown, or only with care: handled, or refused with a reason; never another kind of error."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed import destroy_process_group, init_process_group
from zoo.truth import call, photograph

import growkit
from growkit.errors import GrowkitError

X = (4, 6)


class Net(nn.Module):
    """A plain net; subclasses spoil it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.tanh(self.a(x)))


class Raises(Net):
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("the cat ate it")


class RaisesOddly(Net):
    """An exception whose text is empty."""

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError


class RaisesInEval(Net):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            raise NotImplementedError("eval is not there yet")
        return super().forward(x)


class Returns(Net):
    def __init__(self, what: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.what = what

    def forward(self, x: Tensor) -> Any:
        return self.what(super().forward(x))


@dataclass
class Answer:
    logits: Tensor
    label: str = "cat"


class OwnCube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, *grad: Tensor) -> Tensor:
        return 3 * ctx.saved_tensors[0] ** 2 * grad[0]


class Cubed(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.b(OwnCube.apply(self.a(x)))


class WritesIntoInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        x[:, 0] = 0.0
        return super().forward(x)


class ComplexNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8, dtype=torch.complex64)
        self.b = nn.Linear(8, 3, dtype=torch.complex64)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x.to(torch.complex64))).abs()


class SparseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.eye(8, 6).to_sparse())
        self.b = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sparse.mm(self.w, x.t()).t())


class SparseEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.b, self.c = nn.Embedding(9, 8, sparse=True), nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.b(self.embed(x.abs().long().clamp(max=8))).mean(1)))


class TiedTransposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.a(x)), self.a.weight.t())


class IntWeights(nn.Module):
    """A layer quantised by hand: whole-number weights in a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randint(-9, 9, (8, 6), dtype=torch.int8), requires_grad=False)
        self.b, self.c = nn.Linear(8, 7), nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.relu(self.b(F.linear(x, self.w.to(x.dtype) * 0.1))))


def quantised() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(Net(), {nn.Linear})


class WithLock(Net):
    """deepcopy fails."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


class WithGenerator(Net):
    """deepcopy fails: a Python generator is held."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = (i for i in range(9))


class WithNonLeaf(Net):
    """deepcopy fails: a tensor with history is held."""

    def __init__(self) -> None:
        super().__init__()
        self.kept = self.a.weight * 2


class WithTorchGenerator(Net):
    def __init__(self) -> None:
        super().__init__()
        self.rng = torch.Generator()

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.also = self.a
        self.list = nn.ModuleList([self.a, self.b])

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.tanh(self.list[0](x)) + self.also(x))


class DuplicateBuffers(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.other = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
        self.other.running_mean = self.norm.running_mean
        self.other.running_var = self.norm.running_var

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.other(torch.tanh(self.norm(self.a(x)))))


class Scalars(Net):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.steps = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * super().forward(x)


def _add_one(module: nn.Module, args: Any, output: Any) -> Any:
    return output + 1


class WithHooks(Net):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.a.register_forward_hook(lambda module, args, output: self.seen.append(1))
        self.a.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
        self.b.register_full_backward_hook(lambda module, grads, outputs: None)
        self.register_forward_hook(_add_one)


class Generates(Net):
    def forward(self, x: Tensor) -> Any:
        return (self.b(torch.tanh(self.a(x))) for _ in range(2))


class PrintsAndReads(Net):
    """Reads its own source of randomness and the clock of its calls."""

    calls = 0

    def forward(self, x: Tensor) -> Tensor:
        type(self).calls += 1
        return super().forward(x)


class ZeroWidth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.empty = nn.Linear(6, 8), nn.Linear(8, 3), nn.Parameter(torch.zeros(0, 8))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.cat([torch.tanh(self.a(x)), x.new_zeros(0, 8) + self.empty.sum()]))


class NotFinite(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) / 0.0


class Unused(Net):
    def __init__(self) -> None:
        super().__init__()
        self.ghost = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 2))


class NoOutput(Net):
    def forward(self, x: Tensor) -> None:
        self.b(self.a(x))


def sequence() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def parametrised() -> nn.Module:
    model = Net()
    nn.utils.parametrizations.orthogonal(model.a)
    return model


def half_frozen() -> nn.Module:
    model = Net()
    model.a.requires_grad_(False)
    return model


def frozen() -> nn.Module:
    return Net().requires_grad_(False)


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(sequence())


def scripted_inside() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), scripted_of(5))


def scripted_of(width: int) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(nn.Sequential(nn.Linear(width, 8), nn.Tanh(), nn.Linear(8, 3)))


def meta() -> nn.Module:
    with torch.device("meta"):
        return Net()


@dataclass(frozen=True)
class Bad:
    """A model, its example, and what must happen: sites that grow, or a text in the refusal."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any] = lambda: torch.randn(*X)
    grows: int | None = None
    refused: str | None = None


CASES: dict[str, Bad] = {
    "lazy": Bad(lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3)), refused="Lazy"),
    "meta device": Bad(meta, lambda: torch.randn(*X, device="meta"), refused="meta"),
    "meta weights, real input": Bad(meta, refused="meta"),
    "quantised": Bad(quantised, refused=""),
    "int8 weights": Bad(IntWeights, grows=1),
    "raises": Bad(Raises, refused="the cat ate it"),
    "raises without words": Bad(RaisesOddly, refused="AssertionError"),
    "raises in eval mode": Bad(RaisesInEval, refused="eval is not there yet"),
    "returns a string": Bad(lambda: Returns(lambda y: "yes"), grows=0),
    "returns a string too": Bad(lambda: Returns(lambda y: {"y": y, "why": "because"}), grows=1),
    "returns None": Bad(lambda: Returns(lambda y: None), grows=0),
    "returns None too": Bad(lambda: Returns(lambda y: (y, None)), grows=1),
    "returns a number": Bad(lambda: Returns(lambda y: (y, 7, 2.5)), grows=1),
    "returns whole numbers": Bad(lambda: Returns(lambda y: y.argmax(1)), grows=0),
    "returns a dataclass": Bad(lambda: Returns(Answer), refused="Answer"),
    "returns a generator": Bad(Generates, refused="generator"),
    "returns nothing": Bad(NoOutput, grows=0),
    "own autograd function": Bad(Cubed, grows=1),
    "writes into its input": Bad(WritesIntoInput, grows=1),
    "complex": Bad(ComplexNet, grows=1),
    "sparse parameter": Bad(SparseNet, refused="sparse"),
    "sparse gradients": Bad(SparseEmbedding, grows=1),
    "tied through a transpose": Bad(TiedTransposed, grows=1),
    "data parallel": Bad(lambda: nn.DataParallel(Net()), refused="unwrapped"),
    "compiled": Bad(lambda: torch.compile(Net()), refused="unwrapped"),  # type: ignore[arg-type]
    "scripted": Bad(scripted, refused="ScriptModule"),
    "scripted inside": Bad(scripted_inside, refused="ScriptModule"),
    "orthogonal": Bad(parametrised, grows=0),
    "half frozen": Bad(half_frozen, grows=1),
    "frozen": Bad(frozen, grows=0),
    "bfloat16": Bad(lambda: Net().bfloat16(), lambda: torch.randn(*X).bfloat16(), grows=1),
    "float16": Bad(lambda: Net().half(), lambda: torch.randn(*X).half(), grows=1),
    "float64": Bad(lambda: Net().double(), lambda: torch.randn(*X).double(), grows=1),
    "holds a lock": Bad(WithLock, grows=1),
    "holds a generator": Bad(WithGenerator, grows=1),
    "holds a tensor with history": Bad(WithNonLeaf, grows=1),
    "holds a torch generator": Bad(WithTorchGenerator, grows=1),
    "hooks": Bad(WithHooks, grows=1),
    "shared submodules": Bad(Shared, grows=1),
    "duplicate buffers": Bad(DuplicateBuffers, grows=1),
    "no parameters": Bad(nn.Tanh, grows=0),
    "scalar parameters": Bad(Scalars, grows=1),
    "class attribute as counter": Bad(PrintsAndReads, grows=1),
    "no entries": Bad(ZeroWidth, refused="fails at another width"),
    "not finite": Bad(NotFinite, refused="finite"),
    "unused layers": Bad(Unused, grows=1),
    "one sample": Bad(Net, lambda: torch.randn(1, 6), grows=1),
    "one sample and batch norm": Bad(DuplicateBuffers, lambda: torch.randn(1, 6), refused=""),
    "no samples": Bad(Net, lambda: torch.randn(0, 6), refused=""),
    "example of another shape": Bad(Net, lambda: torch.randn(4, 5), refused="5"),
    "example of another type": Bad(Net, lambda: torch.randint(0, 5, X), refused="dtype"),
    "example a list": Bad(Net, lambda: [torch.randn(*X)], refused="must be a tensor, a tuple"),
    "example None": Bad(Net, lambda: None, refused="must be a tensor, a tuple"),
    "example a number": Bad(Net, lambda: 3.5, refused="must be a tensor, a tuple"),
    "example with unknown names": Bad(Net, lambda: {"y": torch.randn(*X)}, refused="y"),
    "example without arguments": Bad(Net, lambda: (), refused="x"),
}


def outcome(bad: Bad, model: nn.Module, example: Any) -> tuple[int, str]:
    """How many sites growkit stands by, and all it says of the rest; nothing but its own errors may come out."""
    try:
        sites = growkit.find_sites(model, example)
        verdict = growkit.verify_sites(model, sites, example=example)
        for site in verdict.sites:
            growkit.widen(model, site, 2, example=example).undo()
    except GrowkitError as error:
        return 0, str(error)
    return len(verdict.sites), "; ".join(one.reason for one in (*sites.refusals, *verdict.refusals))


NOT_YET: dict[str, str] = {
    "meta device": "RuntimeError of torch from verify_sites",
    "scripted inside": "the message does not name the scripted part",
    "hooks": "the trial's copy runs hooks that hold the original",
}


def cases(table: dict[str, str], names: Any = CASES) -> list[Any]:
    marks = {name: [pytest.mark.xfail(strict=True, reason=reason)] for name, reason in table.items()}
    return [pytest.param(name, marks=marks.get(name, [])) for name in names]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", cases(NOT_YET))
def test_it_grows_or_is_refused_with_a_reason_and_stays_as_it_was(name: str) -> None:
    torch.manual_seed(0)
    bad = CASES[name]
    model, example = bad.build(), bad.example()
    before = photograph(model)
    number, text = outcome(bad, model, example)
    after = photograph(model)
    assert [part for part in before if before[part] != after[part]] == []
    if bad.grows is not None:
        assert number == bad.grows, text
    else:
        assert number == 0 and text and (bad.refused or "") in text, text


GROW_NOT_YET = {
    "meta device": "NotImplementedError of torch when it moves the model",
    "complex": "RuntimeError of autograd from the statistics",
    "holds a lock": "TypeError of deepcopy",
    "holds a generator": "TypeError of deepcopy",
    "holds a tensor with history": "RuntimeError of deepcopy",
}

UNFIT = (
    "lazy", "meta device", "quantised", "raises", "raises in eval mode", "returns a string", "returns None",
    "returns a dataclass", "returns a generator", "returns whole numbers", "complex", "sparse parameter",
    "data parallel", "compiled", "scripted", "frozen", "no parameters", "not finite", "holds a lock",
    "holds a generator", "holds a tensor with history",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", cases(GROW_NOT_YET, UNFIT))
def test_growing_while_training_raises_no_other_error(name: str) -> None:
    """`growkit.grow` may train what can be trained; what it cannot it refuses before anything has changed."""
    torch.manual_seed(0)
    model = CASES[name].build()
    before = photograph(model)
    data = torch.randn(40, 6), torch.randint(0, 3, (40,))
    try:
        growkit.grow(model, data, config={"train.epochs": 2, "growth.when.start": 1}, observers=())
    except GrowkitError as error:
        assert str(error)
        after = photograph(model)
        assert [part for part in before if before[part] != after[part]] == []


WRONG_CALLS: dict[str, Callable[[nn.Module, Any], Any]] = {
    "no module": lambda model, x: growkit.find_sites("model", x),  # type: ignore[arg-type]
    "a class": lambda model, x: growkit.find_sites(Net, x),  # type: ignore[arg-type]
    "a function": lambda model, x: growkit.find_sites(model.forward, x),  # type: ignore[arg-type]
    "None": lambda model, x: growkit.find_sites(None, x),  # type: ignore[arg-type]
    "a name for a site": lambda model, x: growkit.widen(model, "a", 2),  # type: ignore[arg-type]
    "half a unit": lambda model, x: growkit.widen(model, growkit.find_sites(model, x)["a"], 0.5),  # type: ignore[arg-type]
    "no unit": lambda model, x: growkit.widen(model, growkit.find_sites(model, x)["a"], 0),
    "fewer units": lambda model, x: growkit.widen(model, growkit.find_sites(model, x)["a"], -3),
    "a site of another model": lambda model, x: growkit.widen(nn.Linear(6, 3), growkit.find_sites(model, x)["a"], 1),
    "no model to grow": lambda model, x: growkit.grow(None, (x, x)),  # type: ignore[arg-type]
    "an optimizer of other parameters": lambda model, x: growkit.widen(
        model,
        growkit.find_sites(model, x)["a"],
        2,
        optimizer="adam",  # type: ignore[arg-type]
    ),
    "an unknown initializer": lambda model, x: growkit.widen(
        model, growkit.find_sites(model, x)["a"], 2, initializer="best"
    ),
    "another example": lambda model, x: growkit.widen(model, growkit.find_sites(model, x)["a"], 2, example=[x]),  # type: ignore[arg-type]
    "an example that does not fit": lambda model, x: growkit.widen(
        model, growkit.find_sites(model, x)["a"], 2, example=torch.randn(4, 5)
    ),
}
CALL_NOT_YET = {
    **{name: "AttributeError" for name in ("no module", "a function", "None", "a name for a site")},
    "a class": "TypeError",
    "a site of another model": "AttributeError of torch",
}


@pytest.mark.parametrize("name", cases(CALL_NOT_YET, WRONG_CALLS))
def test_wrong_arguments_are_refused_with_what_was_given(name: str) -> None:
    model, x = Net(), torch.randn(*X)
    before = photograph(model)
    with pytest.raises(GrowkitError) as caught:
        WRONG_CALLS[name](model, x)
    assert len(str(caught.value)) > 20
    assert photograph(model) == before


@pytest.fixture
def one_process() -> Iterator[None]:
    init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # type: ignore[attr-defined]
    yield
    destroy_process_group()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrap", ["ddp", "fsdp"])
@pytest.mark.xfail(strict=True, reason="find_sites traces a wrapper before it looks at it")
def test_distributed_wrappers_are_refused(wrap: str, one_process: None) -> None:
    model, x = Net(), torch.randn(*X)
    if wrap == "ddp":
        model = nn.parallel.DistributedDataParallel(model)
    else:
        fsdp = pytest.importorskip("torch.distributed.fsdp")
        fsdp.fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    number, text = outcome(Bad(Net), model, x)
    assert number == 0 and "unwrapped" in text


def test_hooks_run_as_before_after_growth() -> None:
    model, x = WithHooks(), torch.randn(*X)
    y = call(model, x)
    growkit.widen(model, growkit.find_sites(model, x)["a"], 2)
    assert torch.allclose(call(model, x), y, atol=1e-6)
    assert [len(module._forward_hooks) for module in (model, model.a)] == [1, 1]


def test_a_model_that_lives_on_another_dtype_keeps_it() -> None:
    model, x = Net().bfloat16(), torch.randn(*X).bfloat16()
    growkit.widen(model, growkit.find_sites(model, x)["a"], 2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_frozen_weights_stay_frozen() -> None:
    model, x = half_frozen(), torch.randn(*X)
    growkit.widen(model, growkit.find_sites(model, x)["a"], 2)
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
