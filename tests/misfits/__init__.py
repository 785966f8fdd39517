"""Models that cannot be grown, or only with care, each with its example and what must happen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from .forwards import (
    Answer,
    Cubed,
    Generates,
    Nested,
    Net,
    NoOutput,
    NotFinite,
    PrintsAndReads,
    Raises,
    RaisesInEval,
    RaisesOddly,
    Record,
    Returns,
    TakesPairs,
    WritesIntoInput,
)
from .holders import WithDeepLock, WithGenerator, WithHooks, WithLock, WithNonLeaf, WithoutCopies, WithTorchGenerator
from .weights import (
    ComplexNet,
    DuplicateBuffers,
    IntWeights,
    Scalars,
    Shared,
    SparseEmbedding,
    SparseNet,
    TiedTransposed,
    Unused,
    ZeroWidth,
    compiled_in_place,
    compiled_inside,
    frozen,
    half_frozen,
    meta,
    parametrised,
    quantised,
    scripted,
    scripted_inside,
)

__all__ = ["BAD", "Bad", "Net", "Returns", "WithDeepLock", "WithHooks", "WithLock", "WithNonLeaf", "X", "half_frozen"]

X = (4, 6)


@dataclass(frozen=True)
class Bad:
    """A model, its example, and what must happen: sites that grow, or a text in the refusal."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any] = lambda: torch.randn(*X)
    grows: int | None = None
    refused: str | None = None


BAD: dict[str, Bad] = {
    "lazy": Bad(lambda: nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.Linear(8, 3)), refused="LazyLinear at 0 has not"),
    "meta device": Bad(meta, lambda: torch.randn(*X, device="meta"), refused="meta device have no values"),
    "meta weights, real input": Bad(meta, refused="meta device have no values"),
    "quantised": Bad(quantised, refused="a quantised module cannot grow, got Linear at a"),
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
    "returns a dataclass": Bad(lambda: Returns(Answer), grows=1),
    "returns an unknown mapping": Bad(lambda: Returns(lambda y: Record(y=y, why="because")), grows=1),
    "returns a namespace": Bad(lambda: Returns(lambda y: [SimpleNamespace(y=y), "why"]), grows=1),
    "returns an object": Bad(lambda: Returns(Nested), grows=1),
    "returns a distribution": Bad(lambda: Returns(lambda y: torch.distributions.Normal(y, y.exp())), grows=1),
    "returns an empty object": Bad(lambda: Returns(lambda y: SimpleNamespace(name="x")), refused="SimpleNamespace"),
    "returns a generator": Bad(Generates, refused="generator"),
    "returns nothing": Bad(NoOutput, grows=0),
    "own autograd function": Bad(Cubed, grows=1),
    "writes into its input": Bad(WritesIntoInput, grows=1),
    "complex": Bad(ComplexNet, grows=1),
    "sparse parameter": Bad(SparseNet, refused="the sparse 'w'"),
    "sparse gradients": Bad(SparseEmbedding, grows=2),
    "tied through a transpose": Bad(TiedTransposed, grows=1),
    "data parallel": Bad(lambda: nn.DataParallel(Net()), refused="unwrapped"),
    "compiled": Bad(lambda: torch.compile(Net()), refused="unwrapped"),  # type: ignore[arg-type]
    "compiled inside": Bad(compiled_inside, refused="got OptimizedModule at 0"),
    "compiled in place": Bad(compiled_in_place, grows=1),
    "scripted": Bad(scripted, refused="scripted module cannot be traced, got RecursiveScriptModule;"),
    "scripted inside": Bad(scripted_inside, refused="got RecursiveScriptModule at 2"),
    "orthogonal": Bad(parametrised, grows=0),
    "half frozen": Bad(half_frozen, grows=1),
    "frozen": Bad(frozen, grows=0),
    "bfloat16": Bad(lambda: Net().bfloat16(), lambda: torch.randn(*X).bfloat16(), grows=1),
    "float16": Bad(lambda: Net().half(), lambda: torch.randn(*X).half(), grows=1),
    "float64": Bad(lambda: Net().double(), lambda: torch.randn(*X).double(), grows=1),
    "holds a lock": Bad(WithLock, grows=1),
    "holds a generator": Bad(WithGenerator, grows=1),
    "holds a tensor with history": Bad(WithNonLeaf, grows=1),
    "holds a lock in a record": Bad(WithDeepLock, grows=1),
    "forbids copies": Bad(WithoutCopies, grows=1),
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
    "one sample and batch norm": Bad(
        DuplicateBuffers, lambda: torch.randn(1, 6), refused="holds one sample; pass two or more"
    ),
    "no samples": Bad(Net, lambda: torch.randn(0, 6), refused="must hold samples"),
    "samples of zeros": Bad(Net, lambda: torch.zeros(*X), grows=1),
    "example of another shape": Bad(Net, lambda: torch.randn(4, 5), refused="5"),
    "example of another type": Bad(Net, lambda: torch.randint(0, 5, X), refused="dtype"),
    "example a list": Bad(Net, lambda: [torch.randn(*X)], refused="must be a tensor, a tuple"),
    "example an array": Bad(Net, lambda: torch.randn(*X).numpy(), refused="torch.from_numpy"),
    "example a tuple of arrays": Bad(Net, lambda: (torch.randn(*X).numpy(),), refused="torch.from_numpy"),
    "example an unknown mapping": Bad(Net, lambda: Record(x=torch.randn(*X)), grows=1),
    "example in tuples": Bad(TakesPairs, lambda: {"pairs": ((torch.randn(*X), None), [torch.randn(*X)])}, grows=1),
    "example None": Bad(Net, lambda: None, refused="must be a tensor, a tuple"),
    "example a number": Bad(Net, lambda: 3.5, refused="must be a tensor, a tuple"),
    "example with unknown names": Bad(Net, lambda: {"y": torch.randn(*X)}, refused="y"),
    "example without arguments": Bad(Net, lambda: (), refused="x"),
}
