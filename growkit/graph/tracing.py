"""Trace a module with `torch.export`, in train mode and in eval mode, and leave no trace in the module.

Export runs the module's own Python with fake tensors, so loops, branches on shapes, raw parameters and dictionaries of
inputs all work, and the operations stay whole (`linear`, `conv2d`, `layer_norm`). Both modes are needed: auxiliary
heads exist only in train mode. A branch on *values* cannot be exported; `draft_export` then follows the path that the
example takes, and the trace says so.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram, draft_export, export
from torch.fx import Graph, Node
from torch.utils import _pytree as pytree

from growkit.errors import ModelError
from growkit.graph.acceptance import check_model
from growkit.graph.module_state import attributes_kept, outside_inference_mode, same_memory, unwatched
from growkit.graph.outputs import plain_outputs
from growkit.graph.untraceable import inside_torch, why_untraceable
from growkit.rng import isolated

__all__ = ["Example", "Source", "Trace", "arguments_of", "location_of", "owners_of", "trace_both_modes"]

Example = Tensor | tuple | dict
"""One batch of inputs: a tensor, the tuple of positional arguments, or the dictionary of keyword arguments."""


@dataclass(frozen=True)
class Source:
    """What a placeholder of the trace stands for.

    Attributes:
        kind: "parameter", "buffer", "constant" or "input".
        name: the name in the module; for inputs the name of the argument.
    """

    kind: str
    name: str


@dataclass(frozen=True)
class Trace:
    """The operations of one forward pass.

    Attributes:
        graph: nodes of pre-dispatch ATen operations; `node.meta["val"]` is a fake tensor.
        sources: what each placeholder stands for, by name of the node.
        training: whether the module was in train mode.
        path_specialised: True if branches on values were frozen to the path of the example.
    """

    graph: Graph
    sources: dict[str, Source]
    training: bool
    path_specialised: bool


@outside_inference_mode()
def trace_both_modes(model: nn.Module, example: Example) -> tuple[Trace, Trace]:
    """Trace a module in train and in eval mode; its mode, buffers, gradients and the random state stay as they were.

    Args:
        model: any module; one on the meta device too.
        example: one batch of inputs, on the module's device.

    Returns:
        The trace in train mode and the trace in eval mode.

    Raises:
        UserInputError: it is no module, or one of a kind that cannot be traced.
        ModelError: tracing fails, or the example holds no samples.
    """
    check_model(model)
    args, kwargs = arguments_of(example)
    _check_samples(args, kwargs)
    if any(parameter.is_meta for parameter in model.parameters()):
        args, kwargs = pytree.tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs))
    with _untouched(model), plain_outputs(model):
        return _trace(model, args, kwargs, training=True), _trace(model, args, kwargs, training=False)


def location_of(node: Node) -> str | None:
    """The user's "file:line" of a node: the innermost frame outside torch."""
    frames = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip().startswith("File ")]
    for frame in reversed(frames):
        path, line = frame.split('"')[1], frame.split("line ")[1].split(",")[0]
        if not inside_torch(path):
            return f"{path}:{line}"
    return None


def owners_of(node: Node) -> tuple[str, ...]:
    """The names of the modules whose forward runs the node, innermost first; the root module is ""."""
    stack = node.meta.get("nn_module_stack") or {}
    return tuple(dict.fromkeys(name for name, _ in reversed(list(stack.values()))))


def arguments_of(example: Example) -> tuple[tuple, dict[str, Any]]:
    """An example as the positional and the keyword arguments of a call; tensors made in inference mode are copied.

    Raises:
        ModelError: it is none of the three kinds, or holds arrays in place of tensors.
    """
    if any(isinstance(leaf, np.ndarray) for leaf in pytree.tree_leaves(example)):
        raise ModelError("An example must hold torch tensors, got a numpy array; torch.from_numpy(x) makes one of it.")
    if any(isinstance(leaf, Tensor) and leaf.is_inference() for leaf in pytree.tree_leaves(example)):
        with torch.inference_mode(False), torch.no_grad():
            example = pytree.tree_map_only(Tensor, Tensor.clone, example)
    if isinstance(example, Tensor):
        return (example,), {}
    if isinstance(example, Mapping):
        return (), dict(example)
    if isinstance(example, tuple):
        return example, {}
    raise ModelError(
        "An example must be a tensor, a tuple of positional arguments or a dictionary of keyword arguments, "
        f"got {type(example).__name__}. For one batch `x`, pass `x` or `(x,)`."
    )


def _check_samples(args: tuple, kwargs: dict[str, Any]) -> None:
    if _samples(args, kwargs) == 0:
        raise ModelError("An example must hold samples, got a batch of none; pass a batch of two or more.")


def _samples(args: tuple, kwargs: dict[str, Any]) -> int | None:
    """The first dimension of the first tensor that has one."""
    leaves = pytree.tree_leaves((args, kwargs))
    return next((len(leaf) for leaf in leaves if isinstance(leaf, Tensor) and leaf.dim()), None)


def _trace(model: nn.Module, args: tuple, kwargs: dict[str, Any], *, training: bool) -> Trace:
    try:
        program, specialised = _exported(export, model, args, kwargs, training), False
    except Exception as first:
        try:
            program, specialised = _exported(draft_export, model, args, kwargs, training), True
        except Exception as second:
            mode = "train" if training else "eval"
            few = " It holds one sample; pass two or more." if _samples(args, kwargs) == 1 else ""
            raise ModelError(why_untraceable(model, args, kwargs, mode, (first, second)) + few) from second
    return Trace(program.graph, _sources(program), training, specialised)


def _exported(how: Any, model: nn.Module, args: tuple, kwargs: dict[str, Any], training: bool) -> ExportedProgram:
    with attributes_kept(model):  # what a forward keeps of one trace is nothing for the next
        model.train(training)
        return how(model, args, kwargs, strict=False)


def _sources(program: ExportedProgram) -> dict[str, Source]:
    signature = program.graph_signature
    tables = {
        "parameter": signature.inputs_to_parameters,
        "buffer": signature.inputs_to_buffers,
        "constant": signature.inputs_to_lifted_tensor_constants,
    }
    known = {node: Source(kind, name) for kind, table in tables.items() for node, name in table.items()}
    placeholders = [node.name for node in program.graph.nodes if node.op == "placeholder"]
    return {node: known.get(node, Source("input", node)) for node in placeholders}


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Put modes, all tensors, gradients, plain attributes and random states back; silence torch's own notices.

    Parameters too: a module may merge or renormalise weights when its mode changes or its forward runs.
    """
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    with isolated(), attributes_kept(model) as held, unwatched():
        tensors = [(tensor, tensor.data, tensor.detach().clone()) for tensor in held.tensors]
        try:
            with warnings.catch_warnings(), _quiet_logs():
                warnings.simplefilter("ignore")
                with torch.enable_grad():  # without gradients torch takes fused paths
                    yield
        finally:
            with torch.no_grad():
                for tensor, data, saved in tensors:
                    if not same_memory(tensor, data):
                        tensor.data = data
                    if not tensor.is_meta and not _equal(tensor, saved):
                        tensor.copy_(saved)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _equal(tensor: Tensor, saved: Tensor) -> bool:
    """Whether nothing was written; a write counts as one if the values cannot be compared."""
    try:
        return torch.equal(tensor, saved)
    except RuntimeError:
        return False


@contextlib.contextmanager
def _quiet_logs() -> Iterator[None]:
    """Hold back what export logs and prints: it reaches the user as `path_specialised` or as an error."""
    before, structured = logging.root.manager.disable, logging.getLogger("torch.__trace")
    logging.disable(logging.CRITICAL)
    structured.addFilter(_nothing)  # `draft_export` would open a file for each trace, never closed nor removed
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        structured.removeFilter(_nothing)
        logging.disable(before)


def _nothing(record: logging.LogRecord) -> bool:
    return False
