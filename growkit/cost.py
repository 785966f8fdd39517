"""What a model and its training cost: parameters, FLOPs per sample, and the ledger of a run."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from growkit.errors import ModelError
from growkit.formulas import FORMULAS
from growkit.rng import isolated

__all__ = [
    "BACKWARD_AND_FORWARD",
    "LATENCY_CALLS",
    "Flops",
    "TrainingCost",
    "count_flops",
    "count_params",
    "measure_latency",
]

LATENCY_CALLS = 14
BLOCK = 2  # calls one after the other: the first is slow after a pause
PAUSE = 0.005  # seconds, about what a scheduler gives another program at a time
BACKWARD_AND_FORWARD = 3  # in forwards: the backward pass makes two products for each product of the forward


@dataclass(frozen=True)
class Flops:
    """FLOPs of one forward pass of one sample.

    Attributes:
        total: 2 per multiply-accumulate of products, convolutions and attention; element-wise work counts as free.
        unknown: operators that do work nobody gave a formula for; where there are any, total is a lower bound.
    """

    total: int
    unknown: tuple[str, ...]


def count_params(model: nn.Module) -> int:
    """The number of parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_flops(model: nn.Module, example: Tensor) -> Flops:
    """FLOPs per sample of a forward pass in evaluation mode, counted by running it on the first sample.

    A custom operator gets its formula from `torch.utils.flop_counter.register_flop_formula`.

    Args:
        model: any module; its mode, buffers and torch's random state stay as they are.
        example: inputs [B, ...] on the model's device.

    Raises:
        ModelError: the model cannot be run on the sample.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    fast_attention = torch.backends.mha.get_fastpath_enabled()
    counter = FlopCounterMode(display=False, custom_mapping=dict(FORMULAS))
    watch = _Watch(model, counter)
    # attention layers in evaluation mode run as one fused operator unless told not to
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), isolated(), watch, counter:
            functional_call(model.eval(), buffers, (example[:1],))
    except Exception as error:  # a user's forward may raise anything
        raise ModelError(
            f"FLOPs are counted on one sample, but the model failed on inputs {[1, *example.shape[1:]]}: "
            f"{type(error).__name__}: {error}"
        ) from error
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_attention)
        for module, training in modes:
            module.training = training
    return Flops(int(counter.get_total_flops()), tuple(sorted(watch.unknown)))


def measure_latency(call: Callable[[], Any], device: str) -> float:
    """Milliseconds that a call takes where nothing disturbs it: the shortest of LATENCY_CALLS in blocks apart in time.

    What else runs on the machine can only make a call longer, so the shortest one is nearest to what the call itself
    needs, while a mean or a median follows the load (Chen and Revels, "Robust benchmarking in noisy environments",
    arXiv 1608.04295, 2016). Pauses between the blocks keep one busy spell from meeting all of them. CPU time, which
    knows no load either, is no latency where several threads or a GPU compute.

    Args:
        call: what is timed.
        device: where it computes, "cpu" or "cuda"; a CUDA device is waited for at every call.
    """
    wait = torch.cuda.synchronize if device == "cuda" else (lambda: None)
    shortest = math.inf
    for number in range(LATENCY_CALLS):
        if number and number % BLOCK == 0:
            time.sleep(PAUSE)
        wait()
        started = time.perf_counter()
        call()
        wait()
        shortest = min(shortest, time.perf_counter() - started)
    return 1000.0 * shortest


@dataclass
class TrainingCost:
    """The FLOPs a run has spent, by what they were spent on.

    Attributes:
        training: on optimizer steps.
        other: on everything else, by kind: growth, evaluation, diagnosis, ...
    """

    training: int = 0
    other: dict[str, int] = field(default_factory=dict)

    def add_steps(self, flops_per_sample: int, samples: int, passes: int = 1) -> None:
        """Add training on `samples` samples, each three forwards per pass; SAM makes two passes a step."""
        self.training += BACKWARD_AND_FORWARD * flops_per_sample * samples * passes

    def add(self, kind: str, flops: int) -> None:
        """Add FLOPs that trained nothing."""
        self.other[kind] = self.other.get(kind, 0) + flops

    def to_json(self) -> dict[str, Any]:
        """The ledger as JSON; `TrainingCost(**ledger)` opens it again."""
        return {"training": self.training, "other": dict(self.other)}


class _Watch(TorchDispatchMode):
    """Notes the operators that work without a formula: see `_is_unknown`."""

    supports_higher_order_operators = True

    def __init__(self, model: nn.Module, counter: FlopCounterMode):
        super().__init__()
        self.unknown: set[str] = set()
        self._known = counter.flop_registry
        self._parameters = {_storage(parameter) for parameter in model.parameters()} - {0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = getattr(func, "_overloadpacket", func)
        if packet not in self._known and self._is_unknown(func, (args, kwargs)):
            self.unknown.add(str(packet))
        return func(*args, **(kwargs or {}))

    def _is_unknown(self, func: Any, inputs: Any) -> bool:
        """An operator from outside torch, a costly one, or any that reads a parameter and is not known to be free."""
        if getattr(func, "namespace", None) not in ("aten", "prim", "prims"):
            return True
        name = func._overloadpacket.__name__
        if name in FREE or torch.Tag.pointwise in func.tags or _is_view(func):
            return False
        if name.startswith(COSTLY):
            return True
        # by storage, so that a transposed or reshaped parameter counts as one
        return any(isinstance(leaf, Tensor) and _storage(leaf) in self._parameters for leaf in tree_leaves(inputs))


def _storage(tensor: Tensor) -> int:
    return 0 if tensor.is_sparse else tensor.untyped_storage().data_ptr()


def _is_view(func: Any) -> bool:
    returns = func._schema.returns
    return bool(returns) and all(value.alias_info is not None and not value.alias_info.is_write for value in returns)


# without a formula these are reported whatever they read
COSTLY = ("_fft_", "linalg_", "_linalg_", "_cdist_", "_scaled_dot_product_")

# work per element, or none: normalisers, look-ups, reductions, movement; pointwise ones and views say so themselves
FREE = frozenset(
    """
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    _batch_norm_no_update cudnn_batch_norm miopen_batch_norm native_layer_norm native_group_norm _fused_rms_norm
    embedding _embedding_bag _embedding_bag_forward_only _weight_norm_interface _prelu_kernel
    _thnn_fused_lstm_cell _thnn_fused_gru_cell _softmax _log_softmax
    sum mean prod amax amin max min var std var_mean std_mean norm linalg_vector_norm cumsum sort topk argmax argmin
    cat stack index index_select gather take scatter scatter_add where select_scatter slice_scatter
    copy_ fill_ zero_ clone _to_copy repeat repeat_interleave roll flip constant_pad_nd tril triu
    t detach _unsafe_view view_copy empty_like zeros_like ones_like full_like
    """.split()
)
